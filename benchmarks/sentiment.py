"""The reward of the benchmark: VADER's compound sentiment, -1 to 1 (pip install vaderSentiment).

Hutto and Gilbert 2014. Nobody trained it for this benchmark and no side has seen it before.
"""

from collections.abc import Sequence

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

_analyzer = SentimentIntensityAnalyzer()


def sentiment(prompts: Sequence[object], responses: Sequence[str]) -> list[float]:
    """One number a response; prompts do not count."""
    return [float(_analyzer.polarity_scores(response)["compound"]) for response in responses]
