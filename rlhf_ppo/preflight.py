"""What can be known of models and data before anything is written or trained.

A run of hours should not stop at its last stage for something that its first second could tell.
"""

from collections.abc import Sequence

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_ppo.config import Config
from rlhf_ppo.data.prompts import Prompt, check_room, encode_prompts
from rlhf_ppo.data.report import TooLong
from rlhf_ppo.data.template import Text, check_template
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.load import (
    check_same_vocabulary,
    check_stop_tokens,
    load_model_config,
    load_tokenizer,
)


def check_policy(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    model: PretrainedConfig | None,
    prompts: dict[str, Sequence[Prompt]],
    conversations: dict[str, Sequence[Text]],
) -> dict[str, list[TooLong]]:
    """Try texts on the policy's tokenizer and positions.

    Args:
        config: settings.
        tokenizer: of the policy.
        model: its configuration; None for an adapter, whose positions are checked later.
        prompts: by setting; those that responses are sampled for.
        conversations: by setting; demonstrations and preferences.

    Returns:
        By setting: the prompts that are too long.

    Raises:
        UserError: no chat template for messages, no room for a response, unknown stop tokens.
    """
    check_stop_tokens(tokenizer, config.rollout.stop_tokens)
    for setting, texts in conversations.items():
        check_template(tokenizer, texts, setting)
    long = {}
    for setting, items in prompts.items():
        if items:
            limit = config.data.max_prompt_tokens
            encoded, long[setting] = encode_prompts(items, tokenizer, limit, setting)
            if model is not None:
                check_room(encoded, model, config.rollout.max_new_tokens, setting)
    return long


def check_reward(
    config: Config, policy: PreTrainedTokenizerBase | None, prompts: Sequence[Prompt]
) -> None:
    """Try prompts on a reward model that is given.

    Raises:
        UserError: no tokenizer there, no chat template for messages, not one output, or a value
            model that would not read the policy's tokens.
    """
    path = config.reward.path
    if path is None:
        return
    tokenizer = load_tokenizer(path, "reward.path")
    model = load_model_config(path, "reward.path")
    if model is not None and model.num_labels != 1:
        raise UserError(
            f"reward.path: {path!r} has {model.num_labels} outputs; a reward model has one "
            "(num_labels = 1). Train one from it with the reward_model section."
        )
    check_template(tokenizer, [prompt.text for prompt in prompts], "reward.path")
    if config.value.model == "reward" and policy is not None:
        check_same_vocabulary(policy, tokenizer, path)
