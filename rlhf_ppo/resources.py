"""Whether the models, their optimizer and a step's work fit into the memory that is there."""

import copy

from transformers import PretrainedConfig

from rlhf_ppo.config import Config, ModelSource, leaves
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.load import load_model_config
from rlhf_ppo.plan import Plan
from rlhf_ppo.training.distributed import Processes
from rlhf_ppo.training.memory import Forecast, Work, forecast, gib, remedies

Architectures = list[tuple[PretrainedConfig, str]]


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
    return forecast(config, policy, _reward_models(config, policy), work)


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


def _reward_models(config: Config, policy: PretrainedConfig) -> Architectures:
    """Configuration and dtype of each; one that the run will train has the policy's shape."""
    found: Architectures = []
    for name, leaf in leaves(config.reward.sources):
        if isinstance(leaf, ModelSource):
            setting = f"reward.sources[{name}].path"
            own = None if leaf.path is None else load_model_config(leaf.path, setting)
            shape = copy.deepcopy(policy if own is None else own)
            if own is None:
                shape.num_labels = 1
            found.append((shape, leaf.dtype))
    return found
