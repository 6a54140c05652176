"""The reward of configs/arithmetic.yaml: 1 for the right sum, 0 for any other text."""


def right(prompts: list[str], responses: list[str], answer: list[str]) -> list[float]:
    """One score a response; `answer` is a column of the data."""
    return [
        float(response.strip() == wanted)
        for response, wanted in zip(responses, answer, strict=True)
    ]
