"""Stage 2: a reward model from preference pairs, by TRL's RewardTrainer, and its probes."""

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer

from rlhf_ppo.config import Config, ModelSource, RewardModelConfig, trained_source
from rlhf_ppo.console import activity, say
from rlhf_ppo.data.fitting import Fitted, Pair
from rlhf_ppo.diagnostics import judge_reward_model
from rlhf_ppo.models.adapters import fresh_adapter
from rlhf_ppo.models.load import load_classifier, load_tokenizer
from rlhf_ppo.models.lora import POLICY
from rlhf_ppo.models.save import name_base
from rlhf_ppo.rewards.accuracy import FILE, accuracy_of, accuracy_text, with_intervals
from rlhf_ppo.rewards.classifier import RewardModel
from rlhf_ppo.rewards.judgement import Missing
from rlhf_ppo.seeds import derive_seed
from rlhf_ppo.training.distributed import Processes
from rlhf_ppo.training.trainer import (
    save_stage,
    train_shown,
    training_arguments,
)


def train_reward_model(
    config: Config,
    settings: RewardModelConfig,
    pairs: Fitted[Pair],
    held: Fitted[Pair] | None,
    kinds: Mapping[str, str],
    start: str,
    folder: Path,
    stamp: dict[str, Any],
    processes: Processes,
) -> None:
    """Train a reward model (Bradley-Terry loss) from the model at `start`, save it to `folder`.

    `pairs` and `held` are encoded, and short enough; `kinds` names the error in each held-out pair
    by its place.

    Raises:
        UserError: `start` cannot be loaded.
    """
    tokenizer = load_tokenizer(start, "reward_model.init_from")
    source = trained_source(config.reward) or ModelSource()
    model = _starting_point(config, settings, start, source.dtype)
    model.config.pad_token_id = tokenizer.pad_token_id
    rows = _examples(pairs)
    arguments = training_arguments(config, settings, folder, processes.world)
    if settings.order == "file":
        rows = file_order(rows, settings.batch_size, config.seed)
        arguments["train_sampling_strategy"] = "sequential"
    trainer = RewardTrainer(
        model=model,
        args=TrlRewardConfig(
            **arguments,
            center_rewards_coefficient=settings.center_coefficient or None,
            remove_unused_columns=False,  # the sampler groups by `length`
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    history = train_shown(trainer, "reward model", "reward_model", processes)

    def write(target: Path) -> None:
        trained: Any = trainer.accelerator.unwrap_model(trainer.model)
        if settings.save == "adapter":
            name_base(trained.peft_config[POLICY])
            trained.save_pretrained(target)
        whole = trained if config.lora is None else trained.merge_and_unload()
        if settings.save == "merged":
            whole.save_pretrained(target)
        tokenizer.save_pretrained(target)
        lines = "\n".join(json.dumps(entry) for entry in history)
        (target / "metrics.jsonl").write_text(lines + "\n", encoding="utf-8")
        if held is not None:
            judge = RewardModel(whole.eval(), tokenizer, source, "reward_model")
            _write_probes(target, judge, held, kinds)

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


def probe(
    model: RewardModel, pairs: Sequence[Pair], kinds: Sequence[str]
) -> dict[str, dict[str, float]]:
    """How often the chosen completion scores above the rejected one, by kind of error.

    Args:
        model: trained.
        pairs: held-out ones, encoded.
        kinds: of error, one a pair.

    Returns:
        `accuracy_of` each kind. A pair that gets no score is left out, and reported.
    """
    with activity("reward model: scoring held-out pairs", 2 * len(pairs)):
        chosen = model.score_ids([pair[0].ids for pair in pairs])
        rejected = model.score_ids([pair[1].ids for pair in pairs])
    margins: dict[str, list[float]] = defaultdict(list)
    for kind, better, worse in zip(kinds, chosen, rejected, strict=True):
        if isinstance(better, Missing) or isinstance(worse, Missing):
            missing = better if isinstance(better, Missing) else worse
            say(f"reward model: left out a held-out pair, {missing}")
            continue
        margins[kind].append(better - worse)
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


def _write_probes(
    target: Path, judge: RewardModel, held: Fitted[Pair], kinds: Mapping[str, str]
) -> None:
    """Measure a trained reward model on held-out pairs; `kinds` is the kind of each place."""
    accuracy = probe(judge, held.rows, [kinds[place] for place in held.places])
    (target / FILE).write_text(json.dumps(accuracy, indent=2) + "\n", "utf-8")
    show_accuracy(accuracy)


def _examples(fitted: Fitted[Pair]) -> list[dict[str, Any]]:
    """Token ids of each pair, and the length of its longer side."""
    return [
        {
            "chosen_ids": chosen.ids,
            "rejected_ids": rejected.ids,
            "length": max(len(chosen.ids), len(rejected.ids)),
        }
        for chosen, rejected in fitted.rows
    ]
