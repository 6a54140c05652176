"""Every setting of a run: typed, frozen, validated, documented.

Nothing derived lives here (see `plan.py`) and nothing is ever written back. The docstring below
each field is its documentation: `--help`, error messages and the docs are made from it.
"""

from pydantic import model_validator

from rlhf_ppo.config.base import Place, Seed, Settings
from rlhf_ppo.config.evaluation import EvaluationConfig, JudgeConfig
from rlhf_ppo.config.method import AdvantageConfig, KlConfig, PpoConfig, PtxConfig, RolloutConfig
from rlhf_ppo.config.models import LoraConfig, PolicyConfig, ScratchConfig, ValueConfig
from rlhf_ppo.config.rewards import (
    EnsembleSource,
    FunctionSource,
    HttpSource,
    Leaf,
    ModelSource,
    RewardConfig,
    correctness_source,
    leaves,
    trained_source,
)
from rlhf_ppo.config.rules import contradictions
from rlhf_ppo.config.run import (
    CheckpointConfig,
    DataConfig,
    GuardConfig,
    HardwareConfig,
    LoggingConfig,
)
from rlhf_ppo.config.stages import RewardModelConfig, SupervisedConfig

__all__ = [
    "AdvantageConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EnsembleSource",
    "EvaluationConfig",
    "FunctionSource",
    "GuardConfig",
    "HardwareConfig",
    "HttpSource",
    "JudgeConfig",
    "KlConfig",
    "Leaf",
    "LoggingConfig",
    "LoraConfig",
    "ModelSource",
    "PolicyConfig",
    "PpoConfig",
    "PtxConfig",
    "RewardConfig",
    "RewardModelConfig",
    "RolloutConfig",
    "ScratchConfig",
    "Settings",
    "SupervisedConfig",
    "ValueConfig",
    "correctness_source",
    "leaves",
    "trained_source",
]


class Config(Settings):
    """All settings of one run: supervised model, reward model, PPO, evaluation."""

    seed: Seed = 1
    """Source of all randomness; the same seed and settings give the same run."""
    output_dir: Place
    """Folder that the run writes to; must be new or empty unless `resume` is set."""
    resume: bool = False
    """Go on with the run in `output_dir`: finished stages are kept, PPO continues."""
    data: DataConfig = DataConfig()
    policy: PolicyConfig = PolicyConfig()
    lora: LoraConfig | None = None
    value: ValueConfig = ValueConfig()
    reward: RewardConfig = RewardConfig()
    sft: SupervisedConfig | None = None
    reward_model: RewardModelConfig | None = None
    rollout: RolloutConfig = RolloutConfig()
    ppo: PpoConfig = PpoConfig()
    ptx: PtxConfig | None = None
    advantage: AdvantageConfig = AdvantageConfig()
    kl: KlConfig = KlConfig()
    guard: GuardConfig = GuardConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()
    hardware: HardwareConfig = HardwareConfig()

    @model_validator(mode="after")
    def _settings_agree(self) -> "Config":
        problems = list(contradictions(self))
        if problems:
            raise ValueError("\n".join(problems))  # one a line: `command_line.py` takes them apart
        return self
