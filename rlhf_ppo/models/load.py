"""Tokenizers and models from folders or hub ids, ready for PPO: dropout off, pad token known."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl.trainer.reward_trainer import suppress_seqcls_warning

from rlhf_ppo.errors import UserError
from rlhf_ppo.models.dropout import disable_dropout
from rlhf_ppo.models.lora import base_path, is_adapter, read_adapter

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_tokenizer(path: str, setting: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer; one without a pad token pads with its end token.

    That is safe here: masks are made from lengths, never from `ids != pad`. An adapter folder
    without a tokenizer has that of its base.

    Raises:
        UserError: nothing to load at `path`, or neither pad nor end token.
    """
    check_model_path(path, setting)
    if is_adapter(path) and not (Path(path) / "tokenizer_config.json").is_file():
        path = base_path(path, setting)
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


def load_model_config(path: str, setting: str) -> PretrainedConfig:
    """A model's own configuration; of an adapter folder, that of its base.

    Raises:
        UserError: nothing to load at `path`.
    """
    try:
        found: PretrainedConfig = AutoConfig.from_pretrained(base_path(path, setting))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{setting}: cannot load the model configuration of {path!r}: {_first_line(error)}"
        ) from error
    return found


def load_causal_lm(
    path: str,
    dtype: str,
    setting: str,
    *,
    keep_adapter: bool = False,
    quantization: str | None = None,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Load a causal language model, or the base of an adapter folder with the adapter.

    Args:
        path: folder or hub id.
        dtype: of the weights.
        setting: for messages.
        keep_adapter: leave an adapter apart, to be trained on; otherwise it is merged.
        quantization: `4bit`, or None; an adapter on such a base is never merged.
        device: where a quantised model is loaded to.

    Raises:
        UserError: nothing to load at `path`, or not a causal language model.
    """
    check_model_path(path, setting)
    base = base_path(path, setting)
    options: dict[str, Any] = {"dtype": DTYPES[dtype]}
    if quantization is not None:
        options |= {"quantization_config": four_bits(dtype), "device_map": {"": device}}
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(base, **options)
        if is_adapter(path):
            if (Path(path) / "generation_config.json").is_file():
                model.generation_config = GenerationConfig.from_pretrained(path)
            model = peft.PeftModel.from_pretrained(model, path, is_trainable=keep_adapter)
            if not keep_adapter and quantization is None:
                model = model.merge_and_unload().requires_grad_(True)  # PEFT froze its base
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{setting}: cannot load a causal language model from {path!r}: {_first_line(error)}"
        ) from error
    disable_dropout(model)
    found: PreTrainedModel = model
    return found


def four_bits(dtype: str) -> BitsAndBytesConfig:
    """NF4 with double quantisation (Dettmers et al. 2023), computing in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[dtype],
    )


def check_installed(package: str, setting: str) -> None:
    """An extra is there.

    Raises:
        UserError: it is not; says how to get it.
    """
    if find_spec(package) is None:
        raise UserError(
            f"{setting} needs the package {package}, which is not installed here. Install it (pip "
            f"install {package}), or take the default."
        )


def load_classifier(
    path: str, dtype: str, setting: str, *, new_head: bool = False
) -> PreTrainedModel:
    """Load a sequence-classification model, or the base of an adapter folder with it merged in.

    Args:
        path: folder or hub id.
        dtype: of the weights.
        setting: for messages.
        new_head: True when the head, of one output, is about to be trained; otherwise it must be
            in the file, and the model is frozen.

    Raises:
        UserError: nothing to load, or no trained head.
    """
    check_model_path(path, setting)
    outputs = 1 if new_head else (adapter_outputs(path, setting) if is_adapter(path) else None)
    try:
        with suppress_seqcls_warning():
            model: Any
            info: dict[str, Any]
            model, info = AutoModelForSequenceClassification.from_pretrained(
                base_path(path, setting),
                dtype=DTYPES[dtype],
                output_loading_info=True,
                **({} if outputs is None else {"num_labels": outputs}),
            )
        if is_adapter(path):
            settings = read_adapter(path, setting)
            if new_head:  # it may be a policy's, and its wrapper would look for `generate`
                settings.task_type = None
            adapted: Any = peft.PeftModel.from_pretrained(model, path, config=settings)
            model, info = adapted.merge_and_unload().requires_grad_(True), {"missing_keys": []}
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{setting}: cannot load a reward model from {path!r}: {_first_line(error)}"
        ) from error
    if not new_head and info["missing_keys"]:
        raise UserError(
            f"{setting}: {path!r} lacks the weights {sorted(info['missing_keys'])}; it is not a "
            "trained reward model. Train one from it with the reward_model section."
        )
    disable_dropout(model)
    found: PreTrainedModel = model if new_head else model.eval().requires_grad_(False)
    return found


def adapter_outputs(path: str, setting: str) -> int:
    """How many outputs the head in an adapter folder has.

    Raises:
        UserError: no head, so it is no adapter of a reward model.
    """
    head = read_head(path)
    if head is None:
        raise UserError(
            f"{setting}: the adapter {path!r} (task {read_adapter(path, setting).task_type}) holds "
            "no score head; it is not a trained reward model. Train one with the reward_model "
            "section."
        )
    return len(head["weight"])


def read_head(path: str) -> dict[str, torch.Tensor] | None:
    """Weight (L, H) and perhaps bias (L,) of the score head in an adapter folder."""
    file = Path(path) / "adapter_model.safetensors"
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as stored:
        head = {
            key.rpartition(".")[2]: stored.get_tensor(key)
            for key in stored.keys()  # noqa: SIM118  # not a dictionary
            if key.split(".")[-2] in ("score", "classifier")
        }
    return head or None


def check_model_path(path: str, setting: str) -> None:
    """A local folder must exist and hold a config.

    Raises:
        UserError: `path`, or the base of an adapter there, looks like a folder that is not there,
            or holds no model.
    """
    folder = Path(path)
    if is_adapter(path):
        check_model_path(base_path(path, setting), f"{setting}, base of {path}")
    elif folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{setting}: {path} holds no config.json; it is not a model folder.")
    elif path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"{setting}: no such model folder: {path}. Give a folder or a hub id.")


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
