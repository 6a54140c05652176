"""Responses without a score leave the batch, are counted, and above a threshold stop the run."""

from collections.abc import Sequence

from torch import Tensor

from rlhf_ppo.errors import UserError
from rlhf_ppo.rewards.judgement import Failure

SHOWN = 3  # reasons in a message


def scored_rows(table: Tensor, group_size: int) -> Tensor:
    """The rows (K,) int64 that every source scored.

    Args:
        table: (B, S), NaN: missing.
        group_size: responses that are compared with one another, neighbours in the batch; where
            one of them has no score the whole group leaves: a mean over the rest would be another
            baseline than the settings ask for.
    """
    scored = table.isfinite().all(dim=1)
    whole = scored.view(-1, group_size).all(dim=1)
    return whole.repeat_interleave(group_size).nonzero().squeeze(-1)


def check_failures(table: Tensor, failures: Sequence[Failure], allowed: float, where: str) -> None:
    """Stop when more than the allowed share of responses has no score.

    Args:
        table: (B, S), NaN: missing.
        failures: of all processes.
        allowed: share of the B responses.
        where: "step 12", for the message.

    Raises:
        UserError: says which sources, how many responses, and the first reasons.
    """
    failed = int((~table.isfinite()).any(dim=1).sum())
    if failed <= allowed * len(table):
        return
    names = ", ".join(dict.fromkeys(failure.source for failure in failures))
    reasons = "\n".join(f"  - {failure.line()}" for failure in failures[:SHOWN])
    more = f"\n  - and {len(failures) - SHOWN} more" if len(failures) > SHOWN else ""
    raise UserError(
        f"reward.sources: {failed} of {len(table)} responses of {where} got no score from {names}, "
        f"more than reward.max_failed = {allowed:g} allows:\n{reasons}{more}\nMend the source, or "
        "raise reward.max_failed; --resume goes on from the last checkpoint."
    )


def check_enough(kept: int, minibatches: int, processes: int, where: str) -> None:
    """After responses have left, every process must still have one in every minibatch.

    Raises:
        UserError: too few are left.
    """
    if kept < minibatches * processes:
        raise UserError(
            f"reward.sources: only {kept} responses of {where} have scores (with "
            "rollout.samples_per_prompt a group leaves as a whole), too few for ppo.minibatches = "
            f"{minibatches} on {processes} process(es). Mend the source, or raise "
            "rollout.batch_size."
        )
