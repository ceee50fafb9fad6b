"""OCRBench: the answer holds a reference (arXiv 2305.07895).

Text is compared in lower case; formulas, which are those of HME100k, as they are but without any
blank.
"""

from collections.abc import Sequence


def contains(answer: str, references: Sequence[str], *, formula: bool = False) -> float:
    """1 where the answer holds one of the references, else 0."""
    plain = _formula if formula else _text
    text = plain(answer)
    return float(any(each and each in text for each in map(plain, references)))


def _text(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _formula(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")
