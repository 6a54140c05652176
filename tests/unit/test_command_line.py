"""From YAML and dotted overrides to settings, or one message with every error."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers import make_config

from rlhf_ppo.command_line import load_config, setting_names, to_yaml
from rlhf_ppo.config import Config
from rlhf_ppo.errors import GuardError, UserError
from rlhf_ppo.script import run_script

BASE = "output_dir: runs/x\nrollout: {batch_size: 8}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(BASE, encoding="utf-8")
    return path


def load(file: Path, *words: str) -> Config:
    return load_config(["--config", str(file), *words], Path("default.yaml"))


def message(file: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        load(file, *words)
    return str(caught.value)


def test_overrides_stand_above_the_file_and_leave_their_neighbours(file: Path) -> None:
    config = load(file, "--rollout.temperature", "0.7", "--ppo.learning_rate=1e-5")
    assert config.rollout.temperature == 0.7
    assert config.rollout.batch_size == 8
    assert config.ppo.learning_rate == 1e-5
    assert load(file, "--rollout.batch_size", "4").rollout.batch_size == 4


def test_a_bare_command_reads_the_default_file(file: Path) -> None:
    assert load_config([], file).rollout.batch_size == 8


def test_null_clears_a_value_and_a_section(file: Path) -> None:
    file.write_text(BASE + "lora: {rank: 4}\nppo: {max_grad_norm: 2}\n", encoding="utf-8")
    assert load(file).lora is not None
    assert load(file, "--lora", "null").lora is None
    assert load(file, "--ppo.max_grad_norm", "null").ppo.max_grad_norm is None


def test_an_override_opens_a_section_that_the_file_leaves_out(file: Path) -> None:
    lora = load(file, "--lora.rank", "4").lora
    assert lora is not None and lora.rank == 4 and lora.save == "merged"


@pytest.mark.parametrize(
    ("words", "section", "name", "value"),
    [
        (["--reward.missing_stop_score", "-1.5"], "reward", "missing_stop_score", -1.5),
        (["--reward.missing_stop_score=-1"], "reward", "missing_stop_score", -1.0),
        (["--policy.path", "runs/a=b: c"], "policy", "path", "runs/a=b: c"),
    ],
)
def test_awkward_values_arrive_as_they_are(
    file: Path, words: list[str], section: str, name: str, value: object
) -> None:
    assert getattr(getattr(load(file, *words), section), name) == value


def test_lists_are_given_in_yaml(file: Path) -> None:
    config = load(file, "--rollout.stop_tokens", "[<|end|>, <|eot|>]", "--logging.trackers", "[]")
    assert config.rollout.stop_tokens == ("<|end|>", "<|eot|>")
    assert config.logging.trackers == ()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("ppo.steps", "true"),
        ("ppo.steps", "2.5"),
        ("ppo.steps", "2.0"),
        ("ppo.steps", "0"),
        ("ppo.steps", "-3"),
        ("ppo.steps", "many"),
        ("ppo.learning_rate", "true"),
        ("ppo.learning_rate", "0"),
        ("ppo.learning_rate", ".inf"),
        ("ppo.learning_rate", ".nan"),
        ("rollout.temperature", "0"),
        ("advantage.gamma", "1.1"),
        ("kl.estimator", "k4"),
        ("kl.beta", "-0.1"),
        ("resume", "maybe"),
        ("rollout.stop_tokens", "word"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_and_named(
    file: Path, setting: str, value: str
) -> None:
    found = message(file, f"--{setting}", value)
    assert setting in found
    assert "command line" in found
    assert "1 problem in" in found


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("ppo.learning_rat", "ppo.learning_rate"),
        ("ppo.stepps", "ppo.steps"),
        ("learning_rate", "ppo.learning_rate"),
        ("temperature", "rollout.temperature"),
        ("rollout.temprature", "rollout.temperature"),
    ],
)
def test_a_typo_on_the_command_line_gets_the_nearest_name(
    file: Path, typo: str, meant: str
) -> None:
    found = message(file, f"--{typo}", "1")
    assert f"--{typo}: no such setting." in found
    name = meant.rsplit(".", 1)[-1]
    assert "Did you mean" in found and name in found


def test_a_typo_in_the_file_gets_file_and_nearest_name(file: Path) -> None:
    file.write_text(BASE + "ppo: {stepps: 3}\n", encoding="utf-8")
    found = message(file)
    assert "ppo.stepps" in found and str(file) in found and "Did you mean ppo.steps?" in found


def test_nonsense_gets_a_pointer_to_the_help(file: Path) -> None:
    assert "See --help" in message(file, "--qqqqqq", "1")


def test_several_errors_stand_in_one_message(file: Path) -> None:
    file.write_text("output_dir: x\nseed: -1\nkl: {bta: 2}\n", encoding="utf-8")
    found = message(file, "stray", "--ppo.steps", "0", "--nonsense", "1", "--kl.beta")
    for part in ("6 problems", "seed", "kl.bta", "'stray'", "ppo.steps", "nonsense", "--kl.beta"):
        assert part in found


def test_a_missing_file_and_a_missing_setting_say_what_to_do(tmp_path: Path) -> None:
    assert "nowhere.yaml" in message(tmp_path / "nowhere.yaml")
    empty = tmp_path / "empty.yaml"
    empty.write_text("", encoding="utf-8")
    assert "output_dir: missing" in message(empty)


@pytest.mark.parametrize(
    ("text", "part"),
    [("a: [1\n", "line 2"), ("- 1\n- 2\n", "must hold settings"), ("a: 'x", "line")],
)
def test_broken_yaml_names_the_file_and_the_line(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    found = message(path)
    assert str(path) in found and part in found


TOGETHER = [
    ("--reward.missing_stop_penalty 1 --reward.missing_stop_score -1", "two rules"),
    ("--reward.length_free_tokens 4", "reward.length_free_tokens = 4 has no effect"),
    ("--reward.normalization_from running", "reward.normalization = none"),
    ("--kl.controller target --kl.beta 0", "kl.controller = target: a controller multiplies"),
    ("--kl.controller adaptive --kl.beta 0", "kl.controller = adaptive: a controller"),
    (
        "--kl.controller adaptive --kl.horizon 12 --rollout.batch_size 64",
        "kl.horizon = 12 with 64 responses a step",
    ),
    ("--advantage.kind rloo --advantage.value_lam 1", "advantage.value_lam = 1.0 has no effect"),
    ("--advantage.kind n_step --advantage.n 2 --advantage.length_alpha 1", "length_alpha = 1.0"),
    ("--advantage.kind n_step", "advantage.n: missing"),
    ("--advantage.n 3", "advantage.n = 3 has no effect with advantage.kind = gae"),
    ("--advantage.scale_groups false", "advantage.scale_groups = false has no effect"),
    (
        "--advantage.kind grpo --advantage.gamma 0.9 --rollout.samples_per_prompt 2",
        "advantage.gamma = 0.9 with advantage.kind = grpo",
    ),
    ("--advantage.kind rloo", "rollout.samples_per_prompt = 1 with advantage.kind = rloo"),
    ("--advantage.kind reinforce_pp --advantage.whiten false", "whitens by definition"),
    ("--advantage.kind reward_to_go --value.model policy", "would load a model for nothing"),
    ("--value.updates 2", "value.updates = 2 with value.model = shared"),
    ("--ppo.objective surrogate --ppo.dual_clip 3", "ppo.dual_clip = 3.0 has no effect"),
    ("--ppo.objective kl_penalty --ppo.clip_range_high 0.3", "ppo.clip_range_high = 0.3 has no"),
    ("--ppo.penalty_target 0.1", "ppo.penalty_target = 0.1 has no effect"),
    ("--guard.action rollback --checkpoint.every 0", "there would be nothing to go back to"),
    ("--guard.action rollback --checkpoint.keep 1", "checkpoint.keep = 1"),
    ("--guard.max_rollbacks 2", "guard.max_rollbacks = 2 has no effect"),
    ("--guard.learning_rate_factor 0.1", "guard.learning_rate_factor = 0.1 has no effect"),
    ("--kl.controller target --guard.max_kl 6", "guard.max_kl = 6.0 with kl.target = 6.0"),
    ("--checkpoint.save best --evaluation.every 0", "checkpoint.save = best with evaluation.every"),
    ("--ptx.coefficient 0", "ptx.coefficient (command line): 0 should be greater than 0"),
    ("--ppo.objective policy_gradient --ppo.epochs 2", "ppo.epochs = 2 and ppo.minibatches = 1"),
]


@pytest.mark.parametrize(("words", "part"), TOGETHER)
def test_settings_that_contradict_one_another_are_named_with_their_values(
    file: Path, words: str, part: str
) -> None:
    found = message(file, *words.split())
    assert part in found
    assert str(file) in found
    assert len(found) < 600  # not the whole section


def test_all_contradictions_stand_in_one_message(file: Path) -> None:
    found = message(file, "--advantage.n", "3", "--ppo.penalty_target", "0.1", "--kl.beta", "0")
    assert "2 problems" in found
    assert "advantage.n = 3" in found and "ppo.penalty_target = 0.1" in found


def test_print_config_round_trips(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load(file, "--print_config", "--ppo.steps", "3", "--lora.rank", "2")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    again = file.with_name("again.yaml")
    again.write_text(printed, encoding="utf-8")
    config = load(again)
    assert config == load(file, "--ppo.steps", "3", "--lora.rank", "2")
    assert to_yaml(config) == printed


def test_help_lists_every_setting(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load(file, "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    missing = [name for name in setting_names() if f"--{name} " not in text]
    assert missing == []


def test_every_setting_is_documented() -> None:
    undocumented = []

    def walk(model: type, prefix: str) -> None:
        from rlhf_ppo.config.reading import section_of

        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            section = section_of(field.annotation)
            if section is not None:
                walk(section, f"{prefix}{name}.")
            elif not field.description:
                undocumented.append(prefix + name)

    walk(Config, "")
    assert undocumented == []


def test_settings_cannot_be_changed_after_the_start() -> None:
    with pytest.raises(ValueError, match="frozen"):
        make_config().ppo.steps = 3  # type: ignore[misc]


def test_the_yaml_of_a_config_reads_back_as_the_same_config() -> None:
    config = make_config(
        sft={}, reward_model={"init_from": "a/b"}, rollout={"stop_tokens": ["<|x|>", "é"]}
    )
    assert Config.model_validate(yaml.safe_load(to_yaml(config))) == config


def test_a_user_error_is_one_message_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: object) -> None:
        raise UserError("the cat is on the keyboard")

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip() == "error: the cat is on the keyboard"


def test_a_run_that_the_guard_stopped_says_why_and_exits_with_3(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main(_: object) -> None:
        raise GuardError("after step 7 of 9, the cat is on the keyboard")

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert stop.value.code == 3
    assert capsys.readouterr().err.strip().startswith("stopped: after step 7")


def test_a_config_that_extends_another_holds_what_differs(file: Path) -> None:
    middle, top = file.with_name("middle.yaml"), file.parent / "more" / "top.yaml"
    top.parent.mkdir()
    middle.write_text("extends: run.yaml\nppo: {epochs: 7, steps: 8}\n", encoding="utf-8")
    top.write_text("extends: ../middle.yaml\nppo: {steps: 9}\n", encoding="utf-8")
    wanted = load(file, "--ppo.epochs", "7", "--ppo.steps", "9")
    assert load(top) == wanted
    assert load(top, "--ppo.steps", "3").ppo.steps == 3


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("extends: other.yaml\n", "other.yaml: cannot read"),
        ("extends: top.yaml\n", "leads back here"),
        ("extends: [run.yaml]\n", "extends must name one YAML file"),
        ("extends: run.yaml\nppo: {stepps: 1}\n", "Did you mean ppo.steps?"),
    ],
)
def test_an_extension_that_leads_nowhere_is_refused(file: Path, text: str, part: str) -> None:
    top = file.with_name("top.yaml")
    top.write_text(text, encoding="utf-8")
    assert part in message(top)


SHIPPED = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize(
    "path", [path for path in SHIPPED if path.parent.name != "accelerate"], ids=lambda p: p.name
)
def test_every_shipped_config_is_sound_and_says_what_it_is(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
    load_config(["--config", str(path)], path)


def test_control_c_outside_a_run_promises_no_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The story: Ctrl-C in reward_server.py said to go on from the last checkpoint."""

    def main(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "\ninterrupted.\n"


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    def main(_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_script(main)


@pytest.mark.parametrize("word", ["2026-11-21", "123", "1e5", "yes", "runs/a: b"])
def test_words_stay_words_though_yaml_would_read_more_into_them(file: Path, word: str) -> None:
    assert load(file, "--output_dir", word).output_dir == word


def test_mixed_precision_no_is_not_read_as_false(file: Path) -> None:
    assert load(file, "--hardware.mixed_precision", "no").hardware.mixed_precision == "no"
    file.write_text(BASE + "hardware: {mixed_precision: no}\n", encoding="utf-8")
    assert load(file).hardware.mixed_precision == "no"


def test_resume_may_stand_alone_as_a_switch(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("output_dir: x\n", encoding="utf-8")
    assert load_config(["--config", str(config), "--resume", "--seed", "3"], config).resume is True
    assert load_config(["--config", str(config), "--seed", "3", "--resume"], config).resume is True
    assert load_config(["--config", str(config), "--resume", "false"], config).resume is False
