"""Signs of trouble: each looks at the newest steps and says the numbers, if they are wrong."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean, median, variance

Line = Mapping[str, float]

SHORT, WINDOW, LONG = 3, 10, 20  # steps of a mean; a single step is noise
START = 3  # steps that say where a run came from
KL_A_TOKEN, KL_A_RESPONSE = 1.0, 10.0
RATIO, SAMPLER_GAP = 0.001, 0.5
ENTROPY_LEFT, ENTROPY_RISE = 0.1, 1.5
EXPLAINED, EXPLAINED_FROM = 0.05, 40
CLIPPED = 0.3
LENGTH = 2.0
STOPPED = 0.5
SPIKE = 20.0
IDENTICAL = 0.5
GOLD_FALL, ERRORS, SCORE_FALL = 0.2, 4.0, 0.5


class Seen:
    """What the checks look at: the newest lines, the first ones, and the best so far."""

    def __init__(self) -> None:
        self.lines: deque[Line] = deque(maxlen=50)
        self.first: list[Line] = []
        self.best_gold: list[Line] = []  # the window with the highest mean so far
        self.best_score: list[Line] = []

    def add(self, line: Line) -> None:
        """Take in the next step."""
        self.lines.append(line)
        if len(self.first) < START:
            self.first.append(line)
        self.best_gold = self._better(self.best_gold, "gold/mean")
        self.best_score = self._better(self.best_score, "score/mean")

    def last(self, count: int, key: str) -> list[float]:
        """The newest `count` values, [] unless all of them are there and finite."""
        values = [line.get(key, math.nan) for line in list(self.lines)[-count:]]
        return values if len(values) == count and all(map(math.isfinite, values)) else []

    def now(self, key: str) -> float:
        """Of the newest step, NaN where it has no such number."""
        return self.lines[-1].get(key, math.nan)

    def start(self, key: str) -> float:
        """Mean of the first steps, NaN where they have no such number."""
        return fmean(line.get(key, math.nan) for line in self.first)

    def _better(self, best: list[Line], key: str) -> list[Line]:
        values = self.last(WINDOW, key)
        if values and (not best or fmean(values) > _mean(best, key)):
            return list(self.lines)[-WINDOW:]
        return best


def _mean(lines: Sequence[Line], key: str) -> float:
    return fmean(line[key] for line in lines)


def kl_runaway(seen: Seen) -> str | None:
    """The policy is far from the reference, by nats a response and a token."""
    kls, lengths = seen.last(SHORT, "kl/ref"), seen.last(SHORT, "response/length")
    if not kls or not lengths:
        return None
    kl, a_token = fmean(kls), fmean(kls) / max(fmean(lengths), 1.0)
    if kl > KL_A_RESPONSE and a_token > KL_A_TOKEN:
        return (
            f"The policy has run far from the reference: {kl:.1f} nats a response, "
            f"{a_token:.2f} a token."
        )
    return None


def ratio(seen: Seen) -> str | None:
    """The ratio before the first optimizer step is not 1, beyond rounding."""
    error, gap = seen.now("policy/ratio_first_error"), seen.now("policy/sampler_gap")
    # Half precision rounds the two passes differently; the sampler's gap shows how much.
    limit = max(RATIO, 3 * gap) if math.isfinite(gap) and gap < SAMPLER_GAP else RATIO
    if error > limit:
        return (
            f"Before the first optimizer step the probability ratio is {error:.3g} away from 1 "
            f"(up to {limit:.2g} would be rounding)."
        )
    return None


def sampler(seen: Seen) -> str | None:
    """Other probabilities were sampled from than are trained."""
    gap = seen.now("policy/sampler_gap")
    if gap > SAMPLER_GAP:
        return f"Sampler and trainer disagree about a token by {gap:.2f} nats."
    return None


def entropy_collapse(seen: Seen) -> str | None:
    """Hardly any entropy is left."""
    last, start = seen.last(SHORT, "policy/entropy"), seen.start("policy/entropy")
    if last and fmean(last) < ENTROPY_LEFT * start:
        return f"The policy's entropy fell from {start:.3g} to {fmean(last):.3g} nats a token."
    return None


def entropy_rise(seen: Seen) -> str | None:
    """The policy gets more random instead of less."""
    last, start = seen.last(SHORT, "policy/entropy"), seen.start("policy/entropy")
    if last and fmean(last) > ENTROPY_RISE * start and fmean(last) > start + 0.1:
        return f"The policy's entropy rose from {start:.3g} to {fmean(last):.3g} nats a token."
    return None


def values(seen: Seen) -> str | None:
    """The value function explains nothing."""
    last = seen.last(LONG, "value/explained_variance")
    if last and seen.now("step") >= EXPLAINED_FROM and fmean(last) < EXPLAINED:
        return (
            f"The value function explains {fmean(last):.0%} of the returns' variance (mean of "
            f"{LONG} steps); advantages are little better than returns minus their mean."
        )
    return None


def clip_high(seen: Seen) -> str | None:
    """Much of the update is clipped away."""
    last = seen.last(SHORT, "policy/clip_fraction")
    if last and fmean(last) > CLIPPED:
        return f"A clip decided the loss of {fmean(last):.0%} of the tokens."
    return None


def clip_zero(seen: Seen) -> str | None:
    """Nothing is ever clipped, though something could be."""
    last, kls = seen.last(WINDOW, "policy/clip_fraction"), seen.last(WINDOW, "kl/update")
    several = all(count > 1 for count in seen.last(WINDOW, "policy/optimizer_steps"))
    # While the values warm up, and where a rollout gets one step, nothing could be clipped.
    if last and kls and several and max(last) == 0 and min(abs(kl) for kl in kls) > 0:
        return f"No token was clipped in {WINDOW} steps; KL per update {fmean(kls):.2g} nats."
    return None


def length(seen: Seen) -> str | None:
    """Responses got much longer or shorter."""
    last, start = seen.last(SHORT, "response/length"), seen.start("response/length")
    if last and start and not start / LENGTH <= fmean(last) <= start * LENGTH:
        return f"Responses went from {start:.0f} to {fmean(last):.0f} tokens."
    return None


def stops(seen: Seen) -> str | None:
    """Most responses are cut."""
    last = seen.last(SHORT, "response/stopped")
    if last and fmean(last) < STOPPED:
        return f"Only {fmean(last):.0%} of the responses ended by themselves; the rest were cut."
    return None


def identical(seen: Seen) -> str | None:
    """The samples of a prompt are all alike."""
    last = seen.last(SHORT, "group/identical")
    if last and fmean(last) > IDENTICAL:
        return f"For {fmean(last):.0%} of the prompts all samples are the same text."
    return None


def equal_scores(seen: Seen) -> str | None:
    """The samples of a prompt differ, their scores do not."""
    last, same = seen.last(SHORT, "group/equal_scores"), seen.last(SHORT, "group/identical")
    if last and same and fmean(last) > IDENTICAL and fmean(same) <= IDENTICAL:
        return (
            f"For {fmean(last):.0%} of the prompts all samples have the same score, though their "
            "texts differ; such a group teaches rloo and grpo nothing."
        )
    return None


def skipped(seen: Seen) -> str | None:
    """An optimizer step was skipped."""
    if seen.now("update/skipped") > 0:
        return (
            f"{seen.now('update/skipped'):.0f} optimizer steps of this PPO step were skipped: loss "
            "or gradient was not finite."
        )
    return None


def dropped(seen: Seen) -> str | None:
    """A response got no score."""
    if seen.now("reward/dropped") > 0:
        return f"{seen.now('reward/dropped'):.0f} responses left the batch without a score."
    return None


def gradient(seen: Seen) -> str | None:
    """A gradient out of all proportion."""
    before = [line.get("grad_norm", math.nan) for line in list(seen.lines)[:-1]]
    before = [norm for norm in before if math.isfinite(norm)]
    norm = seen.now("grad_norm")
    if len(before) >= WINDOW and 0 < SPIKE * median(before) < norm:
        return f"The gradient's norm is {norm:.3g}; {median(before):.3g} was usual before."
    return None


def hacking(seen: Seen) -> str | None:
    """Gold falls while the score holds or rises."""
    now = list(seen.lines)[-WINDOW:]
    if not seen.best_gold or not seen.last(WINDOW, "gold/mean"):
        return None
    best, last = ([line["gold/mean"] for line in part] for part in (seen.best_gold, now))
    fall, rise = fmean(best) - fmean(last), fmean(best) - seen.start("gold/mean")
    error = math.sqrt((variance(best) + variance(last)) / WINDOW)
    score, then = _mean(now, "score/mean"), _mean(seen.best_gold, "score/mean")
    if fall > ERRORS * error and fall > GOLD_FALL * abs(rise) and score >= then:
        return (
            f"The gold score fell from {fmean(best):.2f} to {fmean(last):.2f} while the score that "
            f"the policy is paid by went from {then:.2f} to {score:.2f}: the reward is being "
            "cheated."
        )
    return None


def score_fell(seen: Seen) -> str | None:
    """What had been learnt is lost."""
    last = seen.last(WINDOW, "score/mean")
    if not last or not seen.best_score:
        return None
    best = _mean(seen.best_score, "score/mean")
    if best - fmean(last) > SCORE_FALL * _mean(seen.best_score, "score/std"):
        return f"The score fell from {best:.2f} to {fmean(last):.2f} (means of {WINDOW} steps)."
    return None
