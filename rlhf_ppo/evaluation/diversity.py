"""Do the responses repeat one another, or themselves? Counted in n-grams of words."""

from collections import Counter
from collections.abc import Sequence

from rlhf_ppo.evaluation.statistics import Estimate


def distinct_n(texts: Sequence[str], n: int = 2) -> Estimate:
    """Different n-grams of words over all n-grams of the texts (Li et al. 2016).

    The interval is the jackknife's (mean +- 1.96 standard errors over texts): a bootstrap would
    repeat texts and so report too little diversity.
    """
    ratio, without = _left_out(texts, n)
    error = _jackknife_error(without)
    return {"mean": ratio, "low": max(0.0, ratio - error), "high": min(1.0, ratio + error)}


def distinct_change(after: Sequence[str], before: Sequence[str], n: int = 2) -> Estimate:
    """Change of `distinct_n`, paired by prompt: the jackknife leaves out both answers to one."""
    (ours, our_rest), (theirs, their_rest) = _left_out(after, n), _left_out(before, n)
    error = _jackknife_error([a - b for a, b in zip(our_rest, their_rest, strict=True)])
    change = ours - theirs
    return {"mean": change, "low": change - error, "high": change + error}


def _left_out(texts: Sequence[str], n: int) -> tuple[float, list[float]]:
    """The ratio of all texts, and that of all but one, for each."""
    grams = [_grams(text, n) for text in texts]
    occurrences = Counter(gram for items in grams for gram in set(items))
    total, different = sum(len(items) for items in grams), len(occurrences)
    if total == 0:
        return 0.0, [0.0 for _ in texts]
    ratio = different / total
    without = []
    for items in grams:
        only_here = sum(1 for gram in set(items) if occurrences[gram] == 1)
        rest = total - len(items)
        without.append((different - only_here) / rest if rest else ratio)
    return ratio, without


def _jackknife_error(without: Sequence[float]) -> float:
    """Half the width of a 95 % interval, from the estimates that leave one text out."""
    count = len(without)
    mean = sum(without) / count
    error = ((count - 1) / count * sum((value - mean) ** 2 for value in without)) ** 0.5
    return 1.96 * float(error)


def repetition(text: str, n: int = 4) -> float:
    """Share of the n-grams of words in a text that already stood in it (Welleck et al. 2020).

    0 for a text of fewer than n words.
    """
    grams = _grams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
