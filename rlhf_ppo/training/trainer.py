"""What the two TRL stages share: arguments, progress, the place where the result is put."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from rlhf_ppo.config import Config, SupervisedConfig
from rlhf_ppo.console import Stepper
from rlhf_ppo.plan import stage_micro_batch
from rlhf_ppo.stamps import Stamp, write_stamp
from rlhf_ppo.training.distributed import Processes

# Transformers renamed the argument between 5.17 and 5.23.
_NEW_NAME = "activation_checkpointing"
_CHECKPOINTING = (
    _NEW_NAME if _NEW_NAME in TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"
)
LOGGED_EVERY = 10  # optimizer steps; in a short stage and at its first step more often
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def training_arguments(
    config: Config, stage: SupervisedConfig, folder: Path, world: int
) -> dict[str, Any]:
    """Arguments of `SFTConfig` and `RewardConfig` that follow from our settings.

    Raises:
        UserError: the batch cannot be split over the processes.
    """
    micro = stage_micro_batch(stage, folder.name, world)
    on_cpu = not torch.cuda.is_available()
    return {
        # Nothing is written there, no checkpoints, no trackers, but the Trainer makes it.
        "output_dir": str(_partial(folder)),
        "save_strategy": "no",
        "report_to": "none",
        "seed": config.seed % 2**32,
        "data_seed": config.seed % 2**32,
        "num_train_epochs": stage.epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": stage.batch_size // (micro * world),
        "learning_rate": stage.learning_rate,
        "lr_scheduler_type": SCHEDULES[stage.schedule],
        "warmup_steps": stage.warmup_steps,
        "adam_beta2": stage.adam_beta2,
        "adam_epsilon": stage.adam_epsilon,
        "weight_decay": stage.weight_decay,
        "train_sampling_strategy": "group_by_length",
        _CHECKPOINTING: config.policy.gradient_checkpointing,  # TRL's default is True
        "bf16": config.hardware.mixed_precision == "bf16",
        "fp16": config.hardware.mixed_precision == "fp16",
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "max_length": None,  # too long examples are dropped before, and counted
        "disable_tqdm": True,
        "logging_steps": LOGGED_EVERY,
    }


class TrainerProgress(TrainerCallback):
    """Our bar or lines in place of the Trainer's; keeps the loss history and tells the trackers."""

    def __init__(self, title: str, stage: str, processes: Processes) -> None:
        """Show nothing but in the main process.

        Args:
            title: of the bar.
            stage: as the trackers know it.
            processes: of the run.
        """
        self.title, self.stage, self.processes = title, stage, processes
        self.history: list[dict[str, float]] = []
        self.stepper: Stepper | None = None
        self.note = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Open the bar."""
        self.stepper = Stepper(self.title, state.max_steps, shown=self.processes.is_main)
        self.stepper.__enter__()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Have the first step logged, all of a short stage; advance the bar."""
        every = max(1, min(LOGGED_EVERY, state.max_steps // LOGGED_EVERY))
        if state.global_step == 1 or state.global_step % every == 0:
            control.should_log = True
        if self.stepper is not None and not control.should_log:
            self.stepper.advance(self.note, to=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Keep the numbers of a step and advance the bar with them."""
        if not logs or "loss" not in logs:  # the summary at the end
            return
        self.history.append({"step": state.global_step, **logs})
        parts = [f"loss {float(logs['loss']):.3f}"]
        if "accuracy" in logs:
            parts.append(f"accuracy {float(logs['accuracy']):.2f}")
        self.note = "  ".join(parts)
        self.processes.track(logs, state.global_step, self.stage)
        if self.stepper is not None:
            self.stepper.advance(self.note, to=state.global_step)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self.stepper is not None:
            self.stepper.__exit__(None, None, None)
            self.stepper = None


def train_shown(
    trainer: Any, title: str, stage: str, processes: Processes
) -> list[dict[str, float]]:
    """Train with our output in place of the Trainer's own.

    Args:
        trainer: of Transformers or TRL.
        title: of the bar.
        stage: as the trackers know it.
        processes: of the run.

    Returns:
        The numbers that were logged, one entry a logged step.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    progress = TrainerProgress(title, stage, processes)
    trainer.add_callback(progress)
    try:
        trainer.train()
    finally:  # an interrupt too must give the terminal back
        progress.close()
    return progress.history


def save_stage(
    folder: Path,
    processes: Processes,
    stamp: Stamp,
    write: Callable[[Path], None],
) -> None:
    """Put a stage's result in place, complete or not at all.

    Args:
        folder: where it belongs.
        processes: only the main one writes.
        stamp: what the result was made from, see `stamps.py`.
        write: fills a folder.
    """

    def put() -> None:
        partial = _partial(folder)
        shutil.rmtree(partial, ignore_errors=True)  # ours, from a run that was interrupted
        partial.mkdir(parents=True)
        write(partial)
        write_stamp(partial, stamp)
        if folder.exists():  # a resumed run that goes on replaces its own earlier result
            old = folder.with_name(folder.name + ".old")
            shutil.rmtree(old, ignore_errors=True)  # from a run that died while removing it
            folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old)
        else:
            partial.rename(folder)

    processes.on_main(put)


def _partial(folder: Path) -> Path:
    """Where a stage's result is made before it is put in place."""
    return folder.with_name(folder.name + ".partial")
