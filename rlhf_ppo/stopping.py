"""What a run that is ended from outside (Ctrl-C, SIGTERM) says: what is there to go on from."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rlhf_ppo.config import Config
from rlhf_ppo.console import duration
from rlhf_ppo.errors import StoppedError, UserError
from rlhf_ppo.prepare import finished_stages
from rlhf_ppo.stamps import Stamp
from rlhf_ppo.training.checkpoint import list_checkpoints, read_progress

GO_ON = "Go on by the same command with --resume."


@contextmanager
def told_when_stopped(message: Callable[[], str]) -> Iterator[None]:
    """Give an interrupt inside a message.

    Raises:
        StoppedError: in place of a `KeyboardInterrupt` that has no message yet.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        if str(stop):
            raise
        code = stop.code if isinstance(stop, StoppedError) else 130
        raise StoppedError(message(), code) from None


def what_is_there(
    config: Config, stages: Sequence[str], stamps: dict[str, Stamp], stage: str, started: float
) -> str:
    """What `--resume` would find of a run that was ended in `stage`.

    Args:
        config: settings.
        stages: of the run, in order.
        stamps: of the stages.
        stage: in which the run was ended.
        started: when, by `time.monotonic`.
    """
    try:
        resumed = config.model_copy(update={"resume": True})
        kept = [name for name in stages if name in finished_stages(resumed, stages, stamps)]
    except UserError:  # an earlier result lies there, of other settings
        kept = []
    if stage in kept:
        return f"Finished and kept: {', '.join(kept)}."
    lines = [_of_stage(config, stage, time.monotonic() - started)]
    if kept:
        lines.append(f"Finished and kept: {', '.join(kept)}.")
    return " ".join([*lines, GO_ON])


def _of_stage(config: Config, stage: str, seconds: float) -> str:
    """From where an unfinished stage goes on."""
    if stage != "ppo":
        return f"{stage} starts over: it keeps no checkpoints, its {duration(seconds)} are lost."
    found = list_checkpoints(Path(config.output_dir) / "checkpoints")
    step = read_progress(found[-1]).step if found else 0
    if step:
        return f"ppo goes on after step {step} of {config.ppo.steps}, its newest checkpoint."
    every = f"checkpoint.every = {config.checkpoint.every}"
    return f"ppo starts over: no checkpoint was made yet ({every}), {duration(seconds)} are lost."
