"""The budget that --keep gives, `64`, `11%`, `0.11` or `all`, and how several images share a total.

Knows no method and no tensor.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from trimtok_cli.wording import brief


@dataclass(frozen=True)
class Budget:
    """The visual tokens to keep of an image or of a whole video.

    A count (tokens), a share of the dense count, or all where both are None.
    """

    tokens: int | None = None
    share: float | None = None

    def count(self, num_dense: int) -> int:
        """The tokens to keep of N: the count, or floor(share * N + 0.5); at least 1, at most N."""
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
        exact = format(Decimal(repr(self.share)), "f")  # --keep reads no exponent
        return percent if "e" not in percent and parse_budget(percent) == self else exact


def share_out(total: int, weights: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """`total` tokens shared out over images in proportion to `weights`.

    Each image gets at least one token and never more than it has. Each next token goes to the image
    whose weight / (count + 1/2) is highest (Webster's method), ties to the first image.
    """
    counts = [1] * len(sizes)
    for _ in range(min(total, sum(sizes)) - len(sizes)):
        open_images = [i for i, size in enumerate(sizes) if counts[i] < size]
        counts[
            max(open_images, key=lambda i: (weights[i] / (counts[i] + 0.5), -counts[i], -i))
        ] += 1
    return counts


def parse_budget(text: str | int | float) -> Budget:
    """The Budget that a text or a number says.

    Raises ValueError with one sentence where it has none of the four forms.
    """
    form = str(text).strip().lower()
    if form == "all":
        return Budget()
    if re.fullmatch(r"\d{1,18}", form) and int(form) > 0:
        return Budget(tokens=int(form))
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)(%?)", form)
    if match:
        share = float(match[1]) / (100 if match[2] else 1)
        if 0 < share < 1:
            return Budget(share=share)
        if share == 1:
            return Budget()
    raise ValueError(
        f"keep must be a count (64), a share (11% or 0.11) or all, got {brief(str(text))!r}"
    )
