"""Where a score says right or wrong: prompts solved before and after, and pass@k."""

import math
from typing import Any

import torch
from torch import Tensor

from rlhf_ppo.evaluation.best_of_n import sizes
from rlhf_ppo.evaluation.sides import Side
from rlhf_ppo.evaluation.statistics import Estimate, estimate_share, paired_change
from rlhf_ppo.proportions import share_interval


def compare_solved(policy: Side, reference: Side, source: str) -> dict[str, Any] | None:
    """`solved` of `summary.json`: how many prompts each side solves, paired.

    `p` is that of McNemar's exact test: of the prompts that one side alone solves, each would be
    the policy's with probability 1/2. `change` is the change of the share, its 95 % interval that
    of Tango 1998, which agrees with p.

    Args:
        policy, reference: one answer to each of the same prompts.
        source: name of the reward source whose scores are 1, right, and 0, wrong.

    Returns:
        None where no prompt has a score for both answers.
    """
    ours, theirs = policy.parts[source], reference.parts[source]
    both = ours.isfinite() & theirs.isfinite()
    if not bool(both.any()):
        return None
    ours, theirs = ours[both], theirs[both]
    change = paired_change(ours, theirs, 0, 0, share=True)
    return {
        "source": source,
        "prompts": len(ours),
        "reference": _count(theirs),
        "policy": _count(ours),
        "gained": int((ours > theirs).sum()),
        "lost": int((ours < theirs).sum()),
        "p": change.pop("p"),
        "change": change,
    }


def pass_at_k(solved: Tensor, k: int) -> Tensor:
    """Probability that at least one of k answers is right, estimated from N answers: (P,).

    1 - C(N - c, k) / C(N, k), with c right ones among the N: unbiased (Chen et al. 2021, eq. 1).

    Args:
        solved: (P, N) 1 or 0.
        k: at most N.
    """
    count = solved.shape[1]
    missed = [math.comb(count - right, k) / math.comb(count, k) for right in range(count + 1)]
    return 1 - torch.tensor(missed, dtype=torch.float64)[solved.sum(dim=1).long()]


def summarise_pass(
    policy: Side, reference: Side, source: str, copies: int, samples: int, seed: int
) -> dict[str, Any] | None:
    """`pass_at_k` of `summary.json`: for k = 1, 2, 4, ..., each side and the paired change.

    Args:
        policy, reference: (P * copies) answers, those to one prompt together.
        source: name of the reward source whose scores are 1, right, and 0, wrong.
        copies: N, answers to each prompt.
        samples: resamples of the prompts.
        seed: of the resampling.

    Returns:
        None where no prompt has a score for all its answers.
    """
    ours, theirs = (side.parts[source].view(-1, copies) for side in (policy, reference))
    whole = (ours.isfinite() & theirs.isfinite()).all(dim=1)
    if not bool(whole.any()):
        return None
    points = []
    for k in sizes(copies):
        after, before = pass_at_k(ours[whole], k), pass_at_k(theirs[whole], k)
        binary = bool(((after == 0) | (after == 1)).all() & ((before == 0) | (before == 1)).all())
        points.append(
            {
                "k": k,
                "reference": estimate_share(before.tolist(), samples, seed),
                "policy": estimate_share(after.tolist(), samples, seed),
                "change": paired_change(after, before, samples, seed, share=binary),
            }
        )
    return {"prompts": int(whole.sum()), "samples": copies, "points": points}


def _count(solved: Tensor) -> Estimate:
    right = int(solved.sum())
    low, high = share_interval(right, len(solved))
    return {"solved": right, "mean": right / len(solved), "low": low, "high": high}
