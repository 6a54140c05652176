"""Rows that a model cannot read: left out, cut or refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from helpers import byte_tokenizer, make_config, write_jsonl

from rlhf_ppo.config import ModelSource
from rlhf_ppo.data.fitting import fit_demonstrations, fit_pairs
from rlhf_ppo.data.lengths import LengthLimit
from rlhf_ppo.data.preferences import Demonstration, Preference
from rlhf_ppo.data.prompt_fitting import cut_prompt
from rlhf_ppo.data.report import DataReport
from rlhf_ppo.data.template import encode_conversation, encode_prompt
from rlhf_ppo.errors import UserError
from rlhf_ppo.inputs import check_inputs, read_inputs
from rlhf_ppo.models.limits import Limits, limits_of
from rlhf_ppo.rewards.classifier import RewardModel
from rlhf_ppo.rewards.judgement import Missing

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL: dict[str, Any] = SHAPE | {"intermediate_size": 16, "vocab_size": 40, "pad_token_id": 1}
TABLES: dict[str, tuple[Any, int]] = {
    "gpt2": (hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=12, vocab_size=40), 12),
    "gptj": (
        hf.GPTJConfig(n_embd=16, n_layer=1, n_head=2, n_positions=12, vocab_size=40, rotary_dim=4),
        12,
    ),
    "opt": (
        hf.OPTConfig(
            **SHAPE,
            ffn_dim=16,
            word_embed_proj_dim=16,
            max_position_embeddings=12,
            vocab_size=40,
        ),
        12,
    ),
    "bert": (hf.BertConfig(**SMALL, max_position_embeddings=12), 12),
    "roberta": (hf.RobertaConfig(**SMALL, max_position_embeddings=12), 10),
    "mpnet": (hf.MPNetConfig(**SMALL, max_position_embeddings=12), 10),
    "mpt": (hf.MptConfig(d_model=16, n_layers=1, n_heads=2, max_seq_len=12, vocab_size=40), 12),
}
ENDLESS: dict[str, Any] = {
    "llama": hf.LlamaConfig(**SMALL, max_position_embeddings=12),
    "modernbert": hf.ModernBertConfig(
        **SMALL, max_position_embeddings=12, cls_token_id=2, sep_token_id=3
    ),
    "bloom": hf.BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=40),
    "deberta": hf.DebertaV2Config(
        **SMALL,
        max_position_embeddings=12,
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
    ),
}


def reads(config: Any, length: int) -> bool:
    """Whether a model's own forward pass takes so many tokens."""
    model = hf.AutoModel.from_config(config).eval()
    ids = torch.arange(length)[None] % 30 + 5
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("family", TABLES)
def test_a_table_of_positions_ends_where_the_models_own_forward_fails(family: str) -> None:
    """RoBERTa's begins behind its padding index; GPT-J's rotary ones are a table too."""
    config, positions = TABLES[family]
    assert limits_of(config, "x").positions == positions
    assert reads(config, positions) and not reads(config, positions + 1)


@pytest.mark.parametrize("family", ENDLESS)
def test_positions_that_are_computed_have_no_end(family: str) -> None:
    limits = limits_of(ENDLESS[family], "x")
    assert limits.positions is None and reads(ENDLESS[family], 30)
    assert limits.strict().positions == (None if family == "bloom" else 12)


def message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def limit_of(most: int, positions: int | None = None) -> LengthLimit:
    return LengthLimit("sft.max_tokens", most, Limits("policy.path", positions, positions, None))


def test_the_report_says_which_length_would_keep_the_rows_if_it_can_be_had() -> None:
    lengths = [*range(1, 101)]  # 95 % have at most 95 tokens
    assert limit_of(50).advice(lengths) == (
        "median 50, 95 % of the rows fit in 95: raise sft.max_tokens to 96 to keep 95 %"
    )
    assert "fit in 100: raise sft.max_tokens to 112 to keep 100 %" in limit_of(99).advice(lengths)
    beyond = limit_of(64, positions=64)
    assert beyond.advice(lengths).endswith(
        "95 % of the rows fit in 95, more than the model has positions for"
    )
    assert "Raise" not in beyond.remedy(65) and "64 of policy.path" in beyond.remedy(65)
    report = DataReport()
    report.add_source("data.demonstrations", "a.jsonl", 4, [])
    tokenizer = byte_tokenizer(chat=False)
    rows = [Demonstration(f"a.jsonl:{n}", "q", "a" * n) for n in (1, 2, 3, 40)]
    fitted = fit_demonstrations(rows, tokenizer, limit_of(10), "data.demonstrations", "drop")
    fitted.report(report, refuse=False)
    assert (
        "1 dropped (25.0 %): longer than sft.max_tokens = 10; median 4, 95 % of the rows "
        "fit in 42: raise sft.max_tokens to 48 to keep 95 % (a.jsonl:40)" in report.lines()[1]
    )


def test_a_demonstration_that_is_cut_does_not_teach_to_stop_there() -> None:
    tokenizer = byte_tokenizer()
    row = Demonstration("a:1", [message("user", "why?")], [message("assistant", "because " * 9)])
    whole = encode_conversation(tokenizer, row.prompt, row.completion)
    start = len(encode_prompt(tokenizer, row.prompt))
    (cut,) = fit_demonstrations([row], tokenizer, limit_of(20), "d", "truncate").rows
    assert cut.ids == whole[:20] and cut.start == start
    nothing_left = fit_demonstrations([row], tokenizer, limit_of(start), "d", "truncate")
    assert not nothing_left.rows and nothing_left.long[0].tokens == len(whole)


def test_both_sides_of_a_pair_are_cut_at_the_same_place_and_keep_their_end() -> None:
    """A side that alone had no end token would be told by that."""
    tokenizer = byte_tokenizer()
    asked = [message("user", "why?")]
    pairs = [
        Preference("a:1", asked, "because it is so and so", "no", "all"),
        Preference("a:2", asked, "because it is so, one", "because it is so, two", "all"),
    ]
    most = len(encode_prompt(tokenizer, asked)) + 9
    found = fit_pairs(pairs, tokenizer, limit_of(most), "p", "truncate")
    ((chosen, rejected),) = found.rows
    whole = encode_conversation(tokenizer, asked, "because it is so and so")
    assert chosen.ids == [*whole[: most - 1], tokenizer.eos_token_id]
    assert tokenizer.decode(rejected.ids).endswith("no<|end|>")
    assert found.same == ["a:2"]  # alike up to the cut


@pytest.mark.parametrize("chat", [True, False])
def test_the_end_of_a_prompt_is_kept(chat: bool) -> None:
    tokenizer = byte_tokenizer(chat=chat)
    if not chat:
        assert cut_prompt(tokenizer, "one two three", 9) == "two three"
        assert cut_prompt(tokenizer, "abcdefghijk", 9) is None
        return
    system = message("system", "Be kind.")
    turns = [message("user", "a" * 40), message("assistant", "b"), message("user", "last words")]
    room = len(encode_prompt(tokenizer, [system, turns[-1]]))
    assert cut_prompt(tokenizer, [system, *turns], room) == [system, turns[-1]]
    assert cut_prompt(tokenizer, [system, *turns], room - 1) == [system, message("user", "words")]


def gpt2(folder: Path, kind: str, positions: int, vocabulary: int) -> str:
    config = hf.GPT2Config(
        vocab_size=vocabulary,
        n_positions=positions,
        n_embd=16,
        n_layer=1,
        n_head=2,
        num_labels=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    getattr(hf, kind)(config).save_pretrained(folder / kind)
    byte_tokenizer().save_pretrained(folder / kind)
    return str(folder / kind)


def run_of(folder: Path, policy: int, reward: int, rows: int = 300, **sections: Any) -> Any:
    """A run whose policy and reward model have so many positions."""
    long = {"prompt": [message("user", "word " * 12)]}
    short = [{"prompt": [message("user", f"why {n}")]} for n in range(4)]
    source = {"kind": "model", "path": gpt2(folder, "GPT2ForSequenceClassification", reward, rows)}
    return make_config(
        data={
            "prompts": write_jsonl(folder / "p.jsonl", [*short[:2], long]),
            "heldout_prompts": write_jsonl(folder / "h.jsonl", short[2:]),
        }
        | sections.pop("data", {}),
        policy={"path": gpt2(folder, "GPT2LMHeadModel", policy, len(byte_tokenizer()))},
        reward={"sources": [source]},
        rollout={"max_new_tokens": 8},
        **sections,
    )


@pytest.mark.parametrize(
    ("policy", "reward", "said"),
    [
        (32, 128, "24 tokens, the 32 positions of policy.path less rollout.max_new_tokens = 8"),
        (128, 32, "the 32 positions of reward.sources[reward_model]"),
    ],
)
def test_prompts_too_long_for_policy_or_reward_model_are_left_out_and_reported(
    policy: int, reward: int, said: str, tmp_path: Path
) -> None:
    """Learned positions ended in an IndexError, partly after hours."""
    config = run_of(tmp_path, policy, reward)
    checked = check_inputs(config, ["ppo", "evaluation"], read_inputs(config, ["ppo"]))
    assert checked.sizes["data.prompts"] == len(checked.inputs.train_prompts) == 2
    (line,) = [line for line in checked.inputs.report.lines() if "dropped" in line]
    assert f"longer than {said}" in line and "raise" not in line
    config = run_of(tmp_path, policy, reward, data={"long_rows": "refuse"})
    with pytest.raises(UserError, match="bad row"):
        check_inputs(config, ["ppo"], read_inputs(config, ["ppo"]))


@pytest.mark.parametrize("role", ["policy.path", "reward.sources[reward_model]"])
def test_a_held_out_prompt_with_a_token_that_has_no_embedding_is_refused(
    role: str, tmp_path: Path
) -> None:
    """It ended the evaluation, after all of the training."""
    config = run_of(tmp_path, 128, 128)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<think>"])
    source: Any = config.reward.sources[0]
    tokenizer.save_pretrained((config.policy if role == "policy.path" else source).path)
    write_jsonl(tmp_path / "h.jsonl", [{"prompt": [message("user", "what is <think>")]}])
    with pytest.raises(UserError) as caught:
        check_inputs(config, ["ppo"], read_inputs(config, ["ppo"]))
    for part in ("data.heldout_prompts", "h.jsonl:1", "'<think>'", role, "resize_token_embeddings"):
        assert part in str(caught.value)


def test_a_response_that_the_reward_model_cannot_read_has_no_score(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    path = gpt2(tmp_path, "GPT2ForSequenceClassification", 24, len(tokenizer))
    model = hf.AutoModelForSequenceClassification.from_pretrained(path).eval()
    reward = RewardModel(model, tokenizer, ModelSource(), "reward.sources[rm]")
    asked = [message("user", "why?")]
    short, long = reward.score_texts([asked] * 2, ["no", "because " * 5])
    assert isinstance(short, float) and isinstance(long, Missing)
    assert "more than the 24 positions of reward.sources[rm]" in long.reason
    unknown = reward.score_ids([[5, 6, len(tokenizer)]])[0]
    assert isinstance(unknown, Missing) and "no embedding" in unknown.reason
