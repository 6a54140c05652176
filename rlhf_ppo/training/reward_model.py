"""Stage 2: a reward model from preference pairs, by TRL's RewardTrainer, and its probes."""

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer

from rlhf_ppo.config import Config, ModelSource, RewardModelConfig, trained_source
from rlhf_ppo.console import say
from rlhf_ppo.data.preferences import Preference
from rlhf_ppo.data.template import check_template, encode_conversation, long_rows
from rlhf_ppo.models.adapters import fresh_adapter
from rlhf_ppo.models.load import load_classifier, load_tokenizer
from rlhf_ppo.models.lora import POLICY
from rlhf_ppo.models.save import name_base
from rlhf_ppo.rewards.classifier import RewardModel
from rlhf_ppo.rewards.judgement import Missing
from rlhf_ppo.seeds import derive_seed
from rlhf_ppo.training.distributed import Processes
from rlhf_ppo.training.trainer import (
    save_stage,
    training_arguments,
    use_our_progress,
)

PROBES_FILE = "probes.json"


def train_reward_model(
    config: Config,
    settings: RewardModelConfig,
    preferences: Sequence[Preference],
    probes: Sequence[Preference],
    start: str,
    folder: Path,
    stamp: dict[str, Any],
    processes: Processes,
) -> None:
    """Train a reward model (Bradley-Terry loss) from the model at `start`, save it to `folder`.

    Raises:
        UserError: `start` cannot be loaded.
    """
    tokenizer = load_tokenizer(start, "reward_model.init_from")
    source = trained_source(config.reward) or ModelSource()
    model = _starting_point(config, settings, start, source.dtype)
    model.config.pad_token_id = tokenizer.pad_token_id
    pairs = _encode(preferences, tokenizer, settings.max_tokens)
    arguments = training_arguments(config, settings, folder, processes.world)
    if settings.order == "file":
        pairs = file_order(pairs, settings.batch_size, config.seed)
        arguments["train_sampling_strategy"] = "sequential"
    trainer = RewardTrainer(
        model=model,
        args=TrlRewardConfig(
            **arguments,
            center_rewards_coefficient=settings.center_coefficient or None,
            remove_unused_columns=False,  # the sampler groups by `length`
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
    )
    progress = use_our_progress(trainer, "reward model", processes.is_main)
    trainer.train()

    def write(target: Path) -> None:
        trained: Any = trainer.accelerator.unwrap_model(trainer.model)
        if settings.save == "adapter":
            name_base(trained.peft_config[POLICY])
            trained.save_pretrained(target)
        whole = trained if config.lora is None else trained.merge_and_unload()
        if settings.save == "merged":
            whole.save_pretrained(target)
        tokenizer.save_pretrained(target)
        history = "\n".join(json.dumps(entry) for entry in progress.history)
        (target / "metrics.jsonl").write_text(history + "\n", encoding="utf-8")
        if probes:
            sides = [pair.conversations for pair in probes]
            long = long_rows(tokenizer, sides, source.max_tokens)
            short = [pair for place, pair in enumerate(probes) if place not in long]
            accuracy = probe(RewardModel(whole.eval(), tokenizer, source, "reward_model"), short)
            (target / PROBES_FILE).write_text(json.dumps(accuracy, indent=2) + "\n", "utf-8")
            shown = "  ".join(f"{kind} {value['accuracy']:.2f}" for kind, value in accuracy.items())
            say(f"reward model: right order on held-out pairs: {shown}")

    save_stage(folder, processes, stamp, write)


def _starting_point(
    config: Config, settings: RewardModelConfig, start: str, base_dtype: str
) -> Any:
    """The model at `start` with a head of one output, or a new adapter on it.

    Args:
        config: settings.
        settings: of this stage.
        start: folder or hub id.
        base_dtype: of the base beside an adapter.
    """
    given = settings.init_from is not None
    model = load_classifier(
        start,
        # What is trained is float32: half precision has no room for small updates.
        "float32" if config.lora is None else base_dtype,
        "reward_model.init_from" if given else "policy.path",
        new_head=True,
        allow=settings.allow_unmatched if given else config.policy.allow_unmatched,
        seed=config.seed % 2**32,
    )
    if config.lora is None:
        return model
    seed = derive_seed(config.seed, "reward_model", "adapter")
    return fresh_adapter(model, config.lora, "SEQ_CLS", seed)


def file_order(pairs: list[dict[str, Any]], batch_size: int, seed: int) -> list[dict[str, Any]]:
    """Roughly the order of the file: only within stretches of 50 batches are pairs rearranged.

    There pairs of similar length are put into one batch, and the batches are shuffled.
    """
    order = random.Random(seed)
    arranged = []
    for start in range(0, len(pairs), 50 * batch_size):
        stretch = pairs[start : start + 50 * batch_size]
        order.shuffle(stretch)
        stretch.sort(key=lambda pair: int(pair["length"]))
        batches = [stretch[at : at + batch_size] for at in range(0, len(stretch), batch_size)]
        last = [batches.pop()] if len(batches[-1]) < batch_size else []
        order.shuffle(batches)  # a short batch must stay last, or it would shift all after it
        arranged += [pair for batch in batches + last for pair in batch]
    return arranged


def probe(model: RewardModel, probes: Sequence[Preference]) -> dict[str, dict[str, float]]:
    """How often the chosen completion scores above the rejected one, by kind of error.

    Returns:
        For each kind: `pairs`, `accuracy` (ties count half) and `margin` (mean score difference).
        A pair that gets no score is left out, and said.
    """
    prompts = [pair.prompt for pair in probes]
    chosen = model.score_texts(prompts, [pair.chosen for pair in probes])
    rejected = model.score_texts(prompts, [pair.rejected for pair in probes])
    margins: dict[str, list[float]] = defaultdict(list)
    for pair, better, worse in zip(probes, chosen, rejected, strict=True):
        if isinstance(better, Missing) or isinstance(worse, Missing):
            missing = better if isinstance(better, Missing) else worse
            say(f"reward model: left out a held-out pair, {missing}")
            continue
        margins[pair.kind].append(better - worse)
    result = {}
    for kind, values in sorted(margins.items()):
        differences = torch.tensor(values)
        wins = (differences > 0).float() + 0.5 * (differences == 0).float()
        result[kind] = {
            "pairs": len(values),
            "accuracy": float(wins.mean()),
            "margin": float(differences.mean()),
        }
    return result


def _encode(
    preferences: Sequence[Preference], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> list[dict[str, Any]]:
    """Token ids of each pair whose longer side is short enough."""
    check_template(tokenizer, [pair.prompt for pair in preferences], "data.preferences")
    pairs = []
    for pair in preferences:
        chosen = encode_conversation(tokenizer, pair.prompt, pair.chosen)
        rejected = encode_conversation(tokenizer, pair.prompt, pair.rejected)
        length = max(len(chosen), len(rejected))
        if length <= max_tokens:  # `inputs.py` has told of the others
            pairs.append({"chosen_ids": chosen, "rejected_ids": rejected, "length": length})
    return pairs
