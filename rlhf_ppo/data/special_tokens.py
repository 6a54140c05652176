"""Special tokens that a text only spells stay text: what somebody types ends no turn.

Inside the contents of chat messages `<|end|>` is seven characters; the token `<|end|>` is written
by the chat template alone. A tokenizer cannot tell the two apart in one string, so the spelled ones
are marked before the template is applied, and the text is then encoded by a copy of the tokenizer
in which the real ones have other names.
"""

import json
import re
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

# Characters for private use: no text has them, no template and no tokenizer knows them.
_OPEN, _CLOSE, _FIRST = "\ue0f0", "\ue0f1", 0xF0000
_SHORTEST = 3  # characters: a pad token such as "!" is a letter of texts too

_BYTE = re.compile("<0x[0-9A-F]{2}>")  # what unknown characters are spelled with


@dataclass
class _Names:
    """The special tokens of a tokenizer, and what tells when they have changed."""

    tokens: tuple[str, ...]
    pattern: re.Pattern[str] | None  # None: it has none
    ids: frozenset[int]  # of all special tokens, the short ones too
    size: int
    renamed: Tokenizer | None = None  # made when first needed


_KNOWN: "WeakKeyDictionary[PreTrainedTokenizerBase, _Names]" = WeakKeyDictionary()


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that stand in no text: `decode` skips them."""
    return _names(tokenizer).ids


def spelled(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The special tokens that a text spells, in order, each once."""
    pattern = _names(tokenizer).pattern
    return [] if pattern is None else list(dict.fromkeys(pattern.findall(text)))


def mark(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with a mark in place of each special token that it spells."""
    names = _names(tokenizer)
    if names.pattern is None or names.pattern.search(text) is None:
        return text
    numbers = {token: number for number, token in enumerate(names.tokens)}
    return names.pattern.sub(lambda found: _marked(numbers[found[0]]), text)


def unmark(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text as it was before `mark`."""
    if _OPEN not in text:
        return text
    tokens = _names(tokenizer).tokens
    return re.sub(f"{_OPEN}(.){_CLOSE}", lambda found: tokens[ord(found[1]) - _FIRST], text)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids, none added: marked special tokens as letters, all others as tokens."""
    if _OPEN not in text:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    names = _names(tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or names.pattern is None:
        return _encode_pieces(tokenizer, text)
    if names.renamed is None:
        names.renamed = _rename(backend, names.tokens)
    numbers = {token: number for number, token in enumerate(names.tokens)}
    renamed = names.pattern.sub(lambda found: _name(numbers[found[0]]), text)
    return list(names.renamed.encode(unmark(tokenizer, renamed), add_special_tokens=False).ids)


def _names(tokenizer: PreTrainedTokenizerBase) -> _Names:
    size = len(tokenizer)
    known = _KNOWN.get(tokenizer)
    if known is None or known.size != size:
        found = {id: str(t) for id, t in tokenizer.added_tokens_decoder.items() if t.special}
        named = {token for token in found.values() if len(token) >= _SHORTEST}
        names = {token for token in named if not _BYTE.fullmatch(token)}
        tokens = tuple(sorted(names, key=lambda token: (-len(token), token)))  # longest first
        pattern = re.compile("|".join(map(re.escape, tokens))) if tokens else None
        known = _Names(tokens, pattern, frozenset(found), size)
        _KNOWN[tokenizer] = known
    return known


def _marked(number: int) -> str:
    return _OPEN + chr(_FIRST + number) + _CLOSE


def _name(number: int) -> str:
    """What a real special token is called in the copy."""
    return _CLOSE + chr(_FIRST + number) + _OPEN


def _rename(backend: Tokenizer, tokens: tuple[str, ...]) -> Tokenizer:
    """A copy in which the given special tokens have other names and the same ids."""
    content: dict[str, Any] = json.loads(backend.to_str())
    names = {token: _name(number) for number, token in enumerate(tokens)}
    for entry in content["added_tokens"]:
        if entry["content"] in names:
            entry["content"], entry["normalized"] = names[entry["content"]], False
    model = content["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): id for token, id in vocabulary.items()}
    else:  # Unigram: pairs of token and score
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    content["truncation"] = content["padding"] = content["post_processor"] = None
    return Tokenizer.from_str(json.dumps(content))


def _encode_pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """For a tokenizer without a fast backend: what stands between special tokens, one by one."""
    pattern = _names(tokenizer).pattern
    if pattern is None:
        return list(tokenizer(unmark(tokenizer, text), add_special_tokens=False)["input_ids"])
    ids: list[int] = []
    for piece in re.split(f"({pattern.pattern})", text):
        if pattern.fullmatch(piece):
            ids.append(int(str(tokenizer.convert_tokens_to_ids(piece))))
        elif piece:
            options = {"add_special_tokens": False, "split_special_tokens": True}
            ids += tokenizer(unmark(tokenizer, piece), **options)["input_ids"]
    return ids
