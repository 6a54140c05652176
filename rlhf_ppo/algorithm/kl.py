"""How far the policy has moved, from the reference or in one update, and how to hold it back.

Estimators after John Schulman, "Approximating KL Divergence" (2020): with r = ref / policy and
tokens sampled from the policy, k1 = -log r, k2 = (log r)^2 / 2, k3 = (r - 1) - log r.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, assert_never

from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]

# exp() of a larger log-ratio would overflow float32's useful range; no healthy run comes near.
MAX_LOG_RATIO = 20.0


def probability_ratio(new_logprobs: Tensor, logprobs: Tensor) -> Tensor:
    """pi_new(token) / pi_old(token), (B, R), between e^-20 and e^20."""
    return (new_logprobs - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def estimate_kl(logprobs: Tensor, ref_logprobs: Tensor, estimator: Estimator) -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens of the policy, (B, R) nats.

    Args:
        logprobs: (B, R) nats, of the sampled token under the policy.
        ref_logprobs: (B, R) nats, under the reference.
        estimator: "k1" is unbiased and may be negative; "k2" is biased, of low variance;
            "k3" is unbiased and never negative.
    """
    log_ratio = logprobs - ref_logprobs
    match estimator:
        case "k1":
            return log_ratio
        case "k2":
            return log_ratio**2 / 2
        case "k3":
            negative = (-log_ratio).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
            return negative.expm1() - negative
        case _:
            assert_never(estimator)


def kl_of_update(new_logprobs: Tensor, logprobs: Tensor) -> Tensor:
    """Per-token estimate of KL(new || old) from tokens of the *old* policy, (B, R) nats.

    rho log rho - (rho - 1) with rho = new / old: unbiased, because the mean of rho is 1, and
    never negative. The mirror image of k3.
    """
    log_ratio = (new_logprobs - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return log_ratio.exp() * log_ratio - log_ratio.expm1()


def kl_loss(
    new_logprobs: Tensor, logprobs: Tensor, ref_logprobs: Tensor, estimator: Estimator
) -> Tensor:
    """KL(new || reference) as a term of the loss, from tokens of the old policy, (B, R) nats.

    The value is rho times the estimator, rho = new / old correcting for who sampled. The gradient
    is, for each estimator, an unbiased one of the KL at the states of the batch:

    - k1, k3: through rho *and* the estimator. The estimator alone would give gradients whose mean
      is 0 (k1), or that of KL(reference || new) (k3).
    - k2: through the estimator alone, rho held fixed; the mean of k2 is not the KL, but the mean
      of its gradient, log(new / reference) times that of log new, is the KL's.

    Tang and Munos 2025, "On a few pitfalls in KL divergence gradient estimation for RL".

    Args:
        new_logprobs: (B, R) nats, with gradient.
        logprobs: (B, R) nats, at collection.
        ref_logprobs: (B, R) nats.
        estimator: of the per-token KL.
    """
    ratio = probability_ratio(new_logprobs, logprobs)
    if estimator == "k2":
        ratio = ratio.detach()
    return ratio * estimate_kl(new_logprobs, ref_logprobs, estimator)


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n sampling to its base: log n - (n - 1) / n, nats a response.

    Exact when no two responses score alike, an upper bound otherwise (Stiennon et al. 2020;
    Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def adapt_penalty(penalty: float, kl: float, target: float) -> float:
    """Weight of KL(old || new) for the next update (Schulman et al. 2017, section 4).

    Halved when the update moved less than target / 1.5, doubled when more than target * 1.5.

    Args:
        penalty: weight in the update just made, advantage units per nat.
        kl: KL(old || new) after it, nats a token.
        target: nats a token.
    """
    if kl < target / 1.5:
        return penalty / 2
    return penalty * 2 if kl > target * 1.5 else penalty


@dataclass(frozen=True)
class FixedController:
    """Keeps beta as it is."""

    beta: float  # reward units per nat
    error: float = 0.0

    def update(self, kl: float, episodes: int) -> "FixedController":
        """The controller for the next step: this one."""
        del kl, episodes
        return self


@dataclass(frozen=True)
class AdaptiveController:
    """Steers beta so that the KL of a response meets a target.

    Ziegler et al. 2019, section 2.2: the relative error is clipped to +-0.2 and beta is
    multiplied by 1 + error * episodes / horizon, once a step.
    """

    beta: float  # reward units per nat
    target: float  # nats a response
    horizon: int  # episodes
    error: float = 0.0  # of the step before

    def update(self, kl: float, episodes: int) -> "AdaptiveController":
        """The controller for the next step.

        Args:
            kl: mean KL to the reference over all processes, nats a response.
            episodes: responses in the step, over all processes.
        """
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return replace(self, beta=self.beta * (1 + error * episodes / self.horizon), error=error)


@dataclass(frozen=True)
class TargetController:
    """Seeks the beta at which the KL of a response stays at a target.

    beta is the Lagrange multiplier of the constraint KL = target, and log beta follows the error
    e = log(KL / target) by its integral and by its change: the first removes the error, the
    second damps the swing that Ziegler's controller shows, because the policy answers a new beta
    only after many steps (PI control of a multiplier: Stooke et al. 2020).
    """

    beta: float  # reward units per nat
    target: float  # nats a response
    horizon: int  # episodes over which an error of 1 multiplies beta by e
    gain: float  # share of a change of the error that is answered at once
    error: float = -1.0  # of the step before; a run starts at KL 0, far below any target

    def update(self, kl: float, episodes: int) -> "TargetController":
        """The controller for the next step; see `AdaptiveController.update`."""
        error = math.log(max(kl / self.target, math.exp(-1.0)))
        error = min(error, 1.0)
        change = error * episodes / self.horizon + self.gain * (error - self.error)
        return replace(self, beta=self.beta * math.exp(change), error=error)


Controller = FixedController | AdaptiveController | TargetController
