"""Stage 1: supervised fine-tuning on demonstrations, by TRL's SFTTrainer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from rlhf_ppo.config import Config, SupervisedConfig
from rlhf_ppo.console import activity
from rlhf_ppo.data.encoding import Example
from rlhf_ppo.data.fitting import Fitted
from rlhf_ppo.data.preferences import Demonstration
from rlhf_ppo.data.template import as_text
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.adapters import fresh_adapter
from rlhf_ppo.models.load import load_causal_lm, load_tokenizer
from rlhf_ppo.models.scratch import build_model, train_tokenizer
from rlhf_ppo.seeds import derive_seed
from rlhf_ppo.training.distributed import Processes
from rlhf_ppo.training.trainer import (
    save_stage,
    train_shown,
    training_arguments,
)


def train_supervised(
    config: Config,
    settings: SupervisedConfig,
    demonstrations: Sequence[Demonstration],
    fitted: Fitted[Example],
    folder: Path,
    stamp: dict[str, Any],
    processes: Processes,
) -> None:
    """Train the starting model on completions and save it to `folder`.

    Args:
        config: settings of the run.
        settings: of this stage.
        demonstrations: what a tokenizer made from nothing learns its words from.
        fitted: the same, encoded; those that are too long are left out.
        folder: of the result.
        stamp: what it was made from.
        processes: of the run.

    Raises:
        UserError: nothing to start from.
    """
    with activity("supervised: loading the model"):
        model, tokenizer = starting_point(config, demonstrations)
    examples = [
        {
            "input_ids": row.ids,
            "completion_mask": [0] * row.start + [1] * (len(row.ids) - row.start),
        }
        for row in fitted.rows
    ]
    arguments = training_arguments(config, settings, folder, processes.world)
    if config.lora is not None:
        seed = derive_seed(config.seed, "sft", "adapter")
        model = fresh_adapter(model, config.lora, "CAUSAL_LM", seed)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments, completion_only_loss=True),
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
    )
    history = train_shown(trainer, "supervised", "sft", processes)

    def write(target: Path) -> None:
        trained: Any = trainer.accelerator.unwrap_model(trainer.model)
        if config.lora is not None:
            trained = trained.merge_and_unload()
        trained.save_pretrained(target)
        tokenizer.save_pretrained(target)
        _write_history(target, history)

    save_stage(folder, processes, stamp, write)


def starting_point(
    config: Config, demonstrations: Sequence[Demonstration]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that is given, or one made from nothing with the demonstrations' tokenizer.

    Raises:
        UserError: it cannot be loaded or made.
    """
    if config.policy.path is not None:
        tokenizer = load_tokenizer(config.policy.path, "policy.path")
        policy = config.policy
        model = load_causal_lm(
            config.policy.path,
            policy.dtype,
            "policy.path",
            allow=policy.allow_unmatched,
            seed=config.seed,
        )
        return model, tokenizer
    shape = config.policy.scratch
    if shape is None:
        raise UserError(
            "policy: nothing to start from. Set policy.path to a model folder or hub id, or "
            "describe a small model in policy.scratch."
        )
    texts = [as_text(item.prompt) + "\n" + as_text(item.completion) for item in demonstrations]
    try:
        scratch_tokenizer = train_tokenizer(texts, shape.vocabulary_size)
        model = build_model(
            scratch_tokenizer,
            hidden_size=shape.hidden_size,
            layers=shape.layers,
            heads=shape.heads,
            intermediate_size=shape.intermediate_size,
            max_positions=shape.max_positions,
            initializer_range=shape.initializer_range,
            seed=config.seed,
        )
    except ValueError as error:
        raise UserError(f"policy.scratch: {error}") from error
    return model, scratch_tokenizer


def _write_history(folder: Path, history: Sequence[dict[str, float]]) -> None:
    lines = (json.dumps(entry) for entry in history)
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
