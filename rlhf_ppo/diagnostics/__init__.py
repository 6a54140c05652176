"""Plain words for what went wrong: from the numbers of a run to findings, with what to try.

Pure and incremental: `Diagnosis.add` takes one line of `metrics.jsonl` at a time and never takes a
finding back, so a run says the same while it goes on, after a resume and at its end. The limits
come from the project's own runs, healthy and broken.
"""

from rlhf_ppo.diagnostics.findings import (
    Diagnosis,
    Finding,
    diagnose,
    judge_reward_model,
    read_metrics,
    write_findings,
)

__all__ = [
    "Diagnosis",
    "Finding",
    "diagnose",
    "judge_reward_model",
    "read_metrics",
    "write_findings",
]
