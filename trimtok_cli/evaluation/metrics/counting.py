"""Shares and means as the metrics write them: in per cent, and 0 of nothing. Knows no metric."""

from collections.abc import Sequence


def percent_of(part: float, whole: float) -> float:
    """100 * part / whole; 0 where there is nothing to share."""
    return 100.0 * part / whole if whole else 0.0


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0
