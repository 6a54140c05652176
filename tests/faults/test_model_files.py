"""Model folders of other people: what is missing, damaged or of another kind is named, exit 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from cli import run_here, write_config
from helpers import byte_tokenizer, given_reward, write_chat_data, write_plain_data
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification

from rlhf_ppo.chat.models import Named, load_model
from rlhf_ppo.errors import UserError

WEIGHTS = "model.safetensors"
Tensors = dict[str, torch.Tensor]
Change = Callable[[dict[str, Any], Path], None]


def rewrite(folder: Path, change: Callable[[Tensors], Tensors], name: str = WEIGHTS) -> None:
    """Other tensors in a folder's file."""
    found = change(load_file(folder / name))
    save_file(found, folder / name, metadata={"format": "pt"})


def patch(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda old: {key: value for key, value in old.items() if key not in names}


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda old: {prefix + key: value for key, value in old.items()}


def plus(**more: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda old: old | {key.replace("__", "."): value for key, value in more.items()}


def fsdp(old: Tensors) -> Tensors:
    """FSDP marks each wrapped layer."""
    mark = "_fsdp_wrapped_module."
    return {mark + k.replace(".h.0.", f".h.0.{mark}"): value for k, value in old.items()}


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def pointer(file: Path) -> None:
    """What a clone without Git LFS leaves."""
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 858296\n")


def sharded(folder: Path) -> None:
    """Weights in several files, as of a large model."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="20KB")


def as_bin(folder: Path) -> None:
    """Weights as PyTorch writes them."""
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def quantized(method: str, **more: Any) -> Change:
    values = {"quantization_config": {"quant_method": method, **more}}
    return lambda s, f: patch(f / "policy" / "config.json", **values)


def role_lacks(name: str, tensor: str, change: dict[str, Any]) -> Change:
    """A copy of the policy without a tensor, in another role."""

    def do(settings: dict[str, Any], folder: Path) -> None:
        shutil.copytree(folder / "policy", folder / name)
        rewrite(folder / name, without(tensor))
        settings.update(change)

    return do


def on(folder: str, action: Callable[[Path], None]) -> Change:
    return lambda s, f: action(f / folder)


def tensors(folder: str, change: Callable[[Tensors], Tensors]) -> Change:
    return lambda s, f: rewrite(f / folder, change)


def prompt_tuning(folder: Path) -> None:
    """An adapter that is no change of layers."""
    model = AutoModelForCausalLM.from_pretrained(folder / "policy")
    settings = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    peft.get_peft_model(model, settings).save_pretrained(folder / "adapter")
    patch(folder / "adapter" / "adapter_config.json", base_model_name_or_path="policy")


def adapter(action: Callable[[Path], object], **more: Any) -> Change:
    """Start from a changed adapter on the policy."""

    def do(settings: dict[str, Any], folder: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder / "policy")
        chosen = {"target_modules": ["c_attn"]} | more
        lora = peft.LoraConfig(r=2, task_type="CAUSAL_LM", **chosen)
        peft.get_peft_model(model, lora).save_pretrained(folder / "adapter")
        patch(folder / "adapter" / "adapter_config.json", base_model_name_or_path="policy")
        settings.update(policy={"path": "adapter"}, lora={})
        action(folder / "adapter")

    return do


LORA_A = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
LORA = "adapter_model.safetensors"
OTHER = {"evaluation": {"models": {"other": "other"}, "bootstrap_samples": 100}}
GIVEN = {"kind": "model", "path": "reward"}

CASES: dict[str, tuple[Change, list[str]]] = {
    # Weights that are not there.
    "a policy that lacks one tensor": (
        tensors("policy", without("transformer.h.1.mlp.c_fc.weight")),
        ["policy.path: 'policy' lacks the weights [transformer.h.1.mlp.c_fc.weight]"],
    ),
    "names of TRL's value-head wrapper": (
        tensors("policy", prefixed("pretrained_model.")),
        ["'pretrained_model.' before them", "model.pretrained_model.save_pretrained"],
    ),
    "names of DistributedDataParallel": (
        tensors("policy", prefixed("module.")),
        ["'module.' before them", "DistributedDataParallel"],
    ),
    "names of torch.compile": (
        tensors("policy", prefixed("_orig_mod.")),
        ["'_orig_mod.' before them", "torch.compile"],
    ),
    "names of FSDP": (tensors("policy", fsdp), ["'_fsdp_wrapped_module.' before", "FSDP"]),
    "names of a PEFT wrapper": (
        tensors("policy", prefixed("base_model.model.")),
        ["'base_model.model.' before them", "merge_and_unload"],
    ),
    "names of a wrapper that nobody knows": (
        tensors("policy", prefixed("actor.net.")),
        ["'actor.net.' before them", "rename the tensors"],
    ),
    "a value head beside the policy": (
        tensors("policy", plus(v_head__summary__weight=torch.zeros(1, 32))),
        ["has no place for [v_head.summary.weight]", "allow_unmatched"],
    ),
    "a reward model as the policy": (
        lambda s, f: s.update(policy={"path": "reward"}),
        ["policy.path: 'reward'", "has no place for [score.weight]", "no complete causal"],
    ),
    "a policy of another width": (
        tensors("policy", lambda old: old | {"transformer.ln_f.bias": torch.zeros(7)}),
        ["weights of another shape [transformer.ln_f.bias: (7,) in place of (32,)]"],
    ),
    "a reward model without its head": (
        tensors("reward", without("score.weight")),
        [
            "reward.sources[reward_model].path: 'reward' lacks the weights [score.weight]",
            "it is not a trained reward model",
        ],
    ),
    "a reward head of another number of outputs than the settings say": (
        tensors("reward", lambda old: old | {"score.weight": torch.zeros(3, 32)}),
        ["weights of another shape [score.weight: (3, 32) in place of (1, 32)]"],
    ),
    "a reward model whose trunk lacks a tensor": (
        tensors("reward", without("transformer.wpe.weight")),
        ["reward.sources[reward_model].path", "lacks the weights [transformer.wpe.weight]"],
    ),
    "an encoder without its classification head": (
        lambda s, f: (
            rewrite(f / "encoder", without("classifier.weight", "classifier.bias")),
            s.update(reward=given_reward("encoder")),
        ),
        ["lacks the weights [classifier.bias, classifier.weight]", "not a trained reward model"],
    ),
    "an encoder without its pooler": (
        lambda s, f: (
            rewrite(f / "encoder", without("bert.pooler.dense.weight")),
            s.update(reward=given_reward("encoder")),
        ),
        ["lacks the weights [bert.pooler.dense.weight]"],
    ),
    "another model of the evaluation": (
        role_lacks("other", "transformer.wte.weight", OTHER),
        ["evaluation.models.other: 'other' lacks the weights", "transformer.wte.weight"],
    ),
    # Files that are damaged.
    "weights that are a Git LFS pointer": (
        lambda s, f: pointer(f / "policy" / WEIGHTS),
        ["policy/model.safetensors is a Git LFS pointer", "git lfs pull"],
    ),
    "weights that are cut short": (
        lambda s, f: cut(f / "policy" / WEIGHTS, 40_000),
        ["policy.path: policy/model.safetensors is damaged or cut short"],
    ),
    "weights of no bytes": (
        lambda s, f: cut(f / "reward" / WEIGHTS, 0),
        ["reward.sources[reward_model].path: reward/model.safetensors is empty (0 bytes)"],
    ),
    "a shard that is missing": (
        lambda s, f: (sharded(f / "policy"), min((f / "policy").glob("model-*")).unlink()),
        ["model.safetensors.index.json lists", "model-00001-of-", "is not there"],
    ),
    "a shard that is a pointer": (
        lambda s, f: (sharded(f / "policy"), pointer(max((f / "policy").glob("model-*")))),
        ["policy/model-", "is a Git LFS pointer"],
    ),
    "an index that is cut short": (
        lambda s, f: (
            sharded(f / "policy"),
            cut(f / "policy" / "model.safetensors.index.json", 90),
        ),
        ["model.safetensors.index.json is damaged"],
    ),
    "an index without a map": (
        lambda s, f: (
            sharded(f / "policy"),
            (f / "policy" / "model.safetensors.index.json").write_text("{}"),
        ),
        ["model.safetensors.index.json is damaged: it has no weight_map"],
    ),
    "PyTorch weights that are cut short": (
        lambda s, f: (as_bin(f / "policy"), cut(f / "policy" / "pytorch_model.bin", 9000)),
        ["policy/pytorch_model.bin is damaged or cut short"],
    ),
    "a configuration that is no JSON": (
        lambda s, f: cut(f / "policy" / "config.json", 50),
        ["policy.path: policy/config.json is damaged"],
    ),
    "a configuration that is a list": (
        lambda s, f: (f / "policy" / "config.json").write_text("[1]"),
        ["policy/config.json is damaged: holds list in place of a JSON object"],
    ),
    "a configuration that names no family": (
        lambda s, f: (f / "policy" / "config.json").write_text('{"hidden_size": 32}'),
        ["policy.path: cannot load", "from 'policy'", "model_type"],
    ),
    "a width that is a word": (
        lambda s, f: patch(f / "policy" / "config.json", n_embd="wide"),
        ["policy.path: cannot load", "from 'policy'", "n_embd"],
    ),
    "a tokenizer that is cut short": (
        lambda s, f: cut(f / "policy" / "tokenizer.json", 3000),
        ["policy.path: cannot load a tokenizer from 'policy'", "tokenizer.json is damaged"],
    ),
    "a tokenizer that is a pointer": (
        lambda s, f: pointer(f / "reward" / "tokenizer.json"),
        ["reward.sources[reward_model].path", "reward/tokenizer.json is a Git LFS pointer"],
    ),
    "a tokenizer without a vocabulary": (
        lambda s, f: (f / "policy" / "tokenizer.json").write_text('{"model": {"type": "?"}}'),
        ["policy.path: cannot load a tokenizer from 'policy'"],
    ),
    "generation settings that are damaged": (
        lambda s, f: (f / "policy" / "generation_config.json").write_text("{"),
        ["policy.path: policy/generation_config.json is damaged"],
    ),
    # Adapters.
    "an adapter that is a pointer": (
        adapter(lambda f: pointer(f / LORA)),
        ["adapter/adapter_model.safetensors is a Git LFS pointer"],
    ),
    "an adapter that is cut short": (
        adapter(lambda f: cut(f / LORA, 900)),
        ["adapter/adapter_model.safetensors is damaged or cut short"],
    ),
    "an adapter without weights": (
        adapter(lambda f: (f / LORA).unlink()),
        ["adapter holds adapter_config.json, but no adapter_model.safetensors"],
    ),
    "an adapter whose settings are damaged": (
        adapter(lambda f: (f / "adapter_config.json").write_text("{")),
        ["adapter/adapter_config.json is damaged"],
    ),
    "an adapter that lacks a matrix": (
        adapter(lambda f: rewrite(f, without(LORA_A), LORA)),
        ["'adapter' lacks the weights [transformer.h.0.attn.c_attn.lora_A.weight]"],
    ),
    "an adapter of other layers than its settings say": (
        adapter(lambda f: patch(f / "adapter_config.json", target_modules=["c_fc"])),
        ["'adapter' lacks the weights", "c_fc.lora_A", "no place for", "c_attn.lora_A"],
    ),
    "an adapter of another rank than its settings say": (
        adapter(lambda f: patch(f / "adapter_config.json", r=4)),
        ["policy.path: cannot load the adapter from 'adapter'", "size mismatch", "lora_A"],
    ),
    "an adapter with a copy of the tied embedding": (
        lambda s, f: (
            adapter(lambda _: None, modules_to_save=["wte"])(s, f),
            s.update(lora=None),
        ),
        ["policy.path: adapter has an adapter on transformer.wte", "those of lm_head as well"],
    ),
    "an adapter on the tied embedding as another model of the evaluation": (
        lambda s, f: (
            adapter(lambda _: None, target_modules=["wte"])(s, f),
            s.update(policy={"path": "policy"}, lora=None),
            s["evaluation"].update(models={"other": "adapter"}),
        ),
        ["evaluation.models.other: adapter has an adapter on transformer.wte", "tied"],
    ),
    "an adapter whose first weights change the base": (
        adapter(lambda f: patch(f / "adapter_config.json", init_lora_weights="pissa")),
        ["changes its base (init_lora_weights = pissa)", "only plain LoRA"],
    ),
    "an adapter that repeats layers": (
        adapter(lambda f: patch(f / "adapter_config.json", layer_replication=[[0, 2], [1, 2]])),
        ["uses layer_replication", "only plain LoRA"],
    ),
    "an adapter that cannot be merged": (
        lambda s, f: (prompt_tuning(f), s.update(policy={"path": "adapter"})),
        ["policy.path: the adapter adapter (type PROMPT_TUNING) cannot be merged"],
    ),
    # What a package is needed for, or code of its own.
    "weights quantised by bitsandbytes": (
        quantized("bitsandbytes", load_in_4bit=True),
        ["policy.path: cannot load a causal language model from 'policy'", "bitsandbytes"],
    ),
    "weights quantised by GPTQ": (quantized("gptq", bits=4), ["policy.path", "optimum"]),
    "weights quantised by AWQ": (quantized("awq", bits=4), ["policy.path", "gptqmodel"]),
    "compressed tensors": (quantized("compressed-tensors"), ["policy.path", "compressed-tensors"]),
    "weights in fp8": (
        quantized("fp8", weight_block_size=[8, 8]),
        ["policy.path: the weights of 'policy' are quantised (fp8)"],
    ),
    "a kind of quantisation that nobody knows": (
        quantized("mystery"),
        ["policy.path: the weights of 'policy' are quantised (mystery)"],
    ),
    "flash attention in the settings of the model": (
        lambda s, f: patch(f / "policy" / "config.json", attn_implementation="flash_attention_2"),
        ["policy.path: cannot load", "package for FlashAttention2"],
    ),
    "a model with code of its own": (
        lambda s, f: patch(
            f / "policy" / "config.json",
            model_type="homemade",
            auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"},
        ),
        ["policy.path", "Python code of its own", "auto_map"],
    ),
    # Settings.
    "LoRA on the tied embedding": (
        lambda s, f: s.update(lora={"target_modules": ["c_attn", "wte"]}),
        ["lora.target_modules: an adapter on transformer.wte", "lm_head", "Leave it out"],
    ),
    "LoRA on the tied output layer": (
        lambda s, f: s.update(lora={"target_modules": ["lm_head", "c_fc"], "save": "adapter"}),
        ["lora.target_modules: an adapter on lm_head", "transformer.wte"],
    ),
    "LoRA on a layer that is not there": (
        lambda s, f: s.update(lora={"target_modules": ["c_attn", "q_proj"]}),
        ["lora.target_modules: 'q_proj' is no layer of the policy", "c_attn, c_fc, c_proj"],
    ),
    "weights in float16 that are all trained": (
        lambda s, f: s["policy"].update(dtype="float16"),
        ["policy.dtype = float16 without lora", "float32"],
    ),
    "patterns for a model that is not given": (
        lambda s, f: s.update(evaluation={"allow_unmatched": ["x"]}),
        ["evaluation.allow_unmatched has no effect"],
    ),
    "a hub model that is not in the cache": (
        lambda s, f: s.update(policy={"path": "some/model"}),
        ["policy.path: there is no folder 'some/model'", "HF_HUB_OFFLINE", "hf download"],
    ),
    "a file in place of a folder": (
        lambda s, f: s.update(policy={"path": "policy/config.json"}),
        ["policy.path: policy/config.json is a file"],
    ),
}


@pytest.fixture(scope="module")
def models(gpt2_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `policy`, `reward` and `encoder`, to be copied."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("policy", "reward"):
        shutil.copytree(gpt2_models[name], folder / name)
    tokenizer = byte_tokenizer(chat=False)
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=len(tokenizer), intermediate_size=16, num_labels=1, pad_token_id=0, **sizes
    )
    BertForSequenceClassification(config).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    return folder


def settings_in(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": "run",
        "data": write_plain_data(folder),
        "policy": {"path": "policy"},
        "reward": given_reward("reward"),
        "rollout": {"batch_size": 6, "max_new_tokens": 8},
        "ppo": {"steps": 1, "epochs": 1},
        "evaluation": {"every": 0, "bootstrap_samples": 100, "best_of": 0},
        "logging": {"trackers": []},
        "hardware": {"cpu_threads": 1},
    }


@pytest.mark.parametrize(("change", "parts"), CASES.values(), ids=CASES.keys())
def test_a_model_that_is_not_whole_is_refused_by_name_and_nothing_is_written(
    change: Change,
    parts: list[str],
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before: weights drawn at random with exit 0, or a traceback of one of five libraries."""
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    settings = settings_in(tmp_path)
    change(settings, tmp_path)
    config = write_config(tmp_path / "config.yaml", settings)
    assert run_here("train", ["--config", str(config)], tmp_path, monkeypatch) == 2
    error = capsys.readouterr().err
    assert sum(line.startswith("error:") for line in error.splitlines()) == 1
    assert "Traceback" not in error
    for part in parts:
        assert part in error, error
    assert not (tmp_path / "run").exists()


def test_a_chat_with_a_model_that_is_not_whole_is_refused(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "policy", tmp_path / "policy")
    rewrite(tmp_path / "policy", without("transformer.ln_f.weight"))
    with pytest.raises(UserError, match=r"mine: .*lacks the weights \[transformer.ln_f.weight\]"):
        load_model(Named("mine", str(tmp_path / "policy")), torch.device("cpu"))


STARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("policy.path", {"sft": {}}),
    "reward_model": ("policy.path", {"reward_model": {}}),
    "given": ("reward_model.init_from", {"reward_model": {"init_from": "start"}}),
}


@pytest.mark.parametrize(("setting", "sections"), STARTS.values(), ids=STARTS)
def test_every_stage_refuses_a_start_whose_trunk_is_not_whole(
    setting: str,
    sections: dict[str, Any],
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The new head may be missing; a layer of the trunk was drawn at random beside it."""
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    shutil.copytree(models / "policy", tmp_path / "start")
    start = "start" if setting == "reward_model.init_from" else "policy"
    rewrite(tmp_path / start, without("transformer.h.0.attn.c_attn.weight"))
    settings = settings_in(tmp_path) | sections | {"data": write_chat_data(tmp_path)}
    if "reward_model" in sections:
        settings["reward"] = {"sources": [{"kind": "model"}]}
    config = write_config(tmp_path / "config.yaml", settings)
    script = "sft" if "sft" in sections else "reward_model"
    assert run_here(script, ["--config", str(config)], tmp_path, monkeypatch) == 2
    error = capsys.readouterr().err
    assert f"{setting}: '{start}' lacks the weights [transformer.h.0.attn.c_attn.weight]" in error
    assert not (tmp_path / "run").exists()


def test_weights_that_may_be_missing_are_the_same_in_policy_and_reference_and_each_run(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were drawn anew at each load, so the KL of the first step was not 0."""
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    more = torch.zeros(1, 32)
    rewrite(tmp_path / "policy", without("transformer.h.1.mlp.c_fc.weight"))
    rewrite(tmp_path / "policy", plus(v_head__summary__weight=more))
    settings = settings_in(tmp_path)
    settings["policy"]["allow_unmatched"] = ["*.c_fc.weight", "v_head.*"]
    settings["ppo"]["steps"] = 2
    config = str(write_config(tmp_path / "config.yaml", settings))
    for out in ("one", "two"):
        words = ["--config", config, "--output_dir", out]
        assert run_here("ppo", words, tmp_path, monkeypatch) == 0
    steps = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").open()]
    assert steps[0]["kl/ref"] == 0.0 and steps[1]["kl/ref"] != 0.0
    files = [(tmp_path / out / "policy" / WEIGHTS).read_bytes() for out in ("one", "two")]
    assert files[0] == files[1]
