"""Best-of-n sampling of the reference: the baseline that needs no training."""

import math

import torch
from torch import Tensor


def best_of(scores: Tensor, values: Tensor, n: int) -> Tensor:
    """Expected value of the answer with the best score among n, estimated from N: (P,).

    The mean over all subsets of n of the N samples, so unbiased and of the least variance (a
    U-statistic; Nakano et al. 2021, appendix I, estimate best-of-n so). Among answers with the
    same score each is as likely to be chosen.

    Args:
        scores: (P, N) what chooses, N samples for each of P prompts.
        values: (P, N) what is asked of the chosen one; `scores` itself or another score.
        n: at most N.
    """
    return (best_of_weights(scores, n) * values).sum(dim=1)


def best_of_weights(scores: Tensor, n: int) -> Tensor:
    """Probability of each sample to be the best of n drawn without replacement: (P, N).

    The i-th smallest of N scores is the best of C(i-1, n-1) of the C(N, n) subsets. Equal scores
    share what falls to them together.

    Args:
        scores: (P, N).
        n: at most N.
    """
    count = scores.shape[1]
    # share[k]: of the subsets, those that lie within the k smallest.
    share = torch.tensor(
        [math.comb(k, n) / math.comb(count, n) for k in range(count + 1)], dtype=torch.float64
    )
    smaller = (scores[:, None, :] < scores[:, :, None]).sum(dim=2)
    up_to = (scores[:, None, :] <= scores[:, :, None]).sum(dim=2)
    return (share[up_to] - share[smaller]) / (up_to - smaller)


def best_of_kl(n: int) -> float:
    """KL of best-of-n sampling to the model that is sampled, log n - (n-1)/n (nats a response).

    Exact where no two responses have the same score and none has a probability of its own worth
    mentioning; otherwise an upper bound, far too high where a few responses hold all probability
    (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def sizes(most: int) -> list[int]:
    """1, 2, 4, ... and at last `most` itself."""
    powers = [2**power for power in range(most.bit_length()) if 2**power < most]
    return [*powers, most]
