"""Every combination of models that docs/models.md lists, on five architectures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from helpers import (
    ARCHITECTURES,
    byte_tokenizer,
    random_tokens,
    tiny_model,
)
from model_folders import (
    LORA,
    PROMPTS,
    STARTS,
    TOKENS,
    Folders,
    config_of,
    differences,
    learn,
    roles_of,
    roll_out,
)
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_ppo.errors import UserError
from rlhf_ppo.models.forward import find_trunk, lay_out
from rlhf_ppo.models.load import load_causal_lm, load_classifier, load_tokenizer
from rlhf_ppo.models.lora import POLICY, VALUE, adapter_parameters, using_adapter
from rlhf_ppo.models.policy import FrozenPolicy, base_model
from rlhf_ppo.models.save import save_policy
from rlhf_ppo.rewards.classifier import RewardModel
from rlhf_ppo.rollout.collect import collect
from rlhf_ppo.rollout.generation import SamplingSettings, generate
from rlhf_ppo.rollout.noise import sampling_noise
from rlhf_ppo.stamps import ModelPaths
from rlhf_ppo.training.roles import load_for_evaluation


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("start", STARTS)
def test_kl_is_exactly_0_and_the_ratio_1_at_step_0(
    start: str, family: str, written: dict[str, Folders]
) -> None:
    path, reward, sections = STARTS[start]
    folders = written[family]
    config = config_of(getattr(folders, path), getattr(folders, reward), **sections)
    roles, optimizer, processes = roles_of(config)
    rollout, stats = learn(config, roles, optimizer, processes)
    assert torch.equal(rollout.logprobs, rollout.ref_logprobs)
    assert stats.ratio_first_error < 1e-4
    assert stats.policy_clip_fraction == 0.0
    # It has moved, and the reference has not: a merged adapter left all weights frozen, so that a
    # full fine-tuning that started from one trained nothing and said nothing.
    assert differences(roles).abs().max() > 1e-4


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("start", ["fresh_lora", "trained_lora", "shared_base_trained"])
def test_the_reference_of_a_moved_adapter_is_a_frozen_copy_of_the_start(
    start: str, family: str, written: dict[str, Folders]
) -> None:
    """TRL's reference of a run that began at a trained adapter was the bare base (trl#495)."""
    path, reward, sections = STARTS[start]
    folders = written[family]
    config = config_of(getattr(folders, path), getattr(folders, reward), **sections)
    roles, optimizer, processes = roles_of(config)
    learn(config, roles, optimizer, processes)
    rollout = roll_out(roles)
    # Unmerged, as in training: merging rounds.
    start_model = load_causal_lm(getattr(folders, path), "float32", "here", keep_adapter=True)
    frozen = FrozenPolicy(start_model)
    with torch.no_grad():
        expected = frozen(lay_out(rollout.responses.tokens), 1.0)
    torch.testing.assert_close(rollout.ref_logprobs, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(rollout.logprobs, expected, atol=1e-4)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_trained_adapter_is_where_the_run_starts(
    family: str, written: dict[str, Folders]
) -> None:
    """Against PEFT's own forward pass; the bare base says something else."""
    folders = written[family]
    roles, _, _ = roles_of(config_of(folders.adapter, folders.reward, lora={}))
    base = AutoModelForCausalLM.from_pretrained(folders.base).eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        bare = base(ids).logits
        own = peft.PeftModel.from_pretrained(base, folders.adapter).eval()(ids).logits
        found = roles.policy.lm(ids).logits
    torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(bare, own, atol=1e-2)
    trained = {name for name, p in roles.policy.named_parameters() if p.requires_grad}
    ours = {f"lm.{name}" for name in adapter_parameters(roles.policy.lm, POLICY)}
    assert trained == ours | {"value_head.weight", "value_head.bias"}


def own_scores(path: str, base: str, texts: Sequence[tuple[str, str]]) -> Tensor:
    """The adapter's scores by PEFT and Transformers alone, one conversation at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model.config.pad_token_id = tokenizer.pad_token_id
    judge = peft.PeftModel.from_pretrained(model, path).eval()
    found = []
    for prompt, response in texts:
        ids = tokenizer(prompt + response + tokenizer.eos_token)["input_ids"]
        with torch.no_grad():
            found.append(judge(input_ids=torch.tensor([ids])).logits[0, 0])
    return torch.stack(found)


TEXTS = [("a cat", " is grey"), ("the lamp", ""), ("no", " more of this, please")]


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("start", ["shared_base", "shared_base_trained", "full_reward_adapter"])
def test_a_reward_adapter_scores_on_the_policys_base_as_it_does_alone(
    start: str, family: str, written: dict[str, Folders]
) -> None:
    path, reward, sections = STARTS[start]
    folders = written[family]
    config = config_of(getattr(folders, path), getattr(folders, reward), **sections)
    roles, optimizer, processes = roles_of(config)
    prompts, responses = zip(*TEXTS, strict=True)
    for source in (roles.reward.first_model(), load_alone(folders)):  # type: ignore[attr-defined]
        found = torch.tensor(source.score_texts(prompts, responses))
        expected = own_scores(folders.reward_adapter, folders.base, TEXTS)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    learn(config, roles, optimizer, processes)
    judge: Any = roles.reward.first_model()  # type: ignore[attr-defined]
    after = torch.tensor(judge.score_texts(prompts, responses))
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)  # PPO has not touched it


def rewrite(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_a_reward_adapter_on_another_base_is_not_put_on_the_policys(
    tmp_path: Path, written: dict[str, Folders]
) -> None:
    """The shapes would fit."""
    folders = written["llama"]
    tiny_model("llama", len(byte_tokenizer()), seed=9).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    roles, _, _ = roles_of(config_of(str(tmp_path), folders.reward_adapter, lora={}))
    judge: Any = roles.reward.first_model()  # type: ignore[attr-defined]
    prompts, responses = zip(*TEXTS, strict=True)
    found = torch.tensor(judge.score_texts(prompts, responses))
    expected = own_scores(folders.reward_adapter, folders.base, TEXTS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lora", [None, {}], ids=["alone", "shared"])
def test_a_reward_adapter_is_pooled_by_its_own_tokenizers_pad_token(
    lora: Any, tmp_path: Path, written: dict[str, Folders]
) -> None:
    """By its base's, here the end token, the score was read one token too early."""
    folders = written["llama"]
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(folders.base, base)
    shutil.copytree(folders.reward_adapter, adapter)
    rewrite(base / "config.json", pad_token_id=byte_tokenizer().eos_token_id)
    rewrite(adapter / "adapter_config.json", base_model_name_or_path=str(base))
    roles, _, _ = roles_of(config_of(str(base), str(adapter), lora=lora))
    judge: Any = roles.reward.first_model()  # type: ignore[attr-defined]
    shared = judge.model.base_model is find_trunk(base_model(roles.policy.lm))
    assert shared == (lora is not None)
    prompts, responses = zip(*TEXTS, strict=True)
    found = torch.tensor(judge.score_texts(prompts, responses))
    expected = own_scores(str(adapter), str(base), TEXTS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def load_alone(folders: Folders) -> RewardModel:
    tokenizer = load_tokenizer(folders.reward_adapter, "here")
    model = load_classifier(folders.reward_adapter, "float32", "here")
    model.config.pad_token_id = tokenizer.pad_token_id
    source: Any = config_of(folders.base, folders.reward_adapter).reward.sources[0]
    return RewardModel(model, tokenizer, source, "here")


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_with_lora_one_base_in_memory_serves_all_four_roles(
    family: str, written: dict[str, Folders]
) -> None:
    path, reward, sections = STARTS["shared_base_trained"]
    folders = written[family]
    roles, _, _ = roles_of(config_of(getattr(folders, path), getattr(folders, reward), **sections))
    judge: Any = roles.reward.first_model()  # type: ignore[attr-defined]
    assert roles.reference is None
    assert roles.policy.value_trunk is None
    assert judge.model.base_model is find_trunk(base_model(roles.policy.lm))
    size = sum(p.numel() for p in tiny_model(family, len(byte_tokenizer())).parameters())
    rank2 = sum(p.numel() for p in adapter_parameters(roles.policy.lm, POLICY).values())
    whole = sum(p.numel() for p in roles.policy.parameters())
    assert whole == size + 4 * rank2 + 33  # policy, reference, value, reward; value head


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_loss_trains_its_own_adapter_and_no_other(
    checkpointing: bool, family: str, written: dict[str, Folders]
) -> None:
    """Checkpointed layers computed both gradients with the adapter in use at the backward pass."""
    folders = written[family]
    sections = {"lora": LORA, "value": {"model": "adapter"}}

    def gradients(checkpointing: bool, part: str) -> dict[str, Tensor]:
        policy = {"gradient_checkpointing": checkpointing}
        config = config_of(folders.base, folders.reward_adapter, policy=policy, **sections)
        torch.manual_seed(3)  # fresh adapters are drawn at random
        roles, _, _ = roles_of(config)
        with torch.no_grad():  # zero at first: they would hide errors
            for name, parameter in roles.policy.named_parameters():
                if "lora_B" in name or "value_head" in name:
                    parameter.normal_(std=0.1)
        tokens = random_tokens(4, len(byte_tokenizer()))
        outputs = roles.policy_forward(lay_out(tokens), 1.0)
        getattr(outputs, part).square().sum().backward()
        return {n: p.grad for n, p in roles.policy.named_parameters() if p.grad is not None}

    of_values, of_policy = gradients(checkpointing, "values"), gradients(checkpointing, "logprobs")
    assert all(f".{VALUE}." in name or name.startswith("value_head.") for name in of_values)
    assert all(f".{POLICY}." in name for name in of_policy)
    assert of_values and of_policy
    for part, found in (("values", of_values), ("logprobs", of_policy)):
        for name, gradient in gradients(False, part).items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
            assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["full", "merged", "adapter", "adapter_continued"])
def test_the_saved_folder_is_a_plain_one_and_reloads_to_the_same_logits(
    kind: str, family: str, tmp_path: Path, written: dict[str, Folders]
) -> None:
    folders = written[family]
    lora: Any = None
    if kind != "full":
        lora = {"save": "merged" if kind == "merged" else "adapter"}
    start = folders.adapter if kind == "adapter_continued" else folders.base
    value = {} if lora is None else {"value": {"model": "adapter"}}
    config = config_of(start, folders.reward, lora=lora, **value)
    roles, optimizer, processes = roles_of(config)
    learn(config, roles, optimizer, processes)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = roles.policy.eval().lm(ids).logits
    save_policy(roles.policy, roles.tokenizer, config, "start", (1, 7), tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, expected, rtol=1e-4, atol=1e-4)
        merged = load_causal_lm(str(tmp_path), "float32", "here")
        torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert merged.generation_config.eos_token_id == [1, 7]
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == roles.tokenizer.chat_template
    assert (tmp_path / "adapter_config.json").exists() == (kind.startswith("adapter"))
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers")


@pytest.mark.parametrize(
    "start", ["full", "fresh_lora", "trained_lora", "value_adapter", "value_model"]
)
def test_a_later_run_goes_on_with_the_values_of_an_earlier_one(
    start: str, tmp_path: Path, written: dict[str, Folders]
) -> None:
    path, reward, sections = STARTS[start]
    folders = written["llama"]
    if sections.get("lora") is not None:
        sections = sections | {"lora": sections["lora"] | {"save": "adapter"}}
    config = config_of(getattr(folders, path), getattr(folders, reward), **sections)
    roles, optimizer, processes = roles_of(config)
    learn(config, roles, optimizer, processes)
    rollout = roll_out(roles)
    mask = rollout.responses.tokens.response_mask
    save_policy(roles.policy, roles.tokenizer, config, "start", (1,), tmp_path)
    value = sections.get("value", {}) | {"init": "saved"}
    later = config_of(str(tmp_path), folders.reward, **sections | {"value": value})
    again, _, _ = roles_of(later)
    with torch.no_grad():
        found = again.policy(lay_out(rollout.responses.tokens), 1.0).values
    torch.testing.assert_close(found[mask], rollout.values[mask], rtol=1e-4, atol=1e-5)
    assert found.abs().max() > 0.01
    with pytest.raises(UserError, match=r"holds no value_head\.safetensors"):
        roles_of(config_of(folders.base, folders.reward, value={"init": "saved"}))


def test_values_of_another_kind_are_refused(tmp_path: Path, written: dict[str, Folders]) -> None:
    folders = written["llama"]
    config = config_of(folders.base, folders.reward, value={"model": "policy"})
    roles, _, _ = roles_of(config)
    save_policy(roles.policy, roles.tokenizer, config, "start", (1,), tmp_path)
    with pytest.raises(UserError, match="another kind of value function"):
        roles_of(config_of(str(tmp_path), folders.reward, value={"init": "saved"}))
    merged = {"lora": LORA, "value": {"model": "adapter", "init": "saved"}}
    with pytest.raises(UserError, match="taken in the policy's adapter"):
        roles_of(config_of(str(tmp_path), folders.reward, **merged))


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_evaluation_sees_the_policy_and_the_start_that_training_saw(
    family: str, tmp_path: Path, written: dict[str, Folders]
) -> None:
    path, reward, sections = STARTS["shared_base_trained"]
    folders = written[family]
    sections = sections | {"lora": {"save": "adapter"}}
    config = config_of(getattr(folders, path), getattr(folders, reward), **sections)
    roles, optimizer, processes = roles_of(config)
    learn(config, roles, optimizer, processes)
    rollout = roll_out(roles)
    save_policy(roles.policy, roles.tokenizer, config, "start", (1,), tmp_path)
    paths = ModelPaths(config.policy.path or "", "nowhere")
    later = load_for_evaluation(config, str(tmp_path), paths, processes)
    found, _ = collect(later, PROMPTS, rollout.responses, 1.0, 10_000)
    for name in ("logprobs", "ref_logprobs", "source_scores"):
        torch.testing.assert_close(
            getattr(found, name), getattr(rollout, name), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_padded_batch_is_sampled_as_each_prompt_alone(
    family: str, written: dict[str, Folders]
) -> None:
    """With an adapter and without."""
    folders = written[family]
    roles, _, _ = roles_of(config_of(folders.adapter, folders.reward, lora={}))
    settings = SamplingSettings(TOKENS, 1.0, (1,), 8)
    noise = sampling_noise(1, "test", 1, range(len(PROMPTS)), TOKENS)
    for name in (POLICY, None):
        with using_adapter(roles.policy.lm, name):
            together = generate(roles.policy.lm, PROMPTS, noise, settings)
            for row, prompt in enumerate(PROMPTS):
                alone = generate(roles.policy.lm, [prompt], noise[row : row + 1], settings)
                width = alone.tokens.response_ids.shape[1]
                assert torch.equal(
                    together.tokens.response_ids[row, :width], alone.tokens.response_ids[0]
                )


@pytest.mark.parametrize("start", ["full", "fresh_lora", "trained_lora", "shared_base_trained"])
def test_kl_is_exactly_0_in_bfloat16_too(start: str, written: dict[str, Folders]) -> None:
    """Policy and reference go through one autocast, whoever wraps them."""
    path, reward, sections = STARTS[start]
    folders = written["llama"]
    hardware = {"mixed_precision": "bf16", "cpu_threads": 1}
    config = config_of(
        getattr(folders, path), getattr(folders, reward), hardware=hardware, **sections
    )
    roles, optimizer, processes = roles_of(config)
    rollout, stats = learn(config, roles, optimizer, processes)
    assert torch.equal(rollout.logprobs, rollout.ref_logprobs)
    assert stats.ratio_first_error < 1e-2
    assert differences(roles).abs().max() > 1e-3


@pytest.mark.parametrize("start", ["base", "adapter"])
def test_a_value_model_of_its_own_is_trained_in_float32_and_checkpointed(
    start: str, written: dict[str, Folders]
) -> None:
    """Beside a LoRA policy in bfloat16 it was in bfloat16 too, which loses small updates."""
    folders = written["llama"]
    policy = {"dtype": "bfloat16", "gradient_checkpointing": True}
    config = config_of(
        getattr(folders, start),
        folders.reward,
        policy=policy,
        lora={},
        value={"model": "policy"},
    )
    roles, optimizer, processes = roles_of(config)
    trunk = roles.policy.value_trunk
    assert trunk is not None
    assert {p.dtype for p in trunk.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in trunk.parameters())
    assert any(getattr(module, "gradient_checkpointing", False) for module in trunk.modules())
    learn(config, roles, optimizer, processes)
