"""Do the responses repeat one another, or themselves? Counted in n-grams of words."""

from collections import Counter
from collections.abc import Sequence

from rlhf_ppo.evaluation.statistics import Estimate


def distinct_n(texts: Sequence[str], n: int = 2) -> Estimate:
    """Different n-grams of words over all n-grams of the texts (Li et al. 2016).

    The interval is the jackknife's (mean +- 1.96 standard errors over texts): a bootstrap would
    repeat texts and so report too little diversity.
    """
    grams = [_grams(text, n) for text in texts]
    occurrences = Counter(gram for items in grams for gram in set(items))
    total, different = sum(len(items) for items in grams), len(occurrences)
    if total == 0:
        return {"mean": 0.0, "low": 0.0, "high": 0.0}
    ratio = different / total
    without = []
    for items in grams:
        only_here = sum(1 for gram in set(items) if occurrences[gram] == 1)
        rest = total - len(items)
        without.append((different - only_here) / rest if rest else ratio)
    mean = sum(without) / len(without)
    count = len(without)
    error = ((count - 1) / count * sum((value - mean) ** 2 for value in without)) ** 0.5
    low, high = max(0.0, ratio - 1.96 * error), min(1.0, ratio + 1.96 * error)
    return {"mean": ratio, "low": low, "high": high}


def repetition(text: str, n: int = 4) -> float:
    """Share of the n-grams of words in a text that already stood in it (Welleck et al. 2020).

    0 for a text of fewer than n words.
    """
    grams = _grams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
