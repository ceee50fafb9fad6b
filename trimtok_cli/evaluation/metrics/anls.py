"""ANLS, the average normalised Levenshtein similarity of document questions (arXiv 1905.13648).

The similarity to a reference is 1 - distance / length of the longer, in characters, in lower case
and with single blanks; below one half it is 0. An answer has that of its nearest reference.
"""

from collections.abc import Sequence

# A similarity below this is no reading of the right text.
THRESHOLD = 0.5


def anls(answer: str, references: Sequence[str]) -> float:
    """The similarity to the nearest reference, in [0, 1]."""
    return max((_similarity(_plain(answer), _plain(each)) for each in references), default=0.0)


def _similarity(left: str, right: str) -> float:
    if not left and not right:
        return 1.0
    value = 1.0 - levenshtein(left, right) / max(len(left), len(right))
    return value if value >= THRESHOLD else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def levenshtein(left: str, right: str) -> int:
    """The fewest insertions, deletions and replacements of a character from one text to another."""
    row = list(range(len(right) + 1))
    for i, char in enumerate(left, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(right, start=1):
            replaced = before + (char != other)
            before = row[j]
            row[j] = min(replaced, before + 1, row[j - 1] + 1)
    return row[-1]
