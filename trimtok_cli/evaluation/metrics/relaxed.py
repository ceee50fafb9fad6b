"""Relaxed accuracy of charts: a number may be off by 5 per cent (ChartQA, arXiv 2203.10244).

Numbers are texts that Python reads as one, with or without a final per cent sign, which divides by
a hundred. A target of 0, and any other text, must be met exactly but for case.
"""

from collections.abc import Sequence

# The share of the target by which a number may be off.
TOLERANCE = 0.05


def relaxed_match(answer: str, references: Sequence[str]) -> float:
    """1 where the answer is near enough to a reference, else 0."""
    text = answer.strip()
    return float(bool(text) and any(_near(text, target.strip()) for target in references))


def _near(text: str, target: str) -> bool:
    number, goal = _number(text), _number(target)
    if number is not None and goal:
        return abs(number - goal) / abs(goal) <= TOLERANCE
    return text.lower() == target.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        return None
