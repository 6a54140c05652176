"""Tokenizers of every kind and chat templates in the style of well-known families, from nothing."""

from __future__ import annotations

from typing import Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXTS = ["what does it mean? Q: where is the drum A: ask Rosa yes no user assistant\n"] * 4
SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>", "<|user|>"]
ALPHABET = sorted(set("".join(TEXTS)) | set("<|/>[]ENDSPthink"))


def _finish(backend: Tokenizer, begins: bool, ends: bool) -> PreTrainedTokenizerFast:
    single = ("<s> " if begins else "") + "$A" + (" </s>" if ends else "")
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=single + " $B", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<|end|>", "<|user|>"],
        clean_up_tokenization_spaces=False,
    )


def metaspace(
    scheme: str = "first", *, begins: bool = True, ends: bool = False, unigram: bool = False
) -> PreTrainedTokenizerFast:
    """In the manner of SentencePiece: a space is the first letter of a word."""
    trainer: Any
    if unigram:
        backend = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=200,
            special_tokens=SPECIAL,
            unk_token="<unk>",
            initial_alphabet=ALPHABET,
            show_progress=False,
        )
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(
            vocab_size=200,
            special_tokens=SPECIAL,
            initial_alphabet=ALPHABET,
            show_progress=False,
        )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    parts = [decoders.Replace("\u2581", " "), decoders.Fuse()]
    if scheme != "never":
        parts.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(parts)
    backend.train_from_iterator(TEXTS, trainer)
    return _finish(backend, begins, ends)


def byte_level() -> PreTrainedTokenizerFast:
    """In the manner of GPT-2 and Llama 3."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return _finish(backend, begins=False, ends=False)


def word_piece() -> PreTrainedTokenizerFast:
    """In the manner of BERT: class token, text without capitals, separator."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
        initial_alphabet=[letter.lower() for letter in ALPHABET],
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


KINDS = {
    "first": lambda: metaspace("first"),
    "always": lambda: metaspace("always"),
    "never": lambda: metaspace("never"),
    "unigram": lambda: metaspace(unigram=True),
    "bytes": byte_level,
}

_OPEN = "{% for m in messages %}"
TEMPLATES = {
    "chatml": _OPEN + "<|user|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}",
    # Strips contents, begins with the begin token.
    "llama3": "<s>" + _OPEN + "<|user|>{{ m['role'] }}\n\n{{ m['content'] | trim }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|user|>assistant\n\n{% endif %}",
    # No generation prompt; a space that belongs to the template.
    "mistral": "<s>" + _OPEN + "{% if m['role'] == 'user' %}[P]{{ ' ' ~ m['content'] }} [/P]"
    "{% else %}{{ ' ' ~ m['content'] }}</s>{% endif %}{% endfor %}",
    # Leaves reasoning out of every answer and opens it in the generation prompt.
    "deepseek": _OPEN + "{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}{% else %}"
    "<|end|>{{ m['content'].split('</think>')[-1] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|end|>{{ '<think>\n' }}{% endif %}",
    # Puts an empty reasoning where there is none.
    "qwen3": _OPEN + "<|user|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last and "
    "'</think>' not in m['content'] %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}",
}
