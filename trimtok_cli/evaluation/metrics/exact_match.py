"""Exact match: the answer is one of the references, but for case, blanks and a final full stop.

GQA's own rule is this one for answers of a word or a phrase, as LLaVA converts them: lower case and
no final full stop.
"""

from collections.abc import Sequence


def plain(text: str) -> str:
    """The text in lower case, with single blanks and without a final full stop."""
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 where the answer equals a reference, else 0."""
    return float(plain(answer) in map(plain, references) and bool(answer.strip()))
