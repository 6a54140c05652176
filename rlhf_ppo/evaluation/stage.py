"""The last stage: all models answer the held-out prompts, everything is judged and written."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_ppo.config import Config, correctness_source
from rlhf_ppo.config.reading import read_yaml, to_yaml
from rlhf_ppo.console import activity
from rlhf_ppo.data.prompts import EncodedPrompt, check_room, encode_prompts
from rlhf_ppo.errors import UserError
from rlhf_ppo.evaluation.frontier import (
    Frontier,
    Rows,
    best_of_path,
    ppo_path,
    read_history,
    summarise_frontier,
)
from rlhf_ppo.evaluation.heldout import numbers
from rlhf_ppo.evaluation.judge import Verdict, ask_judge, summarise_verdicts
from rlhf_ppo.evaluation.sides import Candidate, Evaluator, Side, SourceMoments
from rlhf_ppo.evaluation.solved import summarise_pass
from rlhf_ppo.evaluation.summary import Answers, Summary, summarise, write_samples
from rlhf_ppo.models.load import load_tokenizer, stop_token_ids
from rlhf_ppo.rollout.noise import derive_seed
from rlhf_ppo.stamps import FOLDERS, read_stamp
from rlhf_ppo.training.roles import load_other

BEST_OF = "best of n"  # purpose of the noise


@dataclass(frozen=True)
class Evaluation:
    """All that an evaluation has found."""

    answers: Answers
    summary: Summary
    frontier: dict[str, Any] | None  # None: neither path was asked for
    verdicts: list[Verdict]
    judge_failed: str | None  # why the judge's win rate is missing


def evaluate(
    evaluator: Evaluator, prompts: list[EncodedPrompt], moments: SourceMoments
) -> Evaluation:
    """Let all models answer, and compare them with the reference.

    Args:
        evaluator: models and scorers.
        prompts: all that are held out, by the reference's tokenizer.
        moments: what reward sources are normalised by.

    Raises:
        UserError: a model cannot be loaded or asked, or too many responses got no score.
    """
    config = evaluator.config
    answers = _answers(evaluator, prompts, moments)
    with activity("evaluation: intervals"):
        summary = summarise(config, answers)
    samples = config.evaluation.bootstrap_samples
    seed = derive_seed(config.seed, "bootstrap")
    frontier = None
    best = _best_of(evaluator, evaluator.reference(prompts), moments)
    correct = correctness_source(config.reward)
    if best is not None and correct is not None:
        # Without KL: those of the evaluation proper are enough.
        policy = replace(evaluator.policy(prompts), log_ratios=None)
        ours = _best_of(evaluator, policy, moments)
        assert ours is not None
        found = summarise_pass(ours, best, correct, config.evaluation.best_of, samples, seed)
        if found is not None:
            summary["pass_at_k"] = found
    ppo = _history(config, answers.policy)
    if best is not None or ppo:
        copies = config.evaluation.best_of
        path = None if best is None else best_of_path(best, copies)
        paths = Frontier(path, copies, ppo_path(ppo), correctness=correct is not None)
        with activity("evaluation: frontier"):
            frontier = summarise_frontier(paths, samples, seed)
    verdicts = _verdicts(evaluator, prompts, answers)
    judge, failed = config.evaluation.judge, None
    if judge is not None:
        try:
            summary["judge"] = summarise_verdicts(judge, verdicts, samples, seed)
        except UserError as error:  # told at the very end: all else is worth keeping
            failed = str(error)
    return Evaluation(answers, summary, frontier, verdicts, failed)


def write_evaluation(
    folder: Path, config: Config, prompts: list[EncodedPrompt], found: Evaluation
) -> None:
    """Fill a folder with `summary.json`, `samples.jsonl`, `frontier.json`, the judge's verdicts.

    `config.yaml` beside them says what they were made with: an evaluation can be made again with
    other settings than the run's.
    """
    correct = correctness_source(config.reward)
    asked = [item.prompt for item in prompts]
    write_samples(folder / "samples.jsonl", asked, found.answers, correct)
    _write_json(folder / "summary.json", found.summary)
    if found.frontier is not None:
        _write_json(folder / "frontier.json", found.frontier)
    if found.verdicts:
        lines = [json.dumps(asdict(verdict)) + "\n" for verdict in found.verdicts]
        (folder / "judge.jsonl").write_text("".join(lines), encoding="utf-8")
    text = to_yaml(config.model_copy(update={"resume": False}))
    (folder / "config.yaml").write_text(text, encoding="utf-8")


def _answers(evaluator: Evaluator, prompts: list[EncodedPrompt], moments: SourceMoments) -> Answers:
    config = evaluator.config.evaluation
    policy, reference = evaluator.policy(prompts), evaluator.reference(prompts)
    both = [evaluator.side(candidate, moments) for candidate in (policy, reference)]
    greedy: list[Side | None] = [None, None]
    if config.greedy:
        greedy = [evaluator.side(c.greedy(), moments) for c in (policy, reference)]
    models = {}
    for name, path in config.models.items():  # one after the other: they need not all fit
        candidate = _other(evaluator, f"evaluation.models.{name}", path, prompts)
        models[name] = {"sampled": evaluator.side(candidate, moments)}
        if config.greedy:
            models[name]["greedy"] = evaluator.side(candidate.greedy(), moments)
    return Answers(both[0], both[1], greedy[0], greedy[1], models)


def _other(
    evaluator: Evaluator, setting: str, path: str, prompts: list[EncodedPrompt]
) -> Candidate:
    """Another model with its own tokenizer, on the prompts that the reference is asked."""
    config, processes = evaluator.config, evaluator.processes
    tokenizer = load_tokenizer(path, setting)
    asked = [item.prompt for item in prompts]
    longest = 10**9  # tokens; which prompts are asked was decided by the reference's tokenizer
    own, _ = encode_prompts(asked, tokenizer, longest, setting)
    model = load_other(config, path, setting, processes)
    check_room(own, model.lm.config, config.rollout.max_new_tokens, setting)
    stop_ids = stop_token_ids(model.lm, tokenizer, config.rollout.stop_tokens)
    same = tokenizer.get_vocab() == evaluator.roles.tokenizer.get_vocab()
    comparable = same and all(a.ids == b.ids for a, b in zip(own, prompts, strict=True))
    name = setting.rpartition(".")[2]
    return evaluator.other(name, model, tokenizer, own, stop_ids, comparable=comparable)


def _best_of(evaluator: Evaluator, model: Candidate, moments: SourceMoments) -> Side | None:
    """`best_of` responses of a model to each of the first prompts."""
    settings = evaluator.config.evaluation
    if not settings.best_of:
        return None
    first = model.first(settings.best_of_prompts)
    first = replace(first, name=f"{first.name}, best of {settings.best_of}")
    return evaluator.side(first, moments, purpose=BEST_OF, copies=settings.best_of)


def _history(config: Config, policy: Side) -> list[Rows]:
    """The evaluations during the run that made the policy, and this one of its result."""
    folder = Path(config.output_dir)
    if config.evaluation.policy is not None or not _of_this_run(config, folder):
        return []
    history = read_history(folder / "heldout.jsonl")
    stamp = read_stamp(folder / FOLDERS["ppo"]) or {}
    last = int(stamp.get("steps", 0))
    # The best policy of a run is of a step that was evaluated.
    if history and stamp.get("save") == "last" and last > history[-1]["step"]:
        history.append({"step": last, **numbers(policy)})
    return history


def _of_this_run(config: Config, folder: Path) -> bool:
    """Whether the run's own evaluations asked the same prompts in the same way."""
    file = folder / "config.yaml"
    if not file.is_file():
        return False
    then, now = read_yaml(file), config.model_dump(mode="json")
    same = all(then.get(name) == now[name] for name in ("seed", "data", "rollout", "reward"))
    return same and then.get("evaluation", {}).get("gold") == config.evaluation.gold


def _verdicts(
    evaluator: Evaluator, prompts: list[EncodedPrompt], answers: Answers
) -> list[Verdict]:
    """Of the first prompts; each process asks for its share."""
    judge, processes = evaluator.config.evaluation.judge, evaluator.processes
    if judge is None:
        return []
    count = min(judge.prompts, len(prompts))
    mine = processes.share(count)
    asked = [item.prompt for item in prompts[mine]]
    with activity("evaluation: judge", len(asked)):
        found = ask_judge(
            judge,
            asked,
            answers.policy.texts[mine],
            answers.reference.texts[mine],
            allowed=int(judge.max_failed * count),
        )
    return processes.gather_list(found)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
