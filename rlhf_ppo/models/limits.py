"""How long a text a model can read, and which tokens it knows, from its configuration alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from transformers import PretrainedConfig, PreTrainedTokenizerBase

# Their table of positions begins after the padding index (fairseq's convention).
_OFFSET = {
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke",
    "mluke", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
# They compute positions for any length, or have none at all, whatever number their config holds.
_UNBOUNDED = {"jamba", "xglm"}
_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "max_encoder_position_embeddings",
    "max_sequence_length",
    "max_seq_len",
)


@dataclass(frozen=True)
class Limits:
    """What a model can read (tokens); None: it does not say, or there is no end."""

    setting: str  # that names the model
    positions: int | None  # rows of a table of positions: beyond, the forward pass fails
    trained: int | None  # the lengths that it was made for, also where positions are computed
    vocabulary: int | None  # rows of its embedding

    def most(self, max_tokens: int) -> int:
        """Tokens of the longest text that fits `max_tokens` and the positions."""
        return max_tokens if self.positions is None else min(max_tokens, self.positions)

    def strict(self) -> "Limits":
        """The lengths that the model was made for are its end, also where it could go on.

        A policy is neither trained nor sampled past them: nothing there is what it has learnt.
        """
        return replace(self, positions=self.trained)

    def unknown(self, ids: Iterable[int]) -> int | None:
        """The largest id that has no row in the embedding; None: all have one."""
        largest = max(ids, default=0)
        return largest if self.vocabulary is not None and largest >= self.vocabulary else None


def limits_of(model: PretrainedConfig, setting: str) -> Limits:
    """Limits of the text that a model reads.

    Learned positions and fixed tables end; rotary, relative and ALiBi positions go on, beyond the
    lengths that the model was trained with.

    Args:
        model: configuration.
        setting: that names the model, such as "policy.path".
    """
    config = model.get_text_config()
    found = next((getattr(config, name) for name in _NAMES if getattr(config, name, None)), None)
    trained = found if found is not None and found > 0 else None  # XLNet says -1
    positions = trained
    if trained is not None and config.model_type in _OFFSET:
        padding = config.pad_token_id
        positions = trained = trained - (1 if padding is None else padding + 1)
    if _goes_on(config):
        positions = None
    return Limits(setting, positions, trained, getattr(config, "vocab_size", None))


def _goes_on(config: PretrainedConfig) -> bool:
    """Whether positions are computed for any length."""
    if config.model_type in _UNBOUNDED or getattr(config, "rope_parameters", None):
        return True
    if getattr(config, "position_embedding_type", None) in ("rotary", "rope", "alibi", "nope"):
        return True
    relative = getattr(config, "relative_attention", False)  # DeBERTa
    return bool(relative) and not getattr(config, "position_biased_input", True)


def missing_token(
    limits: Limits, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]
) -> tuple[int, str] | None:
    """The first row that holds a token without an embedding, and what is wrong with it, in words.

    Args:
        limits: of the model that reads the rows.
        tokenizer: that made them.
        rows: token ids.
    """
    for number, ids in enumerate(rows):
        unknown = limits.unknown(ids)
        if unknown is not None:
            token = tokenizer.convert_ids_to_tokens(unknown)
            return number, (
                f"holds the token {token!r} ({unknown}), and the embedding of {limits.setting} has "
                f"only {limits.vocabulary} rows: the tokenizer is larger than the model. Resize "
                "the model (resize_token_embeddings), train the new rows and save it, or take the "
                "token out of the tokenizer"
            )
    return None
