"""The win rate at equal length: long answers must not win for their length alone."""

import torch
from torch import Tensor

from rlhf_ppo.evaluation.statistics import (
    Estimate,
    flip_test,
    interval,
    reaching,
    resamples,
)

PRIOR = 2.5  # standard deviation of the slope's normal prior, in log-odds
STEPS = 50


def length_controlled(wins: Tensor, longer: Tensor, samples: int, seed: int) -> Estimate:
    """Win rate that answers of equal length would have, with a 95 % interval.

    After Dubois et al. 2024 (length-controlled AlpacaEval): a logistic regression of the win on
    the length difference x, read off at x = 0,

        log-odds(win) = a + b tanh(longer / std(longer)),    result = 1 / (1 + exp(-a)).

    Their term for the difficulty of each prompt is left out: with one answer a prompt there is
    nothing to estimate it from. Ties are half a win and half a loss. So that the fit exists where
    every answer wins, or wins exactly when it is longer, b has a normal prior of deviation 2.5 and
    one pair of answers of equal length is added, half won and half lost: of 8 wins in 8 the result
    is 8.5 / 9. Without length differences it is (wins + 1/2) / (N + 1).

    The bootstrap interval is widened to 1/2 unless `p`, of the test that flips the signs of each
    prompt's effective score for a at a = 0 (Hemerik, Goeman and Finos 2020), is below 5 %. Without
    length differences that is the exact sign test.

    Args:
        wins: (N,) 1, 1/2 or 0 a prompt.
        longer: (N,) tokens that the policy's answer is longer than the reference's.
        samples: resamples.
        seed: of the resampling.
    """
    wins, longer = wins.double(), longer.double()
    deviation = longer.std(unbiased=False)
    x = torch.tanh(longer / deviation) if deviation > 0 else torch.zeros_like(longer)
    once = torch.ones(1, len(wins), dtype=torch.float64)
    fitted = _fit(once, wins, x, torch.zeros(1, 2, dtype=torch.float64))
    replicates = torch.cat(
        [
            torch.sigmoid(_fit(counts, wins, x, fitted.expand(len(counts), 2))[:, 0])
            for counts in resamples(len(wins), samples, seed)
        ]
    )
    found = interval(float(torch.sigmoid(fitted[0, 0])), replicates, _influence(fitted, wins, x))
    return reaching(found, 0.5, float(flip_test(_effective_scores(wins, x)[:, None], seed)[0]))


def _effective_scores(wins: Tensor, x: Tensor) -> Tensor:
    """(N,) what each prompt says of the intercept being above 0, whatever the slope is."""
    slope = torch.zeros((), dtype=torch.float64)
    for _ in range(STEPS):
        odds = torch.sigmoid(slope * x)
        gradient = ((odds - wins) * x).sum() + slope / PRIOR**2
        curve = (odds * (1 - odds) * x**2).sum() + 1 / PRIOR**2
        slope = slope - (gradient / curve).clamp(-2, 2)
    odds = torch.sigmoid(slope * x)
    weights = odds * (1 - odds)
    along = (weights * x).sum() / ((weights * x**2).sum() + 1 / PRIOR**2)
    scores: Tensor = (wins - odds) * (1 - along * x)
    return scores


def _fit(counts: Tensor, wins: Tensor, x: Tensor, start: Tensor) -> Tensor:
    """Intercept and slope (S, 2) of each resample's regression, by Newton's method."""
    found = start.clone()
    for _ in range(STEPS):
        gradient, hessian = _derivatives(found, counts, wins, x)
        step = torch.linalg.solve(hessian, gradient).clamp(-2, 2)
        found = found - step
        if float(step.abs().max()) < 1e-7:
            break
    return found


def _derivatives(found: Tensor, counts: Tensor, wins: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (S, 2) and Hessian (S, 2, 2) of the penalised negative log-likelihood."""
    odds = torch.sigmoid(found[:, :1] + found[:, 1:] * x)  # (S, N)
    error, curve = counts * (odds - wins), counts * odds * (1 - odds)
    middle = torch.sigmoid(found[:, 0])
    gradient = torch.stack(
        [error.sum(dim=1) + middle - 0.5, error @ x + found[:, 1] / PRIOR**2], dim=1
    )
    mixed = curve @ x
    hessian = torch.stack(
        [
            torch.stack([curve.sum(dim=1) + middle * (1 - middle), mixed], dim=1),
            torch.stack([mixed, curve @ x**2 + 1 / PRIOR**2], dim=1),
        ],
        dim=1,
    )
    return gradient, hessian


def _influence(fitted: Tensor, wins: Tensor, x: Tensor) -> Tensor:
    """(N,) by how much the intercept leans on each prompt: one Newton step of its own part."""
    once = torch.ones(1, len(wins), dtype=torch.float64)
    _, hessian = _derivatives(fitted, once, wins, x)
    odds = torch.sigmoid(fitted[0, 0] + fitted[0, 1] * x)
    parts = torch.stack([wins - odds, (wins - odds) * x])  # (2, N)
    moved: Tensor = torch.linalg.solve(hessian[0], parts)
    return moved[0]
