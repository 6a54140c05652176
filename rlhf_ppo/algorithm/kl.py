"""How far the policy has moved from the reference, and how hard to pull it back.

Estimators after John Schulman, "Approximating KL Divergence" (2020): with r = ref / policy and
tokens sampled from the policy, k1 = -log r, k2 = (log r)^2 / 2, k3 = (r - 1) - log r.
"""

from dataclasses import dataclass
from typing import Literal, assert_never

from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]

# exp() of a larger log-ratio would overflow float32's useful range; no healthy run comes near.
MAX_LOG_RATIO = 20.0


def estimate_kl(logprobs: Tensor, ref_logprobs: Tensor, estimator: Estimator) -> Tensor:
    """Per-token estimate of KL(policy || reference), in nats.

    Args:
        logprobs: (B, R), log-probability of the sampled token under the policy.
        ref_logprobs: (B, R), the same under the reference.
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


@dataclass(frozen=True)
class FixedController:
    """Keeps beta as it is."""

    beta: float

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

    def update(self, kl: float, episodes: int) -> "AdaptiveController":
        """The controller for the next step.

        Args:
            kl: mean KL to the reference over all processes, nats a response.
            episodes: responses in the step, over all processes.
        """
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        beta = self.beta * (1 + error * episodes / self.horizon)
        return AdaptiveController(beta, self.target, self.horizon)


Controller = FixedController | AdaptiveController
