"""Sizes that follow from the settings: a pure function, shown before the first step."""

from dataclasses import dataclass

from rlhf_ppo.config import Config, PpoConfig, SupervisedConfig
from rlhf_ppo.errors import UserError


@dataclass(frozen=True)
class Plan:
    """What a PPO run will do, in numbers."""

    processes: int
    train_prompts: int
    heldout_prompts: int
    prompts_per_step: int
    responses_per_process: int  # the largest share
    samples_per_prompt: int
    minibatch_size: int  # responses an optimizer step, the smallest part
    optimizer_steps_per_step: int
    steps: int
    optimizer_steps: int
    episodes: int
    data_epochs: float
    max_response_tokens: int  # over the whole run

    def lines(self) -> list[tuple[str, str]]:
        """Name and value of each size, for a table."""
        return [
            ("processes", f"{self.processes}"),
            ("training prompts", f"{self.train_prompts}"),
            ("held-out prompts", f"{self.heldout_prompts}"),
            (
                "prompts a step",
                f"{self.prompts_per_step}, {self.samples_per_prompt} response(s) to each",
            ),
            ("responses a process", f"{self.responses_per_process} a step"),
            (
                "optimizer steps a step",
                f"{self.optimizer_steps_per_step} of {self.minibatch_size} responses",
            ),
            ("PPO steps", f"{self.steps} ({self.optimizer_steps} optimizer steps)"),
            ("responses", f"{self.episodes} ({self.data_epochs:.1f} passes over the prompts)"),
            ("response tokens", f"up to {self.max_response_tokens}"),
        ]


def training_tokens(ppo: PpoConfig, device: str, autocast: bool = False) -> int:
    """Tokens in one forward pass with gradients.

    On a CPU more than 512 is no faster and the activations only take memory (docs/performance.md),
    unless autocast converts all weights at each pass.

    Args:
        ppo: settings.
        device: a type, like "cpu".
        autocast: whether products are computed in half precision.
    """
    on_cpu = 1024 if autocast else 512
    return ppo.micro_batch_tokens or (on_cpu if device == "cpu" else 8192)


def judging_tokens(ppo: PpoConfig, device: str) -> int:
    """Tokens in one forward pass without gradients; `device` is a type, like "cpu"."""
    return ppo.judge_batch_tokens or (2048 if device == "cpu" else 32768)


def stage_micro_batch(stage: SupervisedConfig, section: str, processes: int) -> int:
    """Examples a forward pass of a supervised stage on one process.

    Raises:
        UserError: the batch cannot be split over micro-batches and processes.
    """
    micro = min(stage.micro_batch_size, max(1, stage.batch_size // processes))
    if stage.batch_size % (micro * processes):
        raise UserError(
            f"{section}.batch_size = {stage.batch_size} examples cannot be split into "
            f"micro-batches of {micro} ({section}.micro_batch_size) on {processes} process(es). "
            f"Choose a multiple of {micro * processes}."
        )
    return micro


def generated_batches(config: Config, prompts: int) -> int:
    """Batches of responses that an evaluation generates, one after the other.

    Args:
        config: settings.
        prompts: that are held out.
    """
    wanted, batch = config.evaluation, config.rollout.generation_batch_size
    sides = (2 + len(wanted.models)) * (2 if wanted.greedy else 1)
    best_of = wanted.best_of * min(wanted.best_of_prompts, prompts)
    return sides * -(-prompts // batch) + -(-best_of // batch)


def make_plan(config: Config, processes: int, train_prompts: int, heldout_prompts: int) -> Plan:
    """Derive the sizes of a run.

    Args:
        config: settings.
        processes: how many share the work.
        train_prompts, heldout_prompts: rows of the data sets.

    Raises:
        UserError: sizes that do not fit together; lists every problem with its remedy.
    """
    rollout, ppo = config.rollout, config.ppo
    responses = rollout.batch_size * rollout.samples_per_prompt
    sizes = f"rollout.batch_size = {rollout.batch_size}"
    if rollout.samples_per_prompt > 1:
        sizes += f" x rollout.samples_per_prompt = {rollout.samples_per_prompt}"
    smallest = responses // ppo.minibatches
    problems = []
    if ppo.minibatches > responses:
        problems.append(
            f"ppo.minibatches = {ppo.minibatches} parts of {sizes} would be empty; lower the one "
            "or raise the other"
        )
    elif smallest < processes:
        problems.append(
            f"a minibatch has {smallest} responses ({sizes} / ppo.minibatches = "
            f"{ppo.minibatches}) for {processes} processes; each needs at least one: raise "
            "rollout.batch_size or lower ppo.minibatches"
        )
    if rollout.batch_size > train_prompts:
        problems.append(
            f"rollout.batch_size = {rollout.batch_size} is more than the {train_prompts} prompts "
            "of data.prompts; lower it or give more prompts"
        )
    if heldout_prompts < processes:
        problems.append(
            f"data.heldout_prompts holds {heldout_prompts} prompts for {processes} processes; "
            "give at least one a process"
        )
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(f"the sizes do not fit together:\n{listed}")
    optimizer_steps_per_step = ppo.epochs * ppo.minibatches
    episodes = responses * ppo.steps
    return Plan(
        processes=processes,
        train_prompts=train_prompts,
        heldout_prompts=heldout_prompts,
        prompts_per_step=rollout.batch_size,
        responses_per_process=-(-responses // processes),
        samples_per_prompt=rollout.samples_per_prompt,
        minibatch_size=smallest,
        optimizer_steps_per_step=optimizer_steps_per_step,
        steps=ppo.steps,
        optimizer_steps=optimizer_steps_per_step * ppo.steps,
        episodes=episodes,
        data_epochs=rollout.batch_size * ppo.steps / train_prompts,
        max_response_tokens=episodes * rollout.max_new_tokens,
    )
