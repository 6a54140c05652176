"""Whether the models, their optimizer and a step's work fit into the memory that is there."""

import copy

from peft import PeftConfig
from transformers import PretrainedConfig

from rlhf_ppo.config import Config, LoraConfig, ModelSource, leaves
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.load import load_model_config
from rlhf_ppo.models.lora import base_path, is_adapter, peft_config, read_adapter
from rlhf_ppo.models.shared import same_model
from rlhf_ppo.plan import Plan
from rlhf_ppo.training.distributed import Processes
from rlhf_ppo.training.memory import Forecast, RewardShape, Work, forecast, gib, remedies


def plan_memory(
    config: Config, policy: PretrainedConfig, prompt_tokens: int, plan: Plan, processes: Processes
) -> Forecast:
    """What PPO will take on this process, see `training/memory.py`.

    Args:
        config: settings.
        policy: configuration of the policy's model.
        prompt_tokens: of the longest prompt.
        plan: sizes of the run.
        processes: the device, and what autocast computes in.

    Raises:
        UserError: a reward model has no configuration.
    """
    work = Work(
        responses=plan.responses_per_process,
        prompt_tokens=prompt_tokens,
        device=processes.device.type,
        precision=processes.precision,
    )
    return forecast(config, policy, reward_shapes(config, policy), work, _start(config))


def check_memory(config: Config, found: Forecast, sharers: int) -> None:
    """Refuse a run that cannot fit.

    Args:
        config: settings, for the remedies.
        found: of one process.
        sharers: processes that share the device's memory.

    Raises:
        UserError: it needs more than there is; says how much, and what would help.
    """
    if found.available is None or found.peak * sharers <= found.available:
        return
    each = f"{sharers} processes x " if sharers > 1 else ""
    listed = "\n".join(f"  - {way}" for way in remedies(config, found))
    raise UserError(
        f"PPO needs {each}{gib(found.peak)} of memory at its peak, in the phase "
        f"{found.largest!r}, and there are {gib(found.available)}. What takes less:\n{listed}"
    )


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
