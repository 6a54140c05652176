"""All data of a run, read and tried on its models before anything is written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_ppo.config import Config, DataConfig, ModelSource, trained_source
from rlhf_ppo.data.conversation import canonical
from rlhf_ppo.data.preferences import (
    Demonstration,
    Preference,
    read_demonstrations,
    read_preferences,
)
from rlhf_ppo.data.prompts import Prompt, read_prompts, settle_overlap
from rlhf_ppo.data.report import DataReport, TooLong
from rlhf_ppo.data.sources import check_columns
from rlhf_ppo.data.template import Text, check_template, joined, long_rows
from rlhf_ppo.errors import UserError, problem_of, raise_all
from rlhf_ppo.evaluation.gold import GoldScorer
from rlhf_ppo.evaluation.judge import check_judge
from rlhf_ppo.models.load import load_model_config, load_tokenizer
from rlhf_ppo.preflight import check_models, check_policy, check_reward
from rlhf_ppo.stamps import model_paths
from rlhf_ppo.training.sft import starting_point

T = TypeVar("T")
Reader = Callable[[str, str, DataConfig, DataReport], list[T]]


@dataclass(frozen=True)
class Inputs:
    """All data of a run, read and checked before anything is written."""

    demonstrations: list[Demonstration]
    preferences: list[Preference]
    probes: list[Preference]
    train_prompts: list[Prompt]
    heldout_prompts: list[Prompt]
    gold: GoldScorer | None
    ptx: list[Demonstration]
    report: DataReport

    @property
    def prompts(self) -> dict[str, Sequence[Prompt]]:
        """What responses are sampled for, by setting."""
        return {"data.prompts": self.train_prompts, "data.heldout_prompts": self.heldout_prompts}

    @property
    def conversations(self) -> dict[str, Sequence[Text]]:
        """What the supervised stages learn from, by setting."""
        shown = [joined(item.prompt, item.completion) for item in self.demonstrations]
        pairs = [joined(item.prompt, item.chosen) for item in self.preferences + self.probes]
        kept = [joined(item.prompt, item.completion) for item in self.ptx]
        return {"data.demonstrations": shown, "data.preferences": pairs, "ptx.data": kept}

    @property
    def texts(self) -> list[Text]:
        """All that some model will read."""
        asked = [prompt.text for prompts in self.prompts.values() for prompt in prompts]
        return asked + [text for texts in self.conversations.values() for text in texts]


def read_inputs(config: Config, stages: Sequence[str]) -> Inputs:
    """Read all data that the stages need; every problem in one message."""
    problems: list[str] = []
    report = DataReport()

    def read(setting: str, stage: str, source: str | None, reader: Reader[T]) -> list[T]:
        if stage not in stages:
            return []
        if source is None:
            problems.append(f"{setting}: missing; the {stage} stage needs it")
            return []
        try:
            return reader(source, setting, config.data, report)
        except UserError as error:
            problems.append(str(error))
            return []

    data = config.data
    heldout_stage = "ppo" if "ppo" in stages else "evaluation"
    demonstrations = read("data.demonstrations", "sft", data.demonstrations, read_demonstrations)
    preferences = read("data.preferences", "reward_model", data.preferences, read_preferences)
    probes: list[Preference] = []
    if data.heldout_preferences is not None:
        setting = "data.heldout_preferences"
        probes = read(setting, "reward_model", data.heldout_preferences, read_preferences)
    train = read("data.prompts", "ppo", data.prompts, read_prompts)
    heldout = read("data.heldout_prompts", heldout_stage, data.heldout_prompts, read_prompts)
    problems += check_columns(data, report)
    try:
        train = settle_overlap(train, heldout, data, report)
    except UserError as error:
        problems.append(str(error))
    ptx: list[Demonstration] = []
    if config.ptx is not None:
        ptx = read("ptx.data", "ppo", config.ptx.data or data.demonstrations, read_demonstrations)
    gold = None
    if config.evaluation.gold is not None:
        try:
            gold = GoldScorer(config.evaluation.gold)
        except UserError as error:
            problems.append(str(error))
    raise_all(problems)
    inputs = Inputs(demonstrations, preferences, probes, train, heldout, gold, ptx, report)
    _report_seen_before(inputs)
    return inputs


@dataclass(frozen=True)
class Checked:
    """What trying the data on the models has told."""

    sizes: dict[str, int]  # by setting: how many prompts are short enough
    policy: PretrainedConfig | None  # the model's configuration; None: not made yet
    longest_prompt: int  # tokens
    tokenizer: PreTrainedTokenizerBase  # the policy's


def check_inputs(config: Config, stages: Sequence[str], inputs: Inputs) -> Checked:
    """Try the data on the models and the gold scorer on silence; long rows go to the report.

    Raises:
        UserError: data and models do not go together; every problem in one message.
    """
    tokenizer, model = _policy_parts(config, stages, inputs)
    longest = [0]
    problems = problem_of(lambda: longest.append(_check_prompts(config, tokenizer, model, inputs)))
    problems += problem_of(lambda: _check_examples(config, tokenizer, inputs))
    asked = inputs.train_prompts + inputs.heldout_prompts
    problems += problem_of(lambda: check_reward(config, tokenizer, asked))
    if "evaluation" in stages:
        problems += problem_of(lambda: check_models(config, inputs.heldout_prompts))
        judge = config.evaluation.judge
        if judge is not None and inputs.heldout_prompts:
            problems += problem_of(lambda: check_judge(judge, inputs.heldout_prompts[0]))
    gold = inputs.gold
    if gold is not None and inputs.heldout_prompts:
        problems += problem_of(lambda: gold.check(asked))
    raise_all(problems)
    used = {setting: item.used for setting, item in inputs.report.sources.items()}
    sizes = {setting: used.get(setting, 0) for setting in inputs.prompts}
    return Checked(sizes, model, max(longest), tokenizer)


def _policy_parts(
    config: Config, stages: Sequence[str], inputs: Inputs
) -> tuple[PreTrainedTokenizerBase, PretrainedConfig | None]:
    """Tokenizer and configuration of the policy: given, about to be made, or made before."""
    if config.policy.path is None and "sft" in stages:
        made, tokenizer = starting_point(config, inputs.demonstrations)
        return tokenizer, made.config
    path = config.policy.path or model_paths(config).reference
    return load_tokenizer(path, "policy.path"), load_model_config(path, "policy.path")


def _check_prompts(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    model: PretrainedConfig | None,
    inputs: Inputs,
) -> int:
    """Tokens of the longest prompt that is short enough; long ones go to the report."""
    report, rules = inputs.report, config.data
    limit = f"data.max_prompt_tokens = {rules.max_prompt_tokens}"
    long, longest = check_policy(config, tokenizer, model, inputs.prompts, inputs.conversations)
    for setting, rows in long.items():
        report.add_long(setting, rows, limit, refuse=rules.long_rows == "refuse")
    if tokenizer.chat_template is None or rules.to_chat == "never":
        return longest
    for setting, prompts in inputs.prompts.items():
        plain = [prompt.where for prompt in prompts if isinstance(prompt.text, str)]
        reason = "a plain string, continued as it stands (data.to_chat = always makes it a message)"
        report.add(setting, reason, plain, dropped=False)
    return longest


def _check_examples(config: Config, policy: PreTrainedTokenizerBase, inputs: Inputs) -> None:
    """What the supervised stages learn from is short enough, as they will measure it."""
    problems: list[str] = []

    def check(
        setting: str,
        items: Sequence[Demonstration] | Sequence[Preference],
        tokenizer: PreTrainedTokenizerBase,
        limit: str,
        most: int,
    ) -> None:
        rows = [item.conversations for item in items]
        check_template(tokenizer, [joined(*row[0]) for row in rows], setting)
        found = long_rows(tokenizer, rows, most)
        long = [TooLong(items[number].where, tokens) for number, tokens in found.items()]
        if len(long) == len(items) > 0:
            problems.append(
                f"{setting}: all {len(items)} rows are longer than {limit} = {most} (the shortest "
                f"has {min(found.values())} tokens). Raise it."
            )
            return
        refuse = config.data.long_rows == "refuse"
        add = inputs.report.add_long
        problems.extend(problem_of(lambda: add(setting, long, f"{limit} = {most}", refuse=refuse)))

    if config.sft is not None:
        most = config.sft.max_tokens
        check("data.demonstrations", inputs.demonstrations, policy, "sft.max_tokens", most)
    if config.reward_model is not None and inputs.preferences:
        start = config.reward_model.init_from
        own = policy if start is None else load_tokenizer(start, "reward_model.init_from")
        most = config.reward_model.max_tokens
        check("data.preferences", inputs.preferences, own, "reward_model.max_tokens", most)
        source = trained_source(config.reward) or ModelSource()
        limit = f"reward.sources[{source.name}].max_tokens"
        check("data.heldout_preferences", inputs.probes, own, limit, source.max_tokens)
    raise_all(problems)


def _report_seen_before(inputs: Inputs) -> None:
    """Say which held-out prompts an earlier stage learns from: results on them are not on new ones.

    Only said, not refused: it is PPO that must not train on them, and `settle_overlap` sees to it.
    """
    shown = {canonical(item.prompt) for item in inputs.demonstrations}
    compared = {canonical(item.prompt) for item in inputs.preferences}
    asked = [(prompt.key, prompt.where) for prompt in inputs.heldout_prompts]
    pairs = [(canonical(pair.prompt), pair.where) for pair in inputs.probes]
    for setting, rows, seen, where in (
        ("data.heldout_prompts", asked, shown, "data.demonstrations"),
        ("data.heldout_prompts", asked, compared, "data.preferences"),
        ("data.heldout_preferences", pairs, compared, "data.preferences"),
    ):
        places = [place for key, place in rows if key in seen]
        inputs.report.add(setting, f"held out, but its prompt is in {where}", places, dropped=False)
