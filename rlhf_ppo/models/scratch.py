"""A tokenizer and a tiny language model from nothing, for runs that cannot download any.

The embedded default ("quickstart") must work offline on a laptop CPU, and no pretrained chat model
is small enough to be tuned with PPO there in minutes. So it trains its own: a byte-level BPE
tokenizer on the texts of the run, and a Llama of under a million parameters. Both are ordinary
Transformers objects, so all that comes after (TRL, PPO, saving, chatting) is the same code as for a
real chat model.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD_TOKEN = "<|pad|>"  # not the end token: a padded batch then shows where a response ended
END_TOKEN = "<|end|>"  # ends every turn; generation stops on it
ROLE_TOKENS = {role: f"<|{role}|>" for role in ("system", "user", "assistant")}

# One turn is `<|role|>text<|end|>`. Nothing follows the last end token, so that a reward model
# reads its score there. The {% generation %} marks tell TRL which tokens the assistant wrote; the
# end token is one of them, because the model must learn to stop.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('Unknown role ' ~ message['role']"
    " ~ ': use system, user or assistant.') -}}"
    "{%- endif -%}"
    "{{- '<|' ~ message['role'] ~ '|>' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{% generation %}{{- message['content'] ~ '<|end|>' -}}{% endgeneration %}"
    "{%- else -%}"
    "{{- message['content'] ~ '<|end|>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a chat template.

    Byte level means that any text can be encoded and decodes to itself exactly: there is no unknown
    token. The same texts give the same tokenizer.

    Args:
        texts: What to learn merges from: the training texts, never held-out ones.
        vocab_size: The most tokens to have, special and single-byte tokens included.

    Returns:
        A tokenizer that pads on the left (prompts in a batch end together, ready for generation).

    Raises:
        ValueError: If `vocab_size` has no room for the special tokens and the 256 bytes.
    """
    special_tokens = [PAD_TOKEN, END_TOKEN, *ROLE_TOKENS.values()]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(special_tokens) + len(alphabet)
    if vocab_size < smallest:
        raise ValueError(
            f"A byte-level vocabulary needs at least {smallest} tokens ({len(special_tokens)} "
            f"special and {len(alphabet)} bytes), got vocab_size={vocab_size}."
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD_TOKEN,
        eos_token=END_TOKEN,
        additional_special_tokens=list(ROLE_TOKENS.values()),
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden_size: int,
    layers: int,
    heads: int,
    intermediate_size: int,
    max_positions: int,
    initializer_range: float,
    seed: int,
) -> LlamaForCausalLM:
    """Build a randomly initialised Llama with tied embeddings, in float32.

    Tied embeddings halve the largest matrix of a tiny model. The same seed gives the same weights,
    and the caller's random state is left as it was.

    Args:
        tokenizer: Gives the vocabulary size and the special tokens.
        hidden_size: Width of the residual stream; must be a multiple of `heads`.
        layers: Number of blocks.
        heads: Attention heads a block.
        intermediate_size: Width of the MLP.
        max_positions: Longest sequence (prompt and response) in tokens.
        initializer_range: Standard deviation of the initial weights. The usual 0.02 is for wide
            models; a width near 100 learns faster from about 0.05.
        seed: Of the initial weights.

    Returns:
        The model on the CPU, its generation config knowing the special tokens.

    Raises:
        ValueError: If `heads` does not divide `hidden_size` into even parts.
    """
    if hidden_size % (2 * heads):  # rotary embeddings turn pairs of features
        raise ValueError(
            f"hidden_size={hidden_size} must be a multiple of 2 * heads={2 * heads}: every head "
            "needs an even number of features."
        )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_positions,
        initializer_range=initializer_range,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model  # float32: made from a config, it has torch's default type
