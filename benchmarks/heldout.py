"""J of the policies that a run of either side left, on held-out prompts, with the same noise.

    python benchmarks/heldout.py FOLDER...

J = score - beta KL: what all sides maximise, mean over one response to each prompt. Writes
`heldout.jsonl` beside the policies, one line each, which it then removes.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from sentiment import sentiment
from tasks import Task, read_prompts, read_task

from rlhf_ppo.command_line import run_script
from rlhf_ppo.config import Config
from rlhf_ppo.data.prompts import EncodedPrompt, Prompt
from rlhf_ppo.data.template import encode_prompt
from rlhf_ppo.models.forward import lay_out
from rlhf_ppo.models.load import load_causal_lm, load_tokenizer, stop_token_ids
from rlhf_ppo.models.policy import FrozenPolicy
from rlhf_ppo.rollout.collect import response_texts
from rlhf_ppo.rollout.generation import SamplingSettings, generate
from rlhf_ppo.rollout.noise import sampling_noise

SEED = 12345  # of the noise: no training run has it


def measure(task: Task, policies: Sequence[str]) -> list[dict[str, float]]:
    """Score, KL to the start and J of each policy, means over the held-out prompts."""
    tokenizer = load_tokenizer(task.model, "policy.path")
    texts = read_prompts(task.heldout)
    prompts = [
        EncodedPrompt(Prompt(row, f"row {row}", text, {}), tuple(encode_prompt(tokenizer, text)))
        for row, text in enumerate(texts)
    ]
    rows = list(range(len(prompts)))
    noise = sampling_noise(SEED, "heldout", 0, rows, task.response_tokens)
    dtype = Config.model_validate({"output_dir": "unused", "policy": {"path": task.model}}).policy
    reference = FrozenPolicy(load_causal_lm(task.model, dtype.dtype, "policy.path"))
    found = []
    for place in policies:
        policy = FrozenPolicy(load_causal_lm(place, dtype.dtype, "policy"))
        stops = stop_token_ids(policy.lm, tokenizer, ())
        sampling = SamplingSettings(task.response_tokens, 1.0, stops, 256)
        with torch.no_grad():
            tokens = generate(policy.lm, prompts, noise, sampling).tokens
            layout = lay_out(tokens)
            kl = (policy(layout, 1.0) - reference(layout, 1.0)).sum(dim=1)
        answers = response_texts(tokenizer, tokens)
        scores = torch.tensor(sentiment(texts, answers))
        j = float((scores - task.beta * kl).mean())
        found.append({"score": float(scores.mean()), "kl": float(kl.mean()), "j": j})
    return found


def main(arguments: Sequence[str]) -> None:
    """Measure each run's policies once; what is measured is removed."""
    torch.set_num_threads(1)
    for folder in map(Path, arguments):
        places = sorted((folder / "policies").glob("*"))
        costs = [json.loads((place / "cost.json").read_text(encoding="utf-8")) for place in places]
        found = measure(read_task(folder / "task.json"), [str(place) for place in places])
        lines = [json.dumps(cost | row) + "\n" for cost, row in zip(costs, found, strict=True)]
        (folder / "heldout.jsonl").write_text("".join(lines), encoding="utf-8")
        shutil.rmtree(folder / "policies")


if __name__ == "__main__":
    run_script(main)
