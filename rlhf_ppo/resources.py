"""Whether the models, their optimizer and a step's work fit into the memory that is there."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peft import PeftConfig
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_ppo.config import Config, LoraConfig, ModelSource, leaves, trained_source
from rlhf_ppo.data.preferences import Demonstration, Preference
from rlhf_ppo.data.template import as_text, encode_conversation, joined
from rlhf_ppo.errors import UserError
from rlhf_ppo.inputs import Checked, Inputs
from rlhf_ppo.models.load import load_model_config, load_tokenizer
from rlhf_ppo.models.lora import base_path, is_adapter, peft_config, read_adapter
from rlhf_ppo.models.shared import same_model
from rlhf_ppo.plan import Plan, stage_micro_batch
from rlhf_ppo.training.distributed import Processes
from rlhf_ppo.training.live_bytes import gib
from rlhf_ppo.training.memory import (
    Forecast,
    Work,
    forecast_evaluation,
    forecast_ppo,
    forecast_supervised,
)
from rlhf_ppo.training.shapes import RewardShape

TRIED = 8  # texts that are tokenized to find the longest; they have the most characters


@dataclass(frozen=True)
class NoForecast:
    """A stage whose memory cannot be foretold."""

    stage: str
    models: str  # model types
    reason: str

    def __str__(self) -> str:
        return f"memory of {self.stage}: cannot be forecast for {self.models} ({self.reason})"


def plan_memory(
    config: Config,
    stages: Sequence[str],
    inputs: Inputs,
    checked: Checked,
    plan: Plan | None,
    processes: Processes,
) -> list[Forecast | NoForecast]:
    """What each stage will take on this process, see `training/memory.py`.

    Args:
        config: settings.
        stages: of the run.
        inputs: its data.
        checked: the policy's configuration and tokenizer, and the longest prompt.
        plan: sizes of the run; None: PPO is not among the stages.
        processes: the device, and what autocast computes in.

    Raises:
        UserError: a reward model has no configuration, or the roles do not go together.
    """
    policy = checked.policy
    if policy is None:
        return []
    work = Work(
        responses=config.rollout.generation_batch_size
        if plan is None
        else plan.responses_per_process,
        prompt_tokens=checked.longest_prompt,
        device=processes.device.type,
        precision=processes.precision,
    )
    shapes = reward_shapes(config, policy)

    def supervised(stage: str) -> Forecast:
        return _supervised(config, stage, policy, inputs, checked.tokenizer, work, processes.world)

    ways: dict[str, Callable[[], Forecast]] = {
        "sft": lambda: supervised("sft"),
        "reward_model": lambda: supervised("reward_model"),
        "ppo": lambda: forecast_ppo(config, policy, shapes, work, _start(config)),
        "evaluation": lambda: forecast_evaluation(config, policy, shapes, work),
    }
    names = dict.fromkeys([policy.model_type, *(each.config.model_type for each in shapes)])
    found: list[Forecast | NoForecast] = []
    for stage in stages:
        try:
            found.append(ways[stage]())
        except UserError:
            raise
        except Exception as error:  # of any model's own code, on tensors without data
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"[:160]
            found.append(NoForecast(stage, ", ".join(names), reason))
    return found


def check_memory(config: Config, found: Sequence[Forecast | NoForecast], sharers: int) -> None:
    """Refuse a run that cannot fit.

    Args:
        config: settings, for the remedies.
        found: each stage's, of one process.
        sharers: processes that share the device's memory.

    Raises:
        UserError: a stage needs more than there is; says how much, and what would help.
    """
    for each in found:
        if isinstance(each, NoForecast) or each.available is None:
            continue
        # The processes are all there by now: what they hold is not among what is free.
        if each.needed * sharers <= each.available:
            continue
        times = f"{sharers} processes x " if sharers > 1 else ""
        listed = "\n".join(f"  - {way}" for way in remedies(config, each))
        raise UserError(
            f"{NAMES.get(each.stage, each.stage)} needs {times}{gib(each.needed)} of memory at its "
            f"peak, in the phase {each.largest!r}, and there are {gib(each.available)}. What takes "
            f"less:\n{listed}"
        )


NAMES = {"ppo": "PPO", "reward_model": "the stage reward_model", "sft": "the stage sft"}


def remedies(config: Config, found: Forecast) -> list[str]:
    """Settings that would take less, the strongest for this run first."""
    if found.stage in ("sft", "reward_model"):
        return _supervised_remedies(config, found)
    ways = []
    if config.lora is None and found.stage == "ppo":
        saved = found.roles["reference"] + found.roles["optimizer"]
        ways.append(f"a `lora` section (about {gib(saved)} less, and most gradients)")
    if found.largest == "update" and not config.policy.gradient_checkpointing:
        ways.append("policy.gradient_checkpointing: true")
    if found.largest == "update":
        ways.append("a lower ppo.micro_batch_tokens")
    elif found.largest == "judge":
        ways.append("lower ppo.judge_batch_tokens and batch_tokens of the reward models")
    else:
        ways.append("a lower rollout.generation_batch_size or rollout.max_new_tokens")
    sources = [leaf for _, leaf in leaves(config.reward.sources) if isinstance(leaf, ModelSource)]
    if any(leaf.dtype == "float32" for leaf in sources):
        ways.append("dtype: bfloat16 for the reward models")
    return ways


def _supervised_remedies(config: Config, found: Forecast) -> list[str]:
    ways = [] if config.lora is not None else ["a `lora` section"]
    if not config.policy.gradient_checkpointing:
        ways.append("policy.gradient_checkpointing: true")
    return [*ways, f"a lower {found.stage}.micro_batch_size or {found.stage}.max_tokens"]


def _supervised(
    config: Config,
    stage: str,
    policy: PretrainedConfig,
    inputs: Inputs,
    tokenizer: PreTrainedTokenizerBase,
    work: Work,
    world: int,
) -> Forecast:
    """The forecast of TRL's stages: the longest examples in one micro-batch."""
    if stage == "sft":
        assert config.sft is not None
        rows = stage_micro_batch(config.sft, stage, world)
        tokens = _longest(tokenizer, inputs.demonstrations, config.sft.max_tokens)
        shape = RewardShape(policy, config.policy.dtype)
        return forecast_supervised(config, stage, shape, rows, tokens, work)
    settings = config.reward_model
    assert settings is not None
    start = copy.deepcopy(policy)
    if settings.init_from is not None:
        start = load_model_config(settings.init_from, "reward_model.init_from")
        tokenizer = load_tokenizer(settings.init_from, "reward_model.init_from")
    start.num_labels = 1
    tokens = _longest(tokenizer, inputs.preferences, settings.max_tokens)
    dtype = (trained_source(config.reward) or ModelSource()).dtype
    rows = 2 * stage_micro_batch(settings, stage, world)  # both sides of each pair
    return forecast_supervised(config, stage, RewardShape(start, dtype), rows, tokens, work)


def _longest(
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Demonstration] | Sequence[Preference],
    most: int,
) -> int:
    """Tokens of the longest conversation that is not dropped, by those with the most characters."""
    pairs = [pair for item in items for pair in item.conversations]
    pairs.sort(key=lambda pair: -len(as_text(joined(*pair))))
    lengths = [len(encode_conversation(tokenizer, *pair)) for pair in pairs[:TRIED]]
    return min(most, max(lengths, default=most))


def reward_shapes(config: Config, policy: PretrainedConfig) -> list[RewardShape]:
    """The shape of each; one that the run will train has the policy's."""
    found = []
    for name, leaf in leaves(config.reward.sources):
        if isinstance(leaf, ModelSource):
            setting = f"reward.sources[{name}].path"
            own = None if leaf.path is None else load_model_config(leaf.path, setting)
            shape = copy.deepcopy(policy if own is None else own)
            if own is None:
                shape.num_labels = 1
            adapter = _adapter_on_base(config, leaf, setting)
            found.append(RewardShape(shape, leaf.dtype, adapter))
    return found


def _adapter_on_base(config: Config, leaf: ModelSource, setting: str) -> PeftConfig | None:
    """The adapter of a reward model that will stand on the policy's base, as `SharedBase` decides.

    None: it will be a whole model of its own.
    """
    one_base = config.lora is not None and config.policy.quantization is None
    if not one_base or config.value.model == "reward" or leaf.dtype != config.policy.dtype:
        return None
    if leaf.path is None:  # about to be trained, from the policy's start unless another is given
        made = config.reward_model
        alike = made is not None and made.save == "adapter" and made.init_from is None
        return peft_config(config.lora or LoraConfig(), "SEQ_CLS") if alike else None
    start = config.policy.path
    if start is None or not is_adapter(leaf.path):
        return None
    base = base_path(start, "policy.path")
    same = same_model(base_path(leaf.path, setting), base)
    return read_adapter(leaf.path, setting) if same else None


def _start(config: Config) -> PeftConfig | None:
    """The adapter that a LoRA run goes on with."""
    path = config.policy.path
    wanted = path is not None and config.lora is not None and config.sft is None
    return read_adapter(str(path), "policy.path") if wanted and is_adapter(str(path)) else None
