"""Stage 2: a reward model from preference pairs, by TRL's RewardTrainer, and its probes."""

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed
from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer

from rlhf_ppo.config import Config, ModelSource, RewardModelConfig, trained_source
from rlhf_ppo.console import say
from rlhf_ppo.data.preferences import Preference
from rlhf_ppo.data.template import check_template, encode_conversation, long_rows
from rlhf_ppo.diagnostics import judge_reward_model
from rlhf_ppo.models.load import load_classifier, load_tokenizer
from rlhf_ppo.models.lora import peft_config
from rlhf_ppo.rewards.accuracy import FILE, accuracy_of, accuracy_text, with_intervals
from rlhf_ppo.rewards.classifier import RewardModel
from rlhf_ppo.rewards.judgement import Missing
from rlhf_ppo.training.distributed import Processes
from rlhf_ppo.training.trainer import (
    save_stage,
    training_arguments,
    use_our_progress,
)


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
    set_seed(config.seed % 2**32)  # the new head is drawn at random
    tokenizer = load_tokenizer(start, "reward_model.init_from")
    source = trained_source(config.reward) or ModelSource()
    model = load_classifier(start, source.dtype, "reward_model.init_from", new_head=True)
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
        peft_config=None if config.lora is None else peft_config(config.lora, "SEQ_CLS"),
    )
    progress = use_our_progress(trainer, "reward model", processes.is_main)
    trainer.train()

    def write(target: Path) -> None:
        trained: Any = trainer.accelerator.unwrap_model(trainer.model)
        if settings.save == "adapter":
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
            (target / FILE).write_text(json.dumps(accuracy, indent=2) + "\n", "utf-8")
            show_accuracy(accuracy)

    save_stage(folder, processes, stamp, write)


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
        `accuracy_of` each kind. A pair that gets no score is left out, and reported.
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
    return {kind: accuracy_of(values) for kind, values in sorted(margins.items())}


def show_accuracy(probes: Mapping[str, Mapping[str, float]]) -> None:
    """Print how often the right order was found, over all kinds and by kind, and what is wrong."""
    found = with_intervals(probes)
    if found is None:
        return
    say(f"reward model: right order in {accuracy_text(found)} (95 % interval)")
    if len(found["kinds"]) > 1:
        for kind, value in found["kinds"].items():
            say(f"  {kind:<24}{accuracy_text(value)}")
    for finding in judge_reward_model(found, step=0):
        say(f"  {finding.severity} {finding.name}: {finding.message}")
        say(f"    try: {finding.remedy}")


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
