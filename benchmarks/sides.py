"""Who takes part in the benchmark, and by which settings."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Side:
    """One way to train."""

    script: str  # beside this file; takes the run's folder
    overrides: tuple[str, ...] = ()  # of our settings, as on the command line
    task: dict[str, Any] = field(default_factory=dict)  # what differs in the task
    peer: bool = False  # runs in the peer's environment


SIDES = {
    "ours": Side("ours.py"),
    "shared": Side("ours.py", ("--value.model", "shared")),
    "pooled": Side("ours.py", ("--value.model", "pooled")),
    "pooled_1": Side("ours.py", ("--value.model", "pooled", "--value.updates", "1")),
    "policy": Side("ours.py", ("--value.model", "policy")),
    "policy_fast": Side(
        "ours.py", ("--value.model", "policy", "--value.learning_rate", "1e-3")
    ),  # of the values, at the policy's 3e-4
    "trl_ppo": Side("peer_ppo.py", peer=True),
}
