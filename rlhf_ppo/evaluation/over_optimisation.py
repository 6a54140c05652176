"""Where more optimisation of the score begins to cost gold: the forms of Gao et al. 2023."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_ppo.evaluation.statistics import Estimate, resampled_means

Form = Literal["d(alpha - beta d)", "d(alpha - beta log d)"]
FORMS: dict[str, Form] = {"best_of_n": "d(alpha - beta d)", "ppo": "d(alpha - beta log d)"}
FEWEST = 3  # points beyond the reference; two would be met by any such curve
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

    With d the root of the KL, the gain over the reference is fitted by `form` (best-of-n: a
    parabola, PPO: a logarithm; Gao et al. 2023), by least squares with each point weighed by one
    over its bootstrap variance. Each resample of the prompts is fitted again; intervals are
    percentiles over these fits. A maximum is told only if three things lie beyond their 95 %
    intervals: the curve's rise up to it, the curve's slope at the last point, and the measured fall
    from the point next to it to the last. A curve of two parameters alone would find a maximum in
    anything that levels off.

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
    curves = {
        name: _Curve(path.kl, values, form, samples, seed)
        for name, values in (("score", path.score), ("gold", path.gold))
    }
    gold = curves["gold"]
    rise, fall = gold.rise(), gold.fall()
    change = gold.change(gold.last)
    if rise["low"] <= 0:
        return _nothing(
            f"no rise of gold can be told from noise (change at the end {_words(change)})"
        )
    if fall is None:
        return _nothing(
            "gold rises, and no fall after it can be told from noise "
            f"(change at the end {_words(change)})"
        )
    found: dict[str, Any] = {"found": True, "kl": gold.peak_kl()}
    where = f"{_words(found['kl'])} nats"
    if path.steps is not None:
        found["step"] = gold.peak_step(path.steps)
        where += f", step {_words(found['step'], 0)}"
    found |= {"gold": gold.peak_value(), "fall": fall}
    found["text"] = (
        f"gold is highest at {where}: {_words(found['gold'])}; by the last point it has fallen by "
        f"{_words(fall)}"
    )
    fits = {
        name: {"alpha": alpha, "beta": beta, "form": form}
        for name, curve in curves.items()
        for alpha, beta in [curve.fitted[0].tolist()]
    }
    return Found(found, fits)


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
        self.last = int(self.d[0].argmax())
        variance = self.gain[1:].var(dim=0)
        self.fitted = self._fit(1 / variance.clamp(min=float(variance.max()) * 1e-4 + 1e-12))
        self.top = self._top()

    def rise(self) -> Estimate:
        """Of the fitted curve, from the reference to its maximum."""
        return _percentiles(self._at(self.top))

    def change(self, point: int) -> Estimate:
        """Measured, from the reference to a point."""
        return _percentiles(self.gain[:, point])

    def fall(self) -> Estimate | None:
        """Measured, from the point nearest the maximum to the last one; None: it may be noise."""
        nearest = int((self.d[0] - self.top[0]).abs().argmin())
        drop = _percentiles(self.gain[:, nearest] - self.gain[:, self.last])
        slope = _percentiles(self._slope(self.d[:, self.last]))
        return drop if drop["low"] > 0 and slope["high"] < 0 else None

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
        """The d of the maximum, at most the last measured one: (1 + samples,)."""
        alpha, beta = self.fitted.unbind(dim=1)
        ratio = alpha / beta.clamp(min=1e-12)
        top = ratio / 2 if self.form == "d(alpha - beta d)" else (ratio - 1).clamp(max=50).exp()
        last = self.d[:, self.last]
        return torch.where(beta > 0, torch.minimum(top.clamp(min=0), last), last)

    def _at(self, d: Tensor) -> Tensor:
        alpha, beta = self.fitted.unbind(dim=1)
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
