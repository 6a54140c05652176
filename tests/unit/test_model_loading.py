"""What is loaded, drawn and saved of models: one piece at a time."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import peft
import pytest
import torch
from helpers import byte_tokenizer, make_config, tiny_model
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GenerationConfig,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaForSequenceClassification,
    PretrainedConfig,
    RobertaConfig,
)

from rlhf_ppo.config import LoraConfig
from rlhf_ppo.errors import UserError
from rlhf_ppo.hub import hub_problem
from rlhf_ppo.models.adapters import fresh_adapter
from rlhf_ppo.models.find import check_model_path
from rlhf_ppo.models.load import (
    check_causal_lm,
    check_classifier,
    load_causal_lm,
    load_classifier,
)
from rlhf_ppo.models.lora import base_path, check_start, using_adapter
from rlhf_ppo.models.matching import Differences
from rlhf_ppo.models.policy import build_policy
from rlhf_ppo.models.save import generation_config, save_policy
from rlhf_ppo.preflight import assumptions
from rlhf_ppo.training.checkpoint import (
    Progress,
    check_checkpoint,
    load_checkpoint,
    save_best,
    save_checkpoint,
)

IDS = torch.tensor([[5, 30, 31, 32, 33, 34]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama whose generation config shapes what it says."""
    model = tiny_model("llama", 300)
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    shaped = GenerationConfig(
        do_sample=True,
        top_k=5,
        top_p=0.5,
        min_p=0.2,
        temperature=0.3,
        repetition_penalty=1.4,
        no_repeat_ngram_size=2,
        bad_words_ids=[[40]],
        eos_token_id=1,
        bos_token_id=2,
    )
    shaped.save_pretrained(tmp_path / "model")
    return tmp_path


def logprobs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits.log_softmax(-1)
    return found


def test_the_saved_policy_samples_in_generate_from_the_distribution_that_was_trained(
    folder: Path,
) -> None:
    """Top-k, penalties and temperature of the start model stayed in the saved folder."""
    config = make_config(rollout={"temperature": 0.7})
    lm = load_causal_lm(str(folder / "model"), "float32", "here")
    expected = (logprobs(lm)[0, -1] / 0.7).softmax(-1)
    policy = build_policy(lm, None, config.value, None, False)
    (folder / "policy").mkdir()
    save_policy(policy, byte_tokenizer(), config, "start", (1, 7), folder / "policy")
    again = AutoModelForCausalLM.from_pretrained(folder / "policy")
    found = again.generate(
        IDS, max_new_tokens=1, output_scores=True, return_dict_in_generate=True
    ).scores[0][0]
    assert torch.allclose(found.softmax(-1), expected, atol=1e-6)
    saved = json.loads((folder / "policy" / "generation_config.json").read_text())
    assert saved["do_sample"] is True and saved["eos_token_id"] == [1, 7]
    assert saved["bos_token_id"] == 2
    assert not {"min_p", "repetition_penalty", "bad_words_ids"} & {
        name for name, value in saved.items() if value is not None
    }


def test_one_stop_token_is_saved_as_one(folder: Path) -> None:
    found = generation_config(make_config(), byte_tokenizer(), (1,), None)
    assert found.eos_token_id == 1 and found.top_k == 0 and found.bos_token_id is None


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_starting_adapter_its_copies_and_the_merged_model_compute_the_same(
    dora: bool, folder: Path
) -> None:
    """Against PEFT's own forward pass, to 1e-5."""
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    torch.manual_seed(4)
    settings = peft.LoraConfig(
        r=2,
        target_modules=["q_proj", "down_proj"],
        use_dora=dora,
        use_rslora=True,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    adapted = peft.get_peft_model(base, settings)
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "model")
    adapted.save_pretrained(folder / "adapter")
    expected = logprobs(adapted)
    path = str(folder / "adapter")
    check_start(path, LoraConfig(), "here")
    kept = load_causal_lm(path, "float32", "here", keep_adapter=True)
    value = make_config(lora={}, value={"model": "adapter"}).value
    policy = build_policy(kept, LoraConfig(), value, None, False)
    assert torch.allclose(logprobs(policy.lm), expected, atol=1e-5)
    for name in ("rlhf_reference", "rlhf_value"):
        with using_adapter(policy.lm, name):
            assert torch.allclose(logprobs(policy.lm), expected, atol=1e-5)
    merged = load_causal_lm(path, "float32", "here")
    assert torch.allclose(logprobs(merged), expected, atol=1e-5)


def test_a_base_is_found_from_the_adapters_folder_and_its_own_relative_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = folder / "somewhere" / "adapter"
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    lora = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    made = peft.get_peft_model(base, lora)
    made.peft_config["default"].base_model_name_or_path = "../../model"
    made.save_pretrained(adapter)
    monkeypatch.chdir(folder)  # where ../../model is nothing
    assert Path(base_path(str(adapter), "here")).resolve() == (folder / "model").resolve()
    check_causal_lm(str(adapter), "here")
    shutil.move(folder / "model", folder / "elsewhere")
    with pytest.raises(UserError) as caught:
        check_model_path(str(adapter), "policy.path")
    for part in ("policy.path", "../../model", "base_model_name_or_path", str(adapter)):
        assert part in str(caught.value)


def test_a_head_of_a_half_precision_base_is_trained_in_float32(folder: Path) -> None:
    """Beside LoRA the head was float16 or bfloat16, where Adam fails or loses small steps."""
    base = load_classifier(str(folder / "model"), "float16", "here", new_head=True)
    base.config.pad_token_id = 0
    model = fresh_adapter(base, LoraConfig(rank=2), "SEQ_CLS", 1)
    trained = {n: p.dtype for n, p in model.named_parameters() if p.requires_grad}
    assert any("score" in name for name in trained)
    assert set(trained.values()) == {torch.float32}
    model(input_ids=IDS).logits.sum().backward()
    head = next(p for n, p in model.named_parameters() if "score.modules_to_save" in n)
    assert head.grad is not None and bool(head.grad.abs().sum() > 0)


SMALL: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
ENCODERS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**SMALL),
    "roberta": RobertaConfig(**SMALL),
    "deberta": DebertaV2Config(**SMALL),
    "distilbert": DistilBertConfig(vocab_size=300, dim=32, n_layers=1, n_heads=2, hidden_dim=32),
}


@pytest.mark.parametrize("config", ENCODERS.values(), ids=ENCODERS)
def test_an_adapter_of_an_encoder_keeps_all_that_was_drawn_beside_the_trunk(
    config: PretrainedConfig, tmp_path: Path
) -> None:
    """A pooler that the base lacks was drawn anew at each load: other scores each time."""
    base = str(tmp_path / "base")
    AutoModelForMaskedLM.from_config(config).save_pretrained(base)  # no pooler, no head
    byte_tokenizer(chat=False).save_pretrained(base)
    start = load_classifier(base, "float32", "here", new_head=True, seed=1)
    model = fresh_adapter(start, LoraConfig(rank=2), "SEQ_CLS", 2).eval()
    expected = model(input_ids=IDS).logits
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(tmp_path / "adapter")
    path = str(tmp_path / "adapter")
    check_classifier(path, "here")
    for seed in (3, 4):
        found = load_classifier(path, "float32", "here", seed=seed)
        assert torch.allclose(found(input_ids=IDS).logits, expected, atol=1e-5)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    stored = load_file(file)
    gone = next(name for name in stored if "lora_" not in name)
    save_file({k: v for k, v in stored.items() if k != gone}, file, metadata={"format": "pt"})
    name = gone.removeprefix("base_model.model.")
    with pytest.raises(UserError, match=rf"here: .*adapter' lacks the weights .{name}"):
        check_classifier(path, "here")


def test_a_reward_model_can_start_from_a_classifier_of_several_labels(folder: Path) -> None:
    """The head is new; the trunk is that of the file."""
    torch.manual_seed(1)
    several = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=3)
    several.save_pretrained(folder / "several")
    byte_tokenizer().save_pretrained(folder / "several")
    heads = []
    for seed in (1, 1, 2):
        made = load_classifier(str(folder / "several"), "float32", "x", new_head=True, seed=seed)
        assert isinstance(made, LlamaForSequenceClassification)
        heads.append(made.score.weight)
        assert torch.equal(
            made.model.layers[0].mlp.up_proj.weight, several.model.layers[0].mlp.up_proj.weight
        )
    assert heads[0].shape == (1, 32)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


MASK, MASKED = torch.ones(1, 1, 64, 64, dtype=torch.bool), torch.tensor(-1e4)
OLD_BUFFERS: dict[str, tuple[PretrainedConfig, str]] = {
    # As in the files of EleutherAI/gpt-neo-125m, EleutherAI/gpt-j-6b and EleutherAI/pythia-70m.
    "gpt_neo": (
        GPTNeoConfig(
            vocab_size=64,
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=64,
        ),
        "transformer.h.0.attn.attention",
    ),
    "gptj": (
        GPTJConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=64, rotary_dim=8),
        "transformer.h.1.attn",
    ),
    "gpt_neox": (
        GPTNeoXConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
        ),
        "gpt_neox.layers.0.attention",
    ),
}


@pytest.mark.parametrize(("config", "place"), OLD_BUFFERS.values(), ids=OLD_BUFFERS)
def test_masks_that_old_versions_saved_are_no_weights(
    config: PretrainedConfig, place: str, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    old = {f"{place}.bias": MASK, f"{place}.masked_bias": MASKED}
    save_file(weights | old, file, metadata={"format": "pt"})
    check_causal_lm(str(tmp_path), "here")
    found = load_causal_lm(str(tmp_path), "float32", "here")
    assert torch.equal(logprobs(found), logprobs(model))
    save_file(weights | {f"{place}.extra": MASKED}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"no place for .{place}.extra"):
        check_causal_lm(str(tmp_path), "here")


def test_names_inside_the_trunk_are_never_taken_for_a_heads() -> None:
    found = Differences(
        missing=["model.layers.0.a", "score.weight", "bert.pooler.dense.bias"],
        unexpected=["lm_head.weight", "modelling.x"],
        mismatched=[("model.norm.weight", (3,), (4,))],
    )
    assert found.outside("model") == [
        "score.weight",
        "bert.pooler.dense.bias",
        "lm_head.weight",
        "modelling.x",
    ]
    assert "bert.pooler.dense.bias" in found.outside("bert")
    assert found.outside("") == []
    left = found.without(["score.*", "lm_head.weight"])
    assert left.missing == ["bert.pooler.dense.bias", "model.layers.0.a"]
    assert left.mismatched and not Differences()


@pytest.fixture
def reachable_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """As without HF_HUB_OFFLINE."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub_problem.cache_clear()
    yield monkeypatch
    hub_problem.cache_clear()


def test_without_a_network_the_hub_is_tried_once_and_never_waited_for(
    reachable_hub: pytest.MonkeyPatch,
) -> None:
    """Each file cost 23 s of retries, 62 s before the first message."""

    def no_waiting(seconds: float) -> None:
        raise AssertionError(f"waited {seconds} s to try again")

    reachable_hub.setattr(time, "sleep", no_waiting)
    reachable_hub.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"policy.path: there is no folder 'some/model'.*answer"):
        check_model_path("some/model", "policy.path")
    assert huggingface_hub.is_offline_mode()  # what is in the cache is loaded without a try
    with pytest.raises(UserError, match="hf download some/other"):
        load_causal_lm("some/other", "float32", "evaluation.models.other")


def test_bfloat16_weights_that_are_all_trained_lose_the_steps_that_the_message_says() -> None:
    config = make_config(policy={"dtype": "bfloat16", "path": None}, ppo={"learning_rate": 1e-5})
    (line,) = assumptions(config, [])
    assert "policy.dtype = bfloat16 without lora" in line and "0.0051" in line and "0.0026" in line
    beyond = torch.tensor([0.0053, -0.0061, 0.02, 1.0]).bfloat16()
    assert torch.equal(beyond + 1e-5, beyond) and torch.equal(beyond - 1e-5, beyond)
    below = torch.tensor([0.0012, 0.0019]).bfloat16()
    assert not torch.equal(below + 1e-5, below)
    assert assumptions(make_config(policy={"dtype": "bfloat16"}, lora={}), []) == []


DAMAGE = {
    "optimizer cut short": ("optimizer.pt", 300),
    "optimizer empty": ("optimizer.pt", 0),
    "optimizer missing": ("optimizer.pt", None),
    "weights cut short": ("trainable.safetensors", 200),
    "weights missing": ("trainable.safetensors", None),
}


@pytest.mark.parametrize(("name", "size"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_named_with_what_to_do(
    name: str, size: int | None, tmp_path: Path
) -> None:
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path, Progress(3, 0, 0, 0.1), model, optimizer, keep=0)
    checkpoint = tmp_path / "step-000003"
    check_checkpoint(checkpoint)
    load_checkpoint(checkpoint, model, optimizer)
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).unlink()
    if size is not None:
        (checkpoint / name).write_bytes(content[:size])
    for look in (lambda: check_checkpoint(checkpoint), lambda: load_all(checkpoint, model)):
        with pytest.raises(UserError) as caught:
            look()
        assert str(checkpoint / name) in str(caught.value)
        assert f"Remove the checkpoint {checkpoint} to go on from the one before" in str(
            caught.value
        )


def load_all(checkpoint: Path, model: torch.nn.Module) -> None:
    load_checkpoint(checkpoint, model, torch.optim.AdamW(model.parameters()))


def test_a_damaged_best_policy_is_found_before_a_run_goes_on(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    save_best(tmp_path, 2, model)
    save_checkpoint(tmp_path, Progress(3, 0, 0, 0.1, best_step=2), model, optimizer, keep=0)
    check_checkpoint(tmp_path / "step-000003")
    save_file({}, tmp_path / "best-000002" / "trainable.safetensors")
    (tmp_path / "best-000002" / "trainable.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"best-000002.*damaged.*set checkpoint.save to last"):
        check_checkpoint(tmp_path / "step-000003")
