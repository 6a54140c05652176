"""Prompts to train and to evaluate on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_ppo.data.loading import Row, raise_problems, read_rows
from rlhf_ppo.data.template import Text, check_template, check_text, encode_prompt
from rlhf_ppo.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """What the user said, and whatever else its row holds for the reward function."""

    row: int  # place in the data set; the sampling noise hangs on it
    where: str
    text: Text
    columns: dict[str, Any]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt and its token ids under the policy's tokenizer."""

    prompt: Prompt
    ids: tuple[int, ...]


def read_prompts(source: str, setting: str) -> list[Prompt]:
    """Read and check prompts: rows with `prompt`, a string or chat messages ending with the user.

    Raises:
        UserError: missing source, no rows, or broken rows, each named.
    """
    prompts, problems = [], []
    for index, row in enumerate(read_rows(source, setting)):
        problem = _check(row)
        if problem is not None:
            problems.append(f"{row.where}: {problem}")
            continue
        columns = {key: value for key, value in row.values.items() if key != "prompt"}
        prompts.append(Prompt(index, row.where, row.values["prompt"], columns))
    raise_problems(problems, f"Mend or remove these rows. ({setting})")
    return prompts


def check_no_overlap(train: Sequence[Prompt], heldout: Sequence[Prompt]) -> None:
    """Held-out prompts must not be trained on.

    Raises:
        UserError: a prompt stands in both sets; names the places.
    """
    places = {_key(prompt): prompt.where for prompt in train}
    shared = [
        f"{prompt.where} is the same prompt as {places[_key(prompt)]}"
        for prompt in heldout
        if _key(prompt) in places
    ]
    raise_problems(
        shared, "Held-out prompts must not be trained on: remove them from one of the two files."
    )


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, max_tokens: int, setting: str
) -> tuple[list[EncodedPrompt], int]:
    """Apply the chat template and tokenize; drop what is too long.

    Returns:
        The encoded prompts, and how many were dropped.

    Raises:
        UserError: the chat template refuses the messages, or nothing is left.
    """
    check_template(tokenizer, [prompt.text for prompt in prompts], setting)
    encoded = [EncodedPrompt(p, tuple(encode_prompt(tokenizer, p.text))) for p in prompts]
    kept = [item for item in encoded if 0 < len(item.ids) <= max_tokens]
    if not kept:
        shortest = min(len(item.ids) for item in encoded)
        raise UserError(
            f"{setting}: all {len(encoded)} prompts are longer than data.max_prompt_tokens = "
            f"{max_tokens} (the shortest has {shortest} tokens). Raise it."
        )
    return kept, len(encoded) - len(kept)


def check_room(
    prompts: Sequence[EncodedPrompt], model: PretrainedConfig, max_new_tokens: int, setting: str
) -> None:
    """Prompt and response together must fit the positions that a model knows.

    Raises:
        UserError: a response to the longest prompt would run past the last position.
    """
    positions = getattr(model.get_text_config(), "max_position_embeddings", None)
    longest = max(prompts, key=lambda item: len(item.ids))
    if positions is not None and len(longest.ids) + max_new_tokens > positions:
        raise UserError(
            f"{setting}: {longest.prompt.where} has {len(longest.ids)} tokens, and with "
            f"rollout.max_new_tokens = {max_new_tokens} that is more than the {positions} "
            "positions of the model. Lower rollout.max_new_tokens, or drop long prompts by "
            f"data.max_prompt_tokens = {max(1, positions - max_new_tokens)}."
        )


def _check(row: Row) -> str | None:
    if "prompt" not in row.values:
        columns = ", ".join(sorted(row.values)) or "none"
        return f"no column `prompt` (columns: {columns})"
    prompt = row.values["prompt"]
    problem = check_text(prompt, "prompt")
    if problem is None and not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
        return "prompt ends with the assistant; it must end where the response begins"
    return problem


def _key(prompt: Prompt) -> str:
    return json.dumps(prompt.text, sort_keys=True)
