"""The reward of configs/word_problems.yaml: 1 for the right number after "####", else 0.

The form is that of GSM8K (Cobbe et al. 2021): an `answer` ends with "#### 72".
"""

import re

NUMBER = re.compile(r"-?\d[\d,]*(\.\d+)?")


def result_of(text: str) -> float | None:
    """The number after the last "####"; "1,200" and "1200.0" are the same."""
    _, mark, end = text.rpartition("####")
    found = NUMBER.search(end) if mark else None
    return float(found[0].replace(",", "")) if found else None


def correct(prompts: list, responses: list[str], answer: list[str]) -> list[float]:
    """One score a response; `answer` is a column of the data."""
    wanted = [result_of(text) for text in answer]
    if None in wanted:
        raise ValueError(f"an answer without '#### number': {answer[wanted.index(None)]!r}")
    return [
        float(result_of(text) == number) for text, number in zip(responses, wanted, strict=True)
    ]
