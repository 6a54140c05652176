"""Tokenizers and models from folders or hub ids, ready for PPO: dropout off, pad token known.

Every role loads here: policy, reference, starts of the other stages, reward models, the other
models of the evaluation and of a chat. A model is loaded whole, or not at all (`matching.py`).
"""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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

from rlhf_ppo.errors import UserError
from rlhf_ppo.models.adapters import attach_adapter, check_mergeable, merge_adapter
from rlhf_ppo.models.dropout import disable_dropout
from rlhf_ppo.models.files import (
    ADAPTER_WEIGHTS,
    TOKENIZER_FILES,
    WEIGHTS,
    is_adapter,
    loading,
    stored_shapes,
)
from rlhf_ppo.models.find import check_model_path, is_here
from rlhf_ppo.models.lora import base_path, read_adapter
from rlhf_ppo.models.matching import COMPUTED, Differences, check_match
from rlhf_ppo.seeds import derive_seed, drawing

WEIGHT_FILES = ("config.json", "generation_config.json", *WEIGHTS)
# The last layer of a classification head in an adapter, by the names that Transformers gives it.
HEAD = re.compile(r"(^|\.)(score|classifier)(\.(out_proj|dense2|out))?\.weight$")
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
    with loading("a tokenizer", path, setting, TOKENIZER_FILES):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
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
    check_model_path(path, setting)
    base = base_path(path, setting)
    with loading("the model configuration", base, setting, ["config.json"]):
        found: PretrainedConfig = AutoConfig.from_pretrained(base, trust_remote_code=False)
    return found


def load_causal_lm(
    path: str,
    dtype: str,
    setting: str,
    *,
    keep_adapter: bool = False,
    quantization: str | None = None,
    device: torch.device | None = None,
    allow: Sequence[str] = (),
    seed: int = 0,
) -> PreTrainedModel:
    """Load a causal language model, or the base of an adapter folder with the adapter.

    Args:
        path: folder or hub id.
        dtype: of the weights.
        setting: for messages.
        keep_adapter: leave an adapter apart, to be trained on; otherwise it is merged.
        quantization: `4bit`, or None; an adapter on such a base is never merged.
        device: where a quantised model is loaded to.
        allow: patterns of tensors in which file and model may differ (`allow_unmatched`).
        seed: of the weights that are not in the file, if that is allowed.

    Raises:
        UserError: nothing to load at `path`, not a causal language model, or not all of it.
    """
    options: dict[str, Any] = {"dtype": DTYPES[dtype]}
    if quantization is not None:
        options |= {"quantization_config": four_bits(dtype), "device_map": {"": device}}
    with drawing(derive_seed(seed, "weights that are not in the file", setting)):
        model = _causal_lm(path, setting, allow, options, trained=keep_adapter)
    if is_adapter(path) and not keep_adapter and quantization is None:
        model = merge_adapter(model, path, setting)
    disable_dropout(model)
    loaded: PreTrainedModel = model
    return loaded


def check_causal_lm(
    path: str, setting: str, allow: Sequence[str] = (), *, merged: bool = True
) -> None:
    """What `load_causal_lm` would refuse, from the headers of the files: no weight is read.

    A hub model that is not in the local cache is left to the load itself.

    Args:
        path: folder or hub id.
        setting: for messages.
        allow: as of `load_causal_lm`.
        merged: an adapter will be merged, now or by a later load.

    Raises:
        UserError: as `load_causal_lm`.
    """
    check_model_path(path, setting)
    if is_here(base_path(path, setting), setting):
        model = _causal_lm(path, setting, allow, {"device_map": {"": "meta"}}, trained=False)
        if is_adapter(path) and merged:
            check_mergeable(model, path, setting)


def _causal_lm(
    path: str, setting: str, allow: Sequence[str], options: dict[str, Any], *, trained: bool
) -> Any:
    """The model as it is in the file, an adapter beside its base."""
    check_model_path(path, setting)
    base = base_path(path, setting)
    model, found = _from_file(
        AutoModelForCausalLM, "a causal language model", base, setting, options
    )
    remedy = (
        "it is no complete causal language model: choose another, or name the tensors in "
        "allow_unmatched (docs/models.md)."
    )
    check_match(found.without(allow), base, setting, remedy)
    if not is_adapter(path):
        return model
    with loading("the generation settings", path, setting, ["generation_config.json"]):
        if (Path(path) / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(path)
    adapted, found = attach_adapter(model, path, setting, trained=trained)
    check_match(found.without(allow), path, setting, "it does not fit its base.")
    return adapted


def _from_file(
    kind: Any, what: str, base: str, setting: str, options: dict[str, Any]
) -> tuple[Any, Differences]:
    """A model by one of Transformers' Auto classes, and in what its file differs from it."""
    with loading(what, base, setting, WEIGHT_FILES):
        model, info = kind.from_pretrained(
            base,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in `info`, and refused by name
            trust_remote_code=False,  # None would ask on the terminal
            **options,
        )
    mismatched = [(name, tuple(a), tuple(b)) for name, a, b in info["mismatched_keys"]]
    if info.get("error_msgs"):
        raise UserError(f"{setting}: cannot load {what} from {base!r}: {info['error_msgs'][0]}")
    unexpected = [name for name in info["unexpected_keys"] if not COMPUTED.search(name)]
    return model, Differences(sorted(info["missing_keys"]), sorted(unexpected), mismatched)


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
    path: str,
    dtype: str,
    setting: str,
    *,
    new_head: bool = False,
    allow: Sequence[str] = (),
    seed: int = 0,
) -> PreTrainedModel:
    """Load a sequence-classification model, or the base of an adapter folder with it merged in.

    Args:
        path: folder or hub id.
        dtype: of the weights.
        setting: for messages.
        new_head: True when the head, of one output, is about to be trained: that of the file if
            it has one output, else one drawn at random. Otherwise it must be in the file, and the
            model is frozen.
        allow: patterns of tensors in which file and model may differ (`allow_unmatched`).
        seed: of the new head, and of weights that are not in the file, if that is allowed.

    Raises:
        UserError: nothing to load, not all of it, or no trained head.
    """
    with drawing(seed):
        model = _classifier(path, setting, allow, {"dtype": DTYPES[dtype]}, new_head=new_head)
    if is_adapter(path):
        model = merge_adapter(model, path, setting)
    disable_dropout(model)
    found: PreTrainedModel = model if new_head else model.eval().requires_grad_(False)
    return found


def check_classifier(
    path: str, setting: str, allow: Sequence[str] = (), *, new_head: bool = False
) -> None:
    """What `load_classifier` would refuse, from the headers of the files: no weight is read.

    A hub model that is not in the local cache is left to the load itself.

    Raises:
        UserError: as `load_classifier`.
    """
    check_model_path(path, setting)
    if is_here(base_path(path, setting), setting):
        options = {"device_map": {"": "meta"}}
        model = _classifier(path, setting, allow, options, new_head=new_head)
        if is_adapter(path):
            check_mergeable(model, path, setting)


def _classifier(
    path: str, setting: str, allow: Sequence[str], options: dict[str, Any], *, new_head: bool
) -> Any:
    """The model as it is in the file, an adapter beside its base."""
    check_model_path(path, setting)
    base = base_path(path, setting)
    outputs = 1 if new_head else (adapter_outputs(path, setting) if is_adapter(path) else None)
    if outputs is not None:
        options = options | {"num_labels": outputs}
    model, found = _from_file(
        AutoModelForSequenceClassification, "a reward model", base, setting, options
    )
    remedy = (
        "it is not a trained reward model. Train one from it with the reward_model section, or "
        "name the tensors in allow_unmatched (docs/models.md)."
    )
    if new_head:
        found = found.without(found.outside(model.base_model_prefix))
    elif is_adapter(path):  # it brings its head along
        heads = found.outside(model.base_model_prefix)
        brought = [name.removeprefix("base_model.model.") for name in stored_shapes(path)]
        lost = [name for name in found.missing if name in heads and name not in brought]
        check_match(Differences(lost).without(allow), path, setting, f"nor has its base. {remedy}")
        found = found.without(heads)
    check_match(found.without(allow), base, setting, remedy)
    if not is_adapter(path):
        return model
    # It may be a policy's, whose wrapper would look for `generate`.
    adapted, found = attach_adapter(model, path, setting, trained=False, any_task=new_head)
    if new_head:
        found = found.without(found.outside(model.base_model_prefix))
    check_match(found.without(allow), path, setting, "it does not fit its base.")
    return adapted


def adapter_outputs(path: str, setting: str) -> int:
    """How many outputs the head in an adapter folder has.

    Raises:
        UserError: no head, so it is no adapter of a reward model.
    """
    with loading("the adapter", path, setting, ADAPTER_WEIGHTS):
        shapes = stored_shapes(path)
    heads = [shape[0] for name, shape in shapes.items() if HEAD.search(name)]
    if not heads:
        raise UserError(
            f"{setting}: the adapter {path!r} (task {read_adapter(path, setting).task_type}) holds "
            "no score head; it is not a trained reward model. Train one with the reward_model "
            "section."
        )
    return heads[-1]


def read_head(path: str) -> dict[str, torch.Tensor] | None:
    """Weight (L, H) and perhaps bias (L,) of a linear score head in an adapter folder.

    None: it has none, or one of several layers.
    """
    file = Path(path) / ADAPTER_WEIGHTS[0]
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as stored:
        head = {
            key.rpartition(".")[2]: stored.get_tensor(key)
            for key in stored.keys()  # noqa: SIM118  # not a dictionary
            if key.split(".")[-2] in ("score", "classifier")
        }
    return head if "weight" in head else None


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
