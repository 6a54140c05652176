"""Families of models beyond Llama's: noise, states, windows, widths, by plain forward passes.

The whole table is made by `tools/model_matrix.py`; here are the kinds that differ, in-process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CAUSAL, REWARD, causal_lm, model_type, reward_model
from helpers import byte_tokenizer, encoded_prompts, plain_logprobs
from torch import nn

from rlhf_ppo.config import ValueConfig
from rlhf_ppo.data.prompts import EncodedPrompt
from rlhf_ppo.errors import UserError
from rlhf_ppo.models import families
from rlhf_ppo.models.dropout import disable_dropout
from rlhf_ppo.models.packing import takes_packed
from rlhf_ppo.models.policy import PolicyWithValueHead, build_policy
from rlhf_ppo.models.trial import try_language_model, try_value_trunk
from rlhf_ppo.rollout.decoder import way_of
from rlhf_ppo.rollout.generation import SamplingSettings, generate
from rlhf_ppo.rollout.noise import sampling_noise

TOKENIZER = byte_tokenizer()
# Longer than every window; two of one length, so that groups have one row and more.
PROMPTS = encoded_prompts([range(20, 23), range(30, 49), range(40, 51), range(50, 61)])
NEW = 12


def model_of(name: str) -> Any:
    model = causal_lm(name, TOKENIZER)
    disable_dropout(model)
    return model


def sampled(model: Any, prompts: Sequence[EncodedPrompt], at_once: int) -> Any:
    noise = sampling_noise(1, "test", 1, [prompt.prompt.row for prompt in prompts], NEW)
    # Many stop tokens: rows leave the batch at different times.
    return generate(model, prompts, noise, SamplingSettings(NEW, 1.0, tuple(range(40)), at_once))


# A number that a function reads, from the module (OPT, XGLM) or the configuration, whole layers
# left out (BioGPT, XGLM), a router's noise (Mixtral), modules of PyTorch (Phi, StarCoder 2).
@pytest.mark.parametrize("name", ["opt", "xglm", "biogpt", "mixtral", "dbrx", "phi", "starcoder2"])
def test_no_noise_is_left_in_a_language_model_whatever_the_family_calls_it(name: str) -> None:
    """OPT kept its dropout, a number of its layers: the first ratio was off by .12."""
    ids = torch.tensor([[20, 30, 40, 50, 60, 70]])
    noisy = causal_lm(name, TOKENIZER).train()
    one, other = (noisy(input_ids=ids).logits for _ in range(2))
    assert not torch.equal(one, other), "the file asks for noise"
    quiet = model_of(name)
    expected = quiet.eval()(input_ids=ids).logits
    for _ in range(3):
        assert torch.equal(quiet.train()(input_ids=ids).logits, expected)


@pytest.mark.parametrize("name", ["bert", "deberta", "deberta-v2", "xlnet", "opt", "mpnet"])
def test_no_noise_is_left_in_a_reward_model_either(name: str) -> None:
    ids = torch.tensor([[20, 30, 40, 50, 60, 1]])
    model = reward_model(name, TOKENIZER)
    disable_dropout(model)
    expected = model.eval()(input_ids=ids).logits
    for _ in range(3):
        assert torch.equal(model.train()(input_ids=ids).logits, expected)


def test_routes_in_evaluation_are_no_noise() -> None:
    """PhiMoE's `router_jitter_noise` decides which experts a token may go to, always."""
    ids = torch.tensor([[20, 30, 40, 50, 60, 70]])
    model = causal_lm("phimoe", TOKENIZER)
    expected = model(input_ids=ids).logits
    disable_dropout(model)
    assert torch.equal(model(input_ids=ids).logits, expected)


def test_what_only_sounds_like_dropout_is_left_alone() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout, self.drop_tokens, self.epsilon = 0.5, True, 0.5
            self.backdrop_size, self.inner = 7, nn.Dropout(0.25)

    module = Other()
    disable_dropout(module)
    assert (module.dropout, module.drop_tokens, module.epsilon) == (0.0, True, 0.5)
    assert (module.backdrop_size, module.inner.p) == (7, 0.0)


WAYS = {
    "gemma2": "padded",  # a sliding window in every other layer
    "falcon/alibi": "padded",
    "mpt": "padded",
    "opt": "padded",  # learned positions
    "gpt_neo": "padded",
    "qwen3_moe": "padded",
    "olmo3": "padded",
    "mamba": "equal",
    "falcon_mamba": "equal",
    "jamba": "equal",
    "lfm2": "equal",
    "qwen3_next": "equal",
    "bamba": "equal",
    "rwkv": "whole",  # a state that is no Transformers cache
    "minimax": "whole",  # a cache of its own
    "zamba2": "whole",  # other time steps, one token at a time
    "recurrent_gemma": "whole",  # keeps states in its layers, where no cache can move them
}


@pytest.mark.parametrize("name", WAYS)
def test_what_is_sampled_is_what_the_plain_forward_pass_says_whatever_stands_beside(
    name: str,
) -> None:
    """Mamba and its like ended in tracebacks, and a mask does not keep padding from their states.

    So the same prompts alone, and together while rows leave, give the same tokens, with the
    log-probabilities of the model's own forward pass.
    """
    model = model_of(name)
    assert way_of(model) == WAYS[name]
    together = sampled(model, PROMPTS, 8)
    lengths = together.tokens.response_mask.sum(dim=1)
    assert len(set(lengths.tolist())) > 1, "rows leave the batch at different times"
    for row, prompt in enumerate(PROMPTS):
        response = together.tokens.response_ids[row][together.tokens.response_mask[row]].tolist()
        plain = plain_logprobs(model, prompt.ids, response)
        found = together.sampling_logprobs[row][together.tokens.response_mask[row]]
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
        alone = sampled(model, [prompt], 1).tokens
        assert alone.response_ids[0][alone.response_mask[0]].tolist() == response


def test_windows_under_other_names_are_not_packed_away() -> None:
    """ModernBERT's decoder calls its window `local_attention`; packed rows have no masks."""
    policy = PolicyWithValueHead(model_of("modernbert-decoder"))
    trunk: Any = policy.lm.model
    window = policy.lm.config.local_attention // 2 + 1
    assert not takes_packed(trunk, window + 1)


@pytest.mark.parametrize(
    ("name", "said"), [("bert", "not causal"), ("xlnet", "not causal|cannot be run")]
)
def test_what_is_no_causal_language_model_is_refused_by_name(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        try_language_model(model_of(name), "policy.path")
    assert f"model type {name}" in str(caught.value)


def test_a_family_that_draws_in_training_mode_is_refused_with_gradient_checkpointing() -> None:
    """As if OPT's dropout had been missed."""
    model = model_of("opt")
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.2
    try_language_model(model, "policy.path")
    state = torch.random.get_rng_state()
    with pytest.raises(UserError, match=r"opt.*gradient_checkpointing to false"):
        try_language_model(model, "policy.path", in_training=True)
    assert torch.equal(torch.random.get_rng_state(), state), "nobody else's random numbers"
    assert not model.training


@pytest.mark.parametrize("model", ["shared", "policy"])
def test_a_value_head_is_as_wide_as_the_states_that_it_reads(model: Any) -> None:
    """OPT-350m projects its states: 512 numbers, where its configuration says 1024."""
    lm = model_of("opt/projected")
    ids = torch.tensor([[20, 30, 40]])
    width = lm.model.decoder(input_ids=ids).last_hidden_state.shape[-1]
    assert width != lm.config.hidden_size
    policy = build_policy(lm, None, ValueConfig(model=model), None, False)
    assert policy.value_head.in_features == width


def test_values_cannot_start_from_a_reward_model_that_looks_ahead() -> None:
    encoder = reward_model("bert", TOKENIZER)
    with pytest.raises(UserError, match="BertModel is not causal"):
        try_value_trunk(encoder.base_model, "value.model")
    value = ValueConfig(model="reward")
    with pytest.raises(UserError, match=r"value.model = reward.*model type bert"):
        build_policy(model_of("llama"), None, value, encoder, False)


def test_the_table_in_the_docs_has_every_family_of_the_tool() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    table = text.split("<!-- model matrix: begin -->")[1].split("<!-- model matrix: end -->")[0]
    causal, reward = table.split("| reward model |")
    for table, names in ((causal, CAUSAL), (reward, REWARD)):
        lines = [line for line in table.splitlines() if line.startswith("| ")]
        for name in names:
            rows = [line for line in lines if line.startswith(f"| {name} |")]
            assert len(rows) == 1, name
            assert "wrong:" not in rows[0] and "crashed:" not in rows[0]
            known = families.POLICIES if names is CAUSAL else families.REWARD_MODELS
            works = rows[0].startswith(f"| {name} | right:")
            assert (model_type(name) in known) == works, name
