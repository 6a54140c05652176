"""Tokenizers and models from folders or hub ids, ready for PPO: dropout off, pad token known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl.trainer.reward_trainer import suppress_seqcls_warning

from rlhf_ppo.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_tokenizer(path: str, setting: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer; one without a pad token pads with its end token.

    That is safe here: masks are made from lengths, never from `ids != pad`.

    Raises:
        UserError: nothing to load at `path`, or neither pad nor end token.
    """
    check_model_path(path, setting)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{setting}: cannot load a tokenizer from {path!r}: {_first_line(error)}"
        ) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"{setting}: the tokenizer of {path!r} has neither a pad nor an end token; set "
                "eos_token in its tokenizer_config.json."
            )
        tokenizer.pad_token_id = tokenizer.eos_token_id
    return tokenizer


def load_model_config(path: str, setting: str) -> PretrainedConfig | None:
    """A model's own configuration; None for an adapter folder, which points to its base.

    Raises:
        UserError: nothing to load at `path`.
    """
    if not (Path(path) / "config.json").is_file() and Path(path).is_dir():
        return None
    try:
        found: PretrainedConfig = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{setting}: cannot load the model configuration of {path!r}: {_first_line(error)}"
        ) from error
    return found


def load_causal_lm(path: str, dtype: str, setting: str) -> PreTrainedModel:
    """Load a causal language model; a LoRA adapter folder is merged into its base.

    Merging makes the adapter's model the starting point, so that the reference of a run that
    starts from a trained adapter is that model and not the bare base.

    Raises:
        UserError: nothing to load at `path`, or not a causal language model.
    """
    check_model_path(path, setting)
    try:
        if (Path(path) / "adapter_config.json").is_file():
            from peft import AutoPeftModelForCausalLM

            adapted: Any = AutoPeftModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype])
            model: PreTrainedModel = adapted.merge_and_unload()
        else:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype])
    except (OSError, ValueError) as error:
        raise UserError(
            f"{setting}: cannot load a causal language model from {path!r}: {_first_line(error)}"
        ) from error
    disable_dropout(model)
    return model


def load_classifier(
    path: str, dtype: str, setting: str, *, new_head: bool = False
) -> PreTrainedModel:
    """Load a sequence-classification model.

    Args:
        path: folder or hub id.
        dtype: of the weights.
        setting: for messages.
        new_head: True when a head of one output is about to be trained; otherwise the file must
            hold it.

    Raises:
        UserError: nothing to load, or no trained head.
    """
    check_model_path(path, setting)
    try:
        with suppress_seqcls_warning():
            model: PreTrainedModel
            info: dict[str, Any]
            model, info = AutoModelForSequenceClassification.from_pretrained(
                path,
                dtype=DTYPES[dtype],
                output_loading_info=True,
                **({"num_labels": 1} if new_head else {}),
            )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{setting}: cannot load a reward model from {path!r}: {_first_line(error)}"
        ) from error
    if not new_head and info["missing_keys"]:
        raise UserError(
            f"{setting}: {path!r} lacks the weights {sorted(info['missing_keys'])}; it is not a "
            "trained reward model. Train one from it with the reward_model section."
        )
    disable_dropout(model)
    return model


def check_model_path(path: str, setting: str) -> None:
    """A local folder must exist and hold a config.

    Raises:
        UserError: `path` looks like a folder that is not there, or holds no model.
    """
    folder = Path(path)
    if folder.is_dir():
        if not any((folder / n).is_file() for n in ("config.json", "adapter_config.json")):
            raise UserError(f"{setting}: {path} holds no config.json; it is not a model folder.")
    elif path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"{setting}: no such model folder: {path}. Give a folder or a hub id.")


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout of a model to 0: with dropout on, the ratio is not 1 at the first step."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for name in ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob"):
        for module in model.modules():
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
        if hasattr(getattr(model, "config", None), name):
            setattr(model.config, name, 0.0)


def stop_token_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, extra: tuple[str, ...]
) -> tuple[int, ...]:
    """Ids that end a response: the generation config's, the tokenizer's, and `extra`.

    Raises:
        UserError: one of `extra` is not a single token, or there is no stop token at all.
    """
    configured = model.generation_config.eos_token_id if model.generation_config else None
    if configured is None:
        configured = []
    ids = set(configured if isinstance(configured, list) else [configured])
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    check_stop_tokens(tokenizer, extra)
    ids |= {tokenizer.get_vocab()[token] for token in extra}
    if not ids:
        raise UserError("rollout.stop_tokens: the model names no stop token; give one here.")
    return tuple(sorted(ids))


def check_stop_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Every stop token must be one token of the vocabulary.

    Raises:
        UserError: names the first that is not.
    """
    vocabulary = tokenizer.get_vocab()
    for token in tokens:
        if token not in vocabulary:
            raise UserError(
                f"rollout.stop_tokens: {token!r} is not a token of {tokenizer.name_or_path!r}."
            )


def check_same_vocabulary(
    policy: PreTrainedTokenizerBase, reward: PreTrainedTokenizerBase, path: str
) -> None:
    """A value model that starts from the reward model reads the policy's tokens.

    Raises:
        UserError: the two vocabularies differ.
    """
    if policy.get_vocab() != reward.get_vocab():
        raise UserError(
            f"value.model = reward: the reward model {path!r} has another vocabulary than the "
            "policy, so it cannot read the policy's tokens. Use value.model shared or policy."
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
