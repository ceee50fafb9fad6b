"""Two answers word by word: how much they share, and what each says that the other does not.

Words are compared without case and without punctuation at their ends: `ring,` is `Ring`.
"""

import re
import string
from dataclasses import dataclass
from difflib import SequenceMatcher

_AROUND = string.punctuation + "。，、！？：；「」『』“”‘’…«»"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of two answers. Both texts are there where they agree; either may be empty."""

    same: bool
    dense: str
    pruned: str


def agreement(dense: str, pruned: str) -> float:
    """The share of words in common, in order, in [0, 1]; two answers without a word share all."""
    return _matcher(_words(dense), _words(pruned)).ratio()


def diff(dense: str, pruned: str) -> list[Piece]:
    """Both answers in pieces, in order. The pruned texts, joined, are the pruned answer."""
    old, new = _spaced(dense), _spaced(pruned)
    return [
        Piece(kind == "equal", "".join(old[i:j]), "".join(new[k:end]))
        for kind, i, j, k, end in _matcher(_words(dense), _words(pruned)).get_opcodes()
    ]


def _matcher(old: list[str], new: list[str]) -> SequenceMatcher[str]:
    return SequenceMatcher(None, old, new, autojunk=False)


def _words(text: str) -> list[str]:
    return [word.strip(_AROUND).casefold() or word for word in text.split()]


def _spaced(text: str) -> list[str]:
    """The words with the spaces behind them, the first with those before it."""
    pieces = re.findall(r"\S+\s*", text)
    if pieces:
        pieces[0] = text[: len(text) - len(text.lstrip())] + pieces[0]
    return pieces
