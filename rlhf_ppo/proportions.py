"""Shares and win rates: intervals, and exact tests for where few pairs differ. Plain arithmetic."""

import math

Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
LEVEL = 0.05  # a difference is claimed below this two-sided p


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of the exact sign test, for paired shares known as the exact McNemar test.

    Under no difference each of the m pairs that differ is a win with probability 1/2, so
    p = 2 P(Binomial(m, 1/2) >= max(wins, losses)), at most 1. Ties say nothing about the direction
    and are left out. Not the mid-p: only the plain one is wrong in at most 5 % of all evaluations
    at every number of pairs and every share of ties; the mid-p claims a difference at 5 wins of 5,
    which happens in 6.25 % of all groups of five.

    Source: McNemar 1947; Fagerland, Lydersen and Laake 2013 compare the variants.
    """
    pairs, most = wins + losses, max(wins, losses)
    if pairs == 0:
        return 1.0
    term = math.exp(
        math.lgamma(pairs + 1)
        - math.lgamma(most + 1)
        - math.lgamma(pairs - most + 1)
        - pairs * math.log(2)
    )
    tail = 0.0
    for count in range(most, pairs + 1):
        tail += term
        term *= (pairs - count) / (count + 1)
    return min(1.0, 2 * tail)


def share_interval(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a share, by inverting the score test (Wilson 1927).

    It has a width where all of `count` agree: of 0 in 64 it reaches .057.

    Args:
        hits: of the `count`.
        count: 1 or more.
    """
    share, extra = hits / count, Z * Z / count
    middle = (share + extra / 2) / (1 + extra)
    half = Z / (1 + extra) * math.sqrt(share * (1 - share) / count + extra / (4 * count))
    low = 0.0 if hits == 0 else max(0.0, middle - half)
    high = 1.0 if hits == count else min(1.0, middle + half)
    return low, high


def compare_pairs(wins: int, losses: int, ties: int) -> dict[str, float]:
    """Win rate (wins + ties / 2) / N with a 95 % interval that agrees with the exact sign test.

    The interval inverts the score test of Tango 1998 for the difference of paired proportions. That
    test is approximate, and too quick to exclude no difference where few pairs differ (4 wins, no
    loss); so there, at 1/2, the exact test decides: the interval reaches 1/2 unless `sign_test` is
    below 5 %. The reverse is not needed: wherever the exact test excludes 1/2, Tango's does.

    Args:
        wins, losses, ties: pairs; at least one in all.

    Returns:
        `mean`, `low` and `high` of the win rate, and `p` of the sign test.
    """
    count = wins + losses + ties
    low, high = difference_interval(wins, losses, count)
    p = sign_test(wins, losses)
    low, high = (1 + low) / 2, (1 + high) / 2
    if p >= LEVEL:
        low, high = min(low, 0.5), max(high, 0.5)
    return {"mean": (wins + ties / 2) / count, "low": low, "high": high, "p": p}


def difference_interval(wins: int, losses: int, count: int) -> tuple[float, float]:
    """95 % score interval of P(win) - P(loss) from paired outcomes (Tango 1998).

    All differences d with |Z(d)| <= 1.96, where q is the probability of a loss that is likeliest if
    the difference is d:

        Z(d) = (wins - losses - N d) / sqrt(N (2 q + d (1 - d)))

    Args:
        wins, losses: pairs that differ.
        count: N, all pairs.
    """

    def score(d: float) -> float:
        slope = (2 * count - wins + losses) * d - wins - losses
        root = math.sqrt(max(0.0, slope * slope + 8 * count * losses * d * (1 - d)))
        q = (root - slope) / (4 * count)
        variance = count * (2 * q + d * (1 - d))
        gap = wins - losses - count * d
        return gap / math.sqrt(variance) if variance > 1e-12 else math.copysign(math.inf, gap)

    found = (wins - losses) / count
    ends = []
    for edge, target in ((-1.0, Z), (1.0, -Z)):
        if found == edge:
            ends.append(edge)
            continue
        inside, outside = found, edge  # |Z| is 0 at the estimate and grows towards the edge
        for _ in range(60):
            middle = (inside + outside) / 2
            beyond = score(middle) > target if target > 0 else score(middle) < target
            inside, outside = (inside, middle) if beyond else (middle, outside)
        ends.append(inside)
    return ends[0], ends[1]
