"""TensorBoard, W&B and their like: they show what the run's files hold, and can never end a run."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType

from rlhf_ppo.config import Config
from rlhf_ppo.console import say
from rlhf_ppo.errors import UserError

# Where a tracker's package has another name.
PACKAGES = {"comet_ml": "comet-ml"}
# How each tracker calls the name of a run, among the arguments of Accelerate's class for it.
NAMED_BY = {
    "wandb": "name",
    "trackio": "name",
    "mlflow": "run_name",
    "swanlab": "experiment_name",
    "clearml": "task_name",
}
WITHOUT_KEY = (
    " Log in (`wandb login`, or the environment variable WANDB_API_KEY), or set WANDB_MODE=offline "
    "and send the run later by `wandb sync`."
)


class Trackers:
    """The trackers of a run, open from its first stage to its last.

    One that fails after it was opened is reported once and left out from then on.
    """

    def __init__(self, config: Config, *, opened_here: bool = True) -> None:
        """Open them, or none in a process other than the main one.

        Raises:
            UserError: one cannot be opened: no key, its server is away, its folder is not writable.
        """
        self.opened: dict[str, Any] = {}
        if not opened_here:
            return
        # Those that write into the output folder come last: it stays empty if another is refused.
        for name in sorted(config.logging.trackers, key=_writes_here):
            try:
                self.opened[name] = _open(name, config)
            except (Exception, SystemExit) as error:
                self.close()
                raise UserError(_not_opened(name, error)) from error

    def log(self, values: Mapping[str, float], step: int, stage: str = "ppo") -> None:
        """Send the numbers of a step.

        Args:
            values: by name; `step` itself may be among them.
            step: of the stage.
            stage: those of another one than PPO get its name in front, `sft/loss`.
        """
        prefix = "" if stage == "ppo" else f"{stage}/"
        named = {f"{prefix}{name}": value for name, value in values.items() if name != "step"}
        # An evaluation stands at the PPO step that it evaluates.
        place = f"{prefix}step" if stage in SUPERVISED else "step"

        def send(name: str, tracker: Any) -> None:
            if name == "wandb":
                # Its own step only goes up, over all stages and rollbacks; see `_name_axes`.
                tracker.log({place: step, **named})
            else:
                tracker.log(named, step=step)

        self._each(send)

    def close(self) -> None:
        """Flush and close them."""
        self._each(lambda name, tracker: tracker.finish())
        self.opened = {}

    def _each(self, action: Callable[[str, Any], None]) -> None:
        for name, tracker in list(self.opened.items()):
            try:
                action(name, tracker)
            except (Exception, SystemExit) as error:
                del self.opened[name]
                say(
                    f"logging.trackers: {name} failed ({_reason(error)}) and gets no more numbers; "
                    "the run goes on, and all numbers are in its folder."
                )


SUPERVISED = ("sft", "reward_model")


def check_trackers(names: Sequence[str]) -> None:
    """Accelerate would leave out a tracker that is not installed and say nothing.

    Raises:
        UserError: an unknown name, or a package that is not installed.
    """
    known = sorted(kind.value for kind in LoggerType if kind is not LoggerType.ALL)
    here = {kind.value for kind in get_available_trackers()}
    for name in names:
        if name not in known:
            raise UserError(
                f"logging.trackers: {name!r} is no tracker that Accelerate knows. Choose from "
                f"{', '.join(known)}."
            )
        if name not in here:
            raise UserError(
                f"logging.trackers: {name!r} is not installed here. Install it (pip install "
                f"{PACKAGES.get(name, name)}), or leave it out; metrics.jsonl is always written."
            )


def settings_for_trackers(config: Config) -> dict[str, int | float | str | bool]:
    """Every setting by its dotted name; lists and null, which trackers refuse, as JSON."""
    flat: dict[str, int | float | str | bool] = {}

    def add(values: Mapping[str, Any], prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, dict) and value:
                add(value, f"{prefix}{name}.")
            elif isinstance(value, int | float | str):
                flat[prefix + name] = value
            else:
                flat[prefix + name] = json.dumps(value)

    add(config.model_dump(mode="json"), "")
    return flat


def numbers_of(summary: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of nested mappings, by their path: `win_rate/score/mean`."""
    found: dict[str, float] = {}
    for name, value in summary.items():
        if isinstance(value, Mapping):
            found |= numbers_of(value, f"{prefix}{name}/")
        elif (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        ):
            found[prefix + name] = value
    return found


def _writes_here(name: str) -> bool:
    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    return bool(kind.requires_logging_directory)


def _open(name: str, config: Config) -> Any:
    """A tracker that has begun a run named after the output folder, with all settings."""
    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    project, folder = config.logging.project, Path(config.output_dir)
    title = folder.resolve().name
    if name == "tensorboard":
        # It names a folder after its run, the others a project: give it its own.
        tracker = kind("tensorboard", str(folder))
    elif name == "aim":  # and this one has the run's name first
        tracker = kind(title, str(folder), experiment=project)
    else:
        tracker = kind(project, **({NAMED_BY[name]: title} if name in NAMED_BY else {}))
    tracker.start()
    if name == "comet_ml":
        tracker.tracker.set_name(title)
    tracker.store_init_configuration(settings_for_trackers(config))
    if name == "wandb":
        _name_axes(tracker.tracker)
    return tracker


def _name_axes(run: Any) -> None:
    """Tell W&B which number each curve stands over: stages count steps of their own."""
    define = getattr(run, "define_metric", None)  # not in its disabled mode of some versions
    if define is not None:
        define("*", step_metric="step")
        for stage in SUPERVISED:
            define(f"{stage}/*", step_metric=f"{stage}/step")


def _not_opened(name: str, error: BaseException) -> str:
    advice = WITHOUT_KEY if name == "wandb" else ""
    return (
        f"logging.trackers: {name} could not be opened ({_reason(error)}).{advice} Or leave it "
        "out: --logging.trackers '[]'; metrics.jsonl is always written."
    )


def _reason(error: BaseException) -> str:
    """The first line of an exception, not too long."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
