"""What --keep means: `64`, `11%`, `0.11` or `all`; and how several images share a total. Knows no
method and no tensor.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from trimtok_cli.wording import brief


@dataclass(frozen=True)
class Budget:
    """How many visual tokens of an image (or of a whole video) are kept: a count, a share of the
    dense count, or all.
    """

    tokens: int | None = None
    share: float | None = None

    def count(self, num_dense: int) -> int:
        """floor(share * N + 0.5), at least 1 and at most N."""
        if self.tokens is not None:
            return min(self.tokens, num_dense)
        if self.share is not None:
            return min(max(math.floor(self.share * num_dense + 0.5), 1), num_dense)
        return num_dense

    def __str__(self) -> str:
        if self.tokens is not None:
            return str(self.tokens)
        if self.share is None:
            return "all"
        percent = f"{100 * self.share:.6g}%"
        exact = format(Decimal(repr(self.share)), "f")  # without an exponent, which --keep has not
        return percent if "e" not in percent and parse_budget(percent) == self else exact


def share_out(total: int, weights: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """`total` tokens over images in proportion to `weights`: at least one each, never more than an
    image has.

    Token by token to where weight / (count + 1/2) is highest (Webster's method), ties to the first
    image.
    """
    counts = [1] * len(sizes)
    for _ in range(min(total, sum(sizes)) - len(sizes)):
        room = [i for i, size in enumerate(sizes) if counts[i] < size]
        counts[max(room, key=lambda i: (weights[i] / (counts[i] + 0.5), -counts[i], -i))] += 1
    return counts


def parse_budget(text: str | int | float) -> Budget:
    """ValueError with one sentence where the text is none of the four forms."""
    said = str(text).strip().lower()
    if said == "all":
        return Budget()
    if re.fullmatch(r"\d{1,18}", said) and int(said) > 0:
        return Budget(tokens=int(said))
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)(%?)", said)
    if match:
        share = float(match[1]) / (100 if match[2] else 1)
        if 0 < share < 1:
            return Budget(share=share)
        if share == 1:
            return Budget()
    raise ValueError(
        f"keep must be a count (64), a share (11% or 0.11) or all, got {brief(str(text))!r}"
    )
