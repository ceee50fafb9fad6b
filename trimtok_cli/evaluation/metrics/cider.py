"""CIDEr-D (arXiv 1411.5726): how alike a caption is to its references, rare words counting more.

A caption is four vectors, one for each length of n-gram, n = 1 to 4: how often each n-gram occurs,
times the logarithm of the number of pictures over those whose references have it. The frequencies
come from the very set that is scored, so a score depends on it: of one picture it is always 0, and
of fewer than about a hundred it means little.
"""

import math
from collections import Counter
from collections.abc import Sequence

from trimtok_cli.evaluation.metrics.captions import Words, ngrams

_MOST = 4

# The width, in words, of the penalty for another length.
_SIGMA = 6.0

Vector = dict[tuple[str, ...], float]

# The four vectors of a text, and its number of words.
Text = tuple[list[Vector], int]


def cider_d(pairs: Sequence[tuple[Words, Sequence[Words]]]) -> list[float]:
    """CIDEr-D of each (caption, references) pair; published numbers are their mean, times 100."""
    counted = [(_grams(words), [*map(_grams, references)]) for words, references in pairs]
    pictures: Counter[tuple[str, ...]] = Counter()
    for _, several in counted:
        pictures.update({gram for each in several for gram in each})
    whole = math.log(len(pairs)) if pairs else 0.0
    rarity = {gram: whole - math.log(count) for gram, count in pictures.items()}
    return [
        _similarity(
            (_vectors(counts, rarity, whole), len(words)),
            [
                (_vectors(other, rarity, whole), len(each))
                for other, each in zip(several, references, strict=True)
            ],
        )
        for (counts, several), (words, references) in zip(counted, pairs, strict=True)
    ]


def _grams(words: Words) -> Counter[tuple[str, ...]]:
    counts: Counter[tuple[str, ...]] = Counter()
    for n in range(1, _MOST + 1):
        counts.update(ngrams(words, n))
    return counts


def _vectors(counts: Counter[tuple[str, ...]], rarity: Vector, unseen: float) -> list[Vector]:
    """The vectors for n = 1 to 4. unseen: the rarity of an n-gram that no reference has."""
    vectors: list[Vector] = [{} for _ in range(_MOST)]
    for gram, count in counts.items():
        vectors[len(gram) - 1][gram] = count * rarity.get(gram, unseen)
    return vectors


def _similarity(caption: Text, references: Sequence[Text]) -> float:
    """The mean over references and over n of the clipped cosine, times ten."""
    vectors, length = caption
    total = 0.0
    for others, other in references:
        # The toolkit's lengths are numbers of bigrams, one less than words unless there are none.
        delta = max(0, length - 1) - max(0, other - 1)
        penalty = math.exp(-(delta**2) / (2 * _SIGMA**2))
        total += penalty * sum(map(_clipped_cosine, vectors, others))
    return 10.0 * total / (_MOST * len(references)) if references else 0.0


def _clipped_cosine(vector: Vector, other: Vector) -> float:
    """The cosine of two vectors, the first clipped to the second where it is larger."""
    norm = math.hypot(*vector.values()) * math.hypot(*other.values())
    if not norm:
        return 0.0
    return (
        sum(
            min(value, other.get(gram, 0.0)) * other.get(gram, 0.0)
            for gram, value in vector.items()
        )
        / norm
    )
