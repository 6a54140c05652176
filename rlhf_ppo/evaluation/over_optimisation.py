"""Where more optimisation of the score begins to cost gold: the forms of Gao et al. 2023."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_ppo.evaluation.statistics import Estimate, flip_test, resampled_means
from rlhf_ppo.proportions import LEVEL

Form = Literal["d(alpha - beta d)", "d(alpha - beta log d)"]
FORMS: dict[str, Form] = {"best_of_n": "d(alpha - beta d)", "ppo": "d(alpha - beta log d)"}
FEWEST = 3  # points beyond the reference; two would be met by any such curve
FOLLOWED = 0.8  # share of the points' variance that a curve must explain
HELD = 0.8  # share of its largest KL that a path must still have at its end
SMALLEST = 1e-6  # nats: estimates of a KL near 0 may be negative


@dataclass(frozen=True)
class Path:
    """Points of one way to optimise, measured on the same P prompts; the first is the reference."""

    kl: Tensor  # (P, K) nats a response
    score: Tensor  # (P, K) reward units
    gold: Tensor | None  # (P, K) gold units
    steps: list[int] | None = None  # PPO steps of the K points


@dataclass(frozen=True)
class Found:
    """What a path says of over-optimisation."""

    turning_point: dict[str, Any]  # as `frontier.json` holds it
    fits: dict[str, Any] | None


def turning_point(path: Path, form: Form, samples: int, seed: int) -> Found:
    """The maximum of gold along a path, if a rise and a fall after it stand out from the noise.

    Whether it rose and fell is asked of the measured points alone: one of them must lie above the
    reference and above the last point, all these differences in one simultaneous 95 % band (the
    bootstrap of the largest studentised one), since the best of many points looks good by chance;
    and an exact test of all of them together must say so too, since a bootstrap of the few prompts
    whose gold changed at all sees too little noise (`flip_test`).

    Where it turned: with d the root of the KL, the gain over the reference is fitted by `form`
    (best-of-n: a parabola, PPO: a logarithm; Gao et al. 2023), by least squares with each point
    weighed by one over its bootstrap variance; each resample of the prompts is fitted again, and
    intervals are percentiles over these fits. If the curve does not follow the points, or the KL
    came back on the way so that gold is no function of it, the best measured point is told instead
    and no curve is fitted.

    Args:
        path: the points.
        form: of the curve.
        samples: resamples.
        seed: of the resampling.
    """
    if path.gold is None:
        return _nothing("no gold scorer, so the score cannot be held against anything")
    prompts, points = path.kl.shape
    if points - 1 < FEWEST or prompts < 2:
        return _nothing(
            f"too little is measured: {max(0, points - 1)} points beyond the reference, "
            f"{prompts} prompts; a curve needs {FEWEST} points"
        )
    measured = _Measured(path, path.gold, samples, seed)
    change = _words(measured.change())
    if not measured.rose:
        return _nothing(f"no rise of gold can be told from noise (change at the end {change})")
    if not measured.fell:
        return _nothing(
            f"gold rises, and no fall after it can be told from noise (change at the end {change})"
        )
    curves = {
        name: _Curve(path.kl, values, form, samples, seed)
        for name, values in (("score", path.score), ("gold", path.gold))
    }
    gold = curves["gold"]
    back = _turned_back(path.kl.mean(dim=0), path.steps)
    if back is not None or not gold.follows():
        why = back or f"{form}, d the root of the KL, does not follow these points"
        return _found(measured.turn(), None, why)
    turn: dict[str, Any] = {"kl": gold.peak_kl()}
    if path.steps is not None:
        turn["step"] = gold.peak_step(path.steps)
    turn |= {"gold": gold.peak_value(), "fall": measured.fall()}
    fits = {
        name: {"alpha": alpha, "beta": beta, "form": form}
        for name, curve in curves.items()
        for alpha, beta in [curve.fitted[0].tolist()]
    }
    return _found(turn, fits, None)


def _found(turn: dict[str, Any], fits: dict[str, Any] | None, why: str | None) -> Found:
    where = f"{_words(turn['kl'])} nats"
    if "step" in turn:
        where += f", step {_words(turn['step'], 0)}"
    text = (
        f"gold is highest at {where}: {_words(turn['gold'])}; by the last point it has fallen by "
        f"{_words(turn['fall'])}"
    )
    if why is not None:
        text += f" (as measured; no curve is fitted: {why})"
    return Found({"found": True} | turn | {"text": text}, fits)


class _Measured:
    """The points as they are: row 0 are the means, the others those of the resamples."""

    def __init__(self, path: Path, gold: Tensor, samples: int, seed: int) -> None:
        data = gold.double()
        self.means = torch.cat([data.mean(dim=0)[None], resampled_means(data, samples, seed)])
        self.kl = path.kl.double().mean(dim=0)
        self.steps = path.steps
        inner = self.means[:, 1:-1]
        contrasts = _contrasts(self.means)
        self.error = contrasts[1:].std(dim=0) + 1e-12
        self.width = float(
            ((contrasts[1:] - contrasts[0]).abs() / self.error).amax(1).quantile(0.95)
        )
        above = contrasts[0] - self.width * self.error > 0
        above &= flip_test(_contrasts(data), seed) < LEVEL
        count = inner.shape[1]
        rises, falls = above[:count], above[count : 2 * count]
        self.rose = bool(rises.any()) or bool(above[-1])
        self.fell = bool((rises & falls).any())
        self.peak = 1 + int(inner[0].argmax())

    def change(self) -> Estimate:
        """From the reference to the last point."""
        return _percentiles(self.means[:, -1] - self.means[:, 0])

    def fall(self) -> Estimate:
        """From the best point to the last one, within the simultaneous band."""
        value = float(self.means[0, self.peak] - self.means[0, -1])
        half = self.width * float(self.error[self.means.shape[1] - 2 + self.peak - 1])
        return {"mean": value, "low": value - half, "high": value + half}

    def turn(self) -> dict[str, Any]:
        """The best point, within all that may hold the maximum.

        These are the points that are best in a resample, and one more on each side, since nothing
        was measured between two points.
        """
        best = _percentiles(self.means.argmax(dim=1).double())
        low, high = max(0, round(best["low"]) - 1), min(len(self.kl), round(best["high"]) + 2)

        def within(values: Tensor) -> Estimate:
            near = values[low:high]
            peak = float(values[self.peak])
            return {"mean": peak, "low": float(near.min()), "high": float(near.max())}

        turn: dict[str, Any] = {"kl": within(self.kl)}
        if self.steps is not None:
            turn["step"] = within(torch.tensor(self.steps, dtype=torch.float64))
        return turn | {"gold": _percentiles(self.means[:, self.peak]), "fall": self.fall()}


def _contrasts(points: Tensor) -> Tensor:
    """Each inner point over the first and over the last, and the last over the first: (S, 2K - 3).

    Args:
        points: (S, K).
    """
    first, inner, last = points[:, :1], points[:, 1:-1], points[:, -1:]
    return torch.cat([inner - first, inner - last, last - first], dim=1)


def _turned_back(kl: Tensor, steps: list[int] | None) -> str | None:
    """What is to be said of a path whose last KL is well below its largest one."""
    largest = int(kl.argmax())
    if steps is None or float(kl[-1]) >= HELD * float(kl[largest]):
        return None
    return (
        f"the KL went to {float(kl[largest]):.2f} nats at step {steps[largest]} and came back to "
        f"{float(kl[-1]):.2f}, so gold is no curve over it"
    )


class _Curve:
    """One quantity along a path, fitted once to the data (row 0) and once to each resample."""

    def __init__(self, kl: Tensor, values: Tensor, form: Form, samples: int, seed: int) -> None:
        count = kl.shape[1]
        data = torch.cat([kl, values], dim=1).double()
        means = torch.cat([data.mean(dim=0)[None], resampled_means(data, samples, seed)])
        self.form = form
        self.d = means[:, 1:count].clamp(min=SMALLEST).sqrt()  # (1 + samples, K - 1)
        self.start = means[:, count]
        self.gain = means[:, count + 1 :] - self.start[:, None]
        variance = self.gain[1:].var(dim=0)
        self.weights = 1 / variance.clamp(min=float(variance.max()) * 1e-4 + 1e-12)
        self.fitted = self._fit(self.weights)
        self.top = self._top()

    def follows(self) -> bool:
        """Whether the curve tells the points' story: their variance, a rise, a fall after it."""
        rest = (self.gain[0] - self._at(self.d)[0]).square()
        spread = (self.gain[0] - self.gain[0].mean()).square()
        explained = 1 - float((self.weights * rest).sum() / (self.weights * spread).sum())
        slope = _percentiles(self._slope(self.d.amax(dim=1)))
        # The many points of a long fall would outvote a short rise.
        best = self.gain[0].argmax()
        sees_rise = float(self._at(self.d)[0, best]) >= float(self.gain[0, best]) / 2
        return explained >= FOLLOWED and sees_rise and slope["high"] < 0

    def peak_kl(self) -> Estimate:
        """KL at the maximum."""
        return _percentiles(self.top.square())

    def peak_value(self) -> Estimate:
        """The quantity at the maximum of the curve."""
        return _percentiles(self.start + self._at(self.top))

    def peak_step(self, steps: list[int]) -> Estimate:
        """PPO step at which d reaches the maximum, between the evaluations before and after."""
        reached = torch.cat([torch.zeros_like(self.d[:, :1]), self.d], dim=1).cummax(dim=1).values
        after = (reached < self.top[:, None]).sum(dim=1).clamp(1, reached.shape[1] - 1)
        rows, when = torch.arange(len(after)), torch.tensor(steps, dtype=torch.float64)
        low, high = reached[rows, after - 1], reached[rows, after]
        share = ((self.top - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        return _percentiles(when[after - 1] + share * (when[after] - when[after - 1]))

    def _fit(self, weights: Tensor) -> Tensor:
        """Alpha and beta of each row, (1 + samples, 2): weighted least squares."""
        second = self.d**2 if self.form == "d(alpha - beta d)" else self.d * self.d.log()
        design = torch.stack([self.d, -second], dim=2)  # (1 + samples, K - 1, 2)
        normal = design.mT @ (weights[:, None] * design)
        ridge = 1e-9 * normal.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
        target = design.mT @ (weights * self.gain)[:, :, None]
        fitted: Tensor = torch.linalg.solve(normal + ridge * torch.eye(2), target)
        return fitted.squeeze(2)

    def _top(self) -> Tensor:
        """The d of the maximum, at most the largest measured one: (1 + samples,)."""
        alpha, beta = self.fitted.unbind(dim=1)
        ratio = alpha / beta.clamp(min=1e-12)
        top = ratio / 2 if self.form == "d(alpha - beta d)" else (ratio - 1).clamp(max=50).exp()
        last = self.d.amax(dim=1)
        return torch.where(beta > 0, torch.minimum(top.clamp(min=0), last), last)

    def _at(self, d: Tensor) -> Tensor:
        alpha, beta = self.fitted.unbind(dim=1)
        if d.dim() == 2:  # several points of each row
            alpha, beta = alpha[:, None], beta[:, None]
        inner = d if self.form == "d(alpha - beta d)" else d.clamp(min=1e-12).log()
        return d * (alpha - beta * inner)

    def _slope(self, d: Tensor) -> Tensor:
        alpha, beta = self.fitted.unbind(dim=1)
        inner = 2 * d if self.form == "d(alpha - beta d)" else d.log() + 1
        return alpha - beta * inner


def _percentiles(rows: Tensor) -> Estimate:
    """Row 0 is the estimate, the others are those of the resamples."""
    low, high = rows[1:].quantile(torch.tensor([0.025, 0.975], dtype=rows.dtype)).tolist()
    value = float(rows[0])
    return {"mean": value, "low": min(low, value), "high": max(high, value)}


def _nothing(text: str) -> Found:
    return Found({"found": False, "text": f"{text}; no curve is fitted"}, None)


def _words(estimate: Estimate, digits: int = 2) -> str:
    mean, low, high = (f"{estimate[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
