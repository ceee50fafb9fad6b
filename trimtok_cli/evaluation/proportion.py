"""The interval of a share. Knows no sample."""

from dataclasses import dataclass
from math import sqrt

Z = 1.959964  # of a normal distribution, for 95 %


@dataclass(frozen=True, slots=True)
class Share:
    """A share with its 95 % interval, and of how many samples."""

    value: float
    low: float
    high: float
    samples: int


def wilson(share: float, samples: int) -> Share:
    """Wilson's score interval of a share of so many independent samples.

    No share is certain: 10 of 10 is 72 to 100 %. The mean of scores in [0, 1] varies no more than a
    share of that size, so its interval is at least as wide as it need be. No samples say nothing.
    """
    if not samples:
        return Share(share, 0.0, 1.0, 0)
    spread = Z * Z / samples
    middle = (share + spread / 2) / (1 + spread)
    half = Z * sqrt(share * (1 - share) / samples + spread / (4 * samples)) / (1 + spread)
    low, high = max(middle - half, 0.0), min(middle + half, 1.0)
    return Share(share, min(low, share), max(high, share), samples)  # an end may miss by a rounding
