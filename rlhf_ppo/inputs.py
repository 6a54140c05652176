"""All data of a run, read and tried on its models before anything is written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_ppo.config import Config, DataConfig, ModelSource, trained_source
from rlhf_ppo.data.conversation import canonical
from rlhf_ppo.data.encoding import Example
from rlhf_ppo.data.fitting import Fitted, Pair, fit_demonstrations, fit_pairs
from rlhf_ppo.data.heldout import Group, split_groups
from rlhf_ppo.data.lengths import LengthLimit
from rlhf_ppo.data.preferences import (
    Demonstration,
    Preference,
    read_demonstrations,
    read_preferences,
)
from rlhf_ppo.data.prompt_fitting import FittedPrompts, fit_prompts
from rlhf_ppo.data.prompts import Prompt, read_prompts, settle_overlap
from rlhf_ppo.data.report import DataReport
from rlhf_ppo.data.sources import check_columns
from rlhf_ppo.data.template import Text, joined
from rlhf_ppo.errors import UserError, problem_of, raise_all
from rlhf_ppo.evaluation.gold import GoldScorer
from rlhf_ppo.evaluation.judge import check_judge
from rlhf_ppo.models.limits import limits_of
from rlhf_ppo.models.load import check_stop_tokens, load_model_config, load_tokenizer
from rlhf_ppo.preflight import (
    check_models,
    check_reward,
    policy_reader,
    policy_setting,
    scoring_readers,
)
from rlhf_ppo.stamps import model_paths
from rlhf_ppo.training.sft import starting_point

T = TypeVar("T")
SPLIT_HINT = " (data.heldout = 200 cuts 200 from data.prompts)"
Reader = Callable[[str, str, DataConfig, DataReport], list[T]]


@dataclass
class FittedExamples:
    """What the supervised stages learn from, as the models read it; None: there is none."""

    demonstrations: Fitted[Example] | None = None
    pairs: Fitted[Pair] | None = None
    heldout_pairs: Fitted[Pair] | None = None


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
    fitted: FittedExamples = field(default_factory=FittedExamples)

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
    problems: list[tuple[str, str]] = []  # a setting, and what is wrong with it
    report = DataReport()
    data = config.data
    split = _sources_of_split(config)

    def read(setting: str, stage: str, source: str | None, reader: Reader[T]) -> list[T]:
        if stage not in stages and setting not in split:
            return []
        if source is None:
            if data.heldout is None or setting != "data.heldout_prompts":
                also = SPLIT_HINT if setting == "data.heldout_prompts" else ""
                problems.append((setting, f"{setting}: missing; the {stage} stage needs it{also}"))
            return []
        try:
            return reader(source, setting, data, report)
        except UserError as error:
            problems.append((setting, str(error)))
            return []

    heldout_stage = "ppo" if "ppo" in stages else "evaluation"
    demonstrations = read("data.demonstrations", "sft", data.demonstrations, read_demonstrations)
    preferences = read("data.preferences", "reward_model", data.preferences, read_preferences)
    probes: list[Preference] = []
    if data.heldout_preferences is not None:
        setting = "data.heldout_preferences"
        probes = read(setting, "reward_model", data.heldout_preferences, read_preferences)
    train = read("data.prompts", "ppo", data.prompts, read_prompts)
    heldout = read("data.heldout_prompts", heldout_stage, data.heldout_prompts, read_prompts)
    problems += [("data.columns", text) for text in check_columns(data, report)]
    try:
        train = settle_overlap(train, heldout, data, report)
    except UserError as error:
        problems.append(("data.overlap", str(error)))
    ptx: list[Demonstration] = []
    if config.ptx is not None:
        ptx = read("ptx.data", "ppo", config.ptx.data or data.demonstrations, read_demonstrations)
    gold = None
    if config.evaluation.gold is not None:
        try:
            gold = GoldScorer(config.evaluation.gold)
        except UserError as error:
            problems.append(("evaluation.gold", str(error)))
    raise_all(_each_once(problems))
    inputs = Inputs(demonstrations, preferences, probes, train, heldout, gold, ptx, report)
    if data.heldout is not None:
        inputs = _cut_heldout(inputs, data, stages)
    _report_seen_before(inputs)
    return inputs


def _sources_of_split(config: Config) -> set[str]:
    """The settings that `data.heldout` needs whatever the stage: all rows decide what is cut."""
    data = config.data
    if data.heldout is None:
        return set()
    given = {"data.prompts"} if data.prompts is not None else set()
    if data.preferences is not None and config.reward_model is not None:
        given.add("data.preferences")
    return given


def _cut_heldout(inputs: Inputs, data: DataConfig, stages: Sequence[str]) -> Inputs:
    """The inputs split by `data.heldout`; what no stage reads is left out again.

    Raises:
        UserError: nothing is left to train on, or nothing is held out.
    """
    amount, report = data.heldout or 0, inputs.report
    groups = {
        "data.demonstrations": Group(inputs.demonstrations, lambda row: row.prompt),
        "data.preferences": Group(inputs.preferences, lambda row: row.prompt),
        "data.prompts": Group(inputs.train_prompts, lambda row: row.text),
        "ptx.data": Group(inputs.ptx, lambda row: row.prompt),
    }
    kept, cut = split_groups(groups, amount, report, ("data.prompts", "data.preferences"))
    reads_pairs, reads_prompts = "reward_model" in stages, "ppo" in stages
    if not reads_pairs:
        report.forget("data.preferences", "data.heldout_preferences")
    if not reads_prompts:
        report.forget("data.prompts")
    if not reads_prompts and "evaluation" not in stages:
        report.forget("data.heldout_prompts")
        cut["data.prompts"] = []
    return replace(
        inputs,
        demonstrations=kept["data.demonstrations"],
        preferences=kept["data.preferences"] if reads_pairs else [],
        probes=cut["data.preferences"] if reads_pairs else [],
        train_prompts=kept["data.prompts"] if reads_prompts else [],
        heldout_prompts=cut["data.prompts"],
        ptx=kept["ptx.data"],
    )


def _each_once(problems: Sequence[tuple[str, str]]) -> list[str]:
    """What is wrong with one file for several settings, in one message that names them all."""
    settings: dict[str, list[str]] = {}
    for setting, text in problems:
        settings.setdefault(text.replace(f"({setting})", "({})"), []).append(setting)
    return [text.replace("({})", f"({', '.join(names)})") for text, names in settings.items()]


@dataclass(frozen=True)
class Checked:
    """What trying the data on the models has told."""

    inputs: Inputs  # without the prompts that a model cannot read
    sizes: dict[str, int]  # by setting: how many prompts are used
    policy: PretrainedConfig | None  # the model's configuration; None: not made yet
    longest_prompt: int  # tokens
    tokenizer: PreTrainedTokenizerBase  # the policy's


def check_inputs(config: Config, stages: Sequence[str], inputs: Inputs) -> Checked:
    """Try the data on the models and the gold scorer on silence; long rows go to the report.

    Raises:
        UserError: data and models do not go together; every problem in one message.
    """
    tokenizer, model = _policy_parts(config, stages, inputs)
    problems: list[str] = []
    problems += problem_of(lambda: check_stop_tokens(tokenizer, config.rollout.stop_tokens))
    asked = inputs.train_prompts + inputs.heldout_prompts
    problems += problem_of(lambda: check_reward(config, tokenizer, asked))
    raise_all(problems)
    problems += problem_of(lambda: _check_examples(config, tokenizer, model, inputs))
    fitted = []
    if any(inputs.prompts.values()):
        problems += problem_of(
            lambda: fitted.append(_fit_prompts(config, tokenizer, model, inputs))
        )
    raise_all(problems)
    longest = 0
    if fitted:
        inputs, longest = fitted[0]
    if "evaluation" in stages:
        problems += problem_of(lambda: check_models(config, tokenizer, inputs.heldout_prompts))
        judge = config.evaluation.judge
        if judge is not None and inputs.heldout_prompts:
            problems += problem_of(lambda: check_judge(judge, inputs.heldout_prompts[0]))
    gold = inputs.gold
    if gold is not None and inputs.heldout_prompts:
        problems += problem_of(lambda: gold.check(asked))
    raise_all(problems)
    sizes = {setting: len(prompts) for setting, prompts in inputs.prompts.items()}
    return Checked(inputs, sizes, model, longest, tokenizer)


def _policy_parts(
    config: Config, stages: Sequence[str], inputs: Inputs
) -> tuple[PreTrainedTokenizerBase, PretrainedConfig]:
    """Tokenizer and configuration of the policy: given, about to be made, or made before."""
    if config.policy.path is None and "sft" in stages:
        made, tokenizer = starting_point(config, inputs.demonstrations)
        return tokenizer, made.config
    path = config.policy.path or model_paths(config).reference
    return load_tokenizer(path, "policy.path"), load_model_config(path, "policy.path")


def _fit_prompts(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    model: PretrainedConfig,
    inputs: Inputs,
) -> tuple[Inputs, int]:
    """The inputs with those prompts that all models can read, and the longest one's tokens."""
    rules, report = config.data, inputs.report
    policy = policy_reader(config, tokenizer, model)
    scorers = scoring_readers(config, tokenizer, model)
    problems: list[str] = []
    fitted: dict[str, FittedPrompts] = {}
    for setting, items in inputs.prompts.items():

        def fit(setting: str = setting, items: Sequence[Prompt] = items) -> None:
            arguments = (policy, scorers, setting, rules.long_rows, report)
            fitted[setting] = fit_prompts(items, *arguments)

        problems += problem_of(fit) if items else []
    raise_all(problems)
    if tokenizer.chat_template is not None and rules.to_chat != "never":
        for setting, found in fitted.items():
            plain = [item.where for item in found.prompts if isinstance(item.text, str)]
            reason = (
                "a plain string, continued as it stands (data.to_chat = always makes it a message)"
            )
            report.add(setting, reason, plain, dropped=False)
    train, heldout = (
        fitted[setting].prompts if setting in fitted else []
        for setting in ("data.prompts", "data.heldout_prompts")
    )
    longest = max(found.longest for found in fitted.values())
    return replace(inputs, train_prompts=train, heldout_prompts=heldout), longest


def _check_examples(
    config: Config, policy: PreTrainedTokenizerBase, model: PretrainedConfig, inputs: Inputs
) -> None:
    """What is learnt from is short enough and readable, as its stage will encode it."""
    problems: list[str] = []
    rule, report = config.data.long_rows, inputs.report
    own = limits_of(model, policy_setting(config))

    def tried(fit: Callable[[], Fitted[T]]) -> Fitted[T] | None:
        found: list[Fitted[T]] = []

        def attempt() -> None:
            fitted = fit()
            fitted.report(report, refuse=rule == "refuse")
            found.append(fitted)

        problems.extend(problem_of(attempt))
        return found[0] if found else None

    def shown(
        items: list[Demonstration], setting: str, name: str, most: int
    ) -> Fitted[Example] | None:
        limit = LengthLimit(name, most, own.strict())
        return tried(partial(fit_demonstrations, items, policy, limit, setting, rule))

    fitted, settings = inputs.fitted, config.reward_model
    if config.sft is not None and inputs.demonstrations:
        arguments = ("data.demonstrations", "sft.max_tokens", config.sft.max_tokens)
        fitted.demonstrations = shown(inputs.demonstrations, *arguments)
    if config.ptx is not None and inputs.ptx:
        shown(inputs.ptx, "ptx.data", "ptx.max_tokens", config.ptx.max_tokens)
    if settings is not None and inputs.preferences:
        tokenizer, limits = policy, own
        if settings.init_from is not None:
            place = "reward_model.init_from"
            tokenizer = load_tokenizer(settings.init_from, place)
            limits = limits_of(load_model_config(settings.init_from, place), place)

        def compared(
            items: list[Preference], setting: str, name: str, most: int
        ) -> Fitted[Pair] | None:
            limit = LengthLimit(name, most, limits)
            return tried(partial(fit_pairs, items, tokenizer, limit, setting, rule))

        arguments = ("data.preferences", "reward_model.max_tokens", settings.max_tokens)
        fitted.pairs = compared(inputs.preferences, *arguments)
        if inputs.probes:
            source = trained_source(config.reward) or ModelSource()
            name = f"reward.sources[{source.name}].max_tokens"
            fitted.heldout_pairs = compared(
                inputs.probes, "data.heldout_preferences", name, source.max_tokens
            )
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
