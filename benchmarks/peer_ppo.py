"""One run of TRL 1.12's PPO, the last: PEER/bin/python benchmarks/peer_ppo.py FOLDER.

Its trainer takes a reward model and no function: the function stands in for that model's call.
`num_mini_batches=1`, because TRL's minibatches add no optimizer steps.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import trl.experimental.ppo.ppo_trainer as module
from datasets import Dataset
from sentiment import sentiment
from tasks import Record, Task, read_prompts, read_task
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


def make_trainer(task: Task, record: Record) -> PPOTrainer:
    """The trainer with our task's numbers; all else is its default."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(task.model, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token
    policy, reference = (AutoModelForCausalLM.from_pretrained(task.model) for _ in range(2))
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(task.model, num_labels=1)
        for _ in range(2)
    )
    torch.nn.init.zeros_(value.score.weight)  # as ours: V starts at 0
    value.config.pad_token_id = tokenizer.pad_token_id
    use_function(reward, tokenizer)
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in read_prompts(task.prompts)]
    data = Dataset.from_list(rows)
    arguments = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=task.batch_size,
        local_rollout_forward_batch_size=task.batch_size,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=task.epochs,
        total_episodes=task.batch_size * task.steps,
        response_length=task.response_tokens,
        stop_token="eos",
        missing_eos_penalty=None,
        temperature=1.0,
        learning_rate=task.learning_rate,
        lr_scheduler_type="constant",
        kl_coef=task.beta,
        vf_coef=task.value_coefficient,
        seed=task.seed,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        gradient_checkpointing=False,
        num_sample_generations=0,
        disable_tqdm=True,
        logging_steps=1,
    )
    trainer = PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=data,
        eval_dataset=data.select(range(8)),
    )
    watch(trainer, policy, record, task)
    return trainer


def use_function(reward: torch.nn.Module, tokenizer: Any) -> None:
    """Let the reward model's score be the function's, of the response without its padding."""
    theirs = module.get_reward

    def get_reward(model: Any, ids: torch.Tensor, pad: int, context: int) -> Any:
        if getattr(model, "module", model) is not reward:
            return theirs(model, ids, pad, context)
        texts = tokenizer.batch_decode(ids[:, context:], skip_special_tokens=True)
        return None, torch.tensor(sentiment(texts, texts)), None

    module.get_reward = get_reward


def watch(trainer: PPOTrainer, policy: torch.nn.Module, record: Record, task: Task) -> None:
    """Write a line a step; count the optimizer's steps where they are made."""
    made = {"optimizer": 0, "steps": 0}
    optimizer = trainer.optimizer.optimizer
    step = optimizer.step

    def count(*arguments: Any, **options: Any) -> Any:
        made["optimizer"] += 1
        return step(*arguments, **options)

    def log(metrics: dict[str, float], *_: Any, **__: Any) -> None:
        made["steps"] += 1
        measured = {"score": metrics["objective/scores"], "kl": metrics["objective/kl"]}
        tokens = task.batch_size * task.response_tokens  # it computes them all, ended or not
        record.add(measured, made["optimizer"], tokens)
        record.keep(made["steps"], policy)

    optimizer.step = count
    trainer.log = log


if __name__ == "__main__":
    place = Path(sys.argv[1])
    settings = read_task(place / "task.json")
    make_trainer(settings, Record(place, settings)).train()
