"""BLEU-1 to 4 and ROUGE-L of captions, as the COCO caption toolkit defines them.

All take tokens (`caption_words`). BLEU is one number of a whole set; ROUGE-L is a mean over
captions. CIDEr-D stands in cider.py.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

Words = Sequence[str]

# Keeps a quotient of nothing from failing; as small as in the toolkit, so that digits agree.
_TINY, _SMALL = 1e-15, 1e-9

# Recall counts this much more than precision, squared, in ROUGE-L.
_BETA = 1.2


def ngrams(words: Words, n: int) -> Counter[tuple[str, ...]]:
    """How often each run of n words occurs."""
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def bleu(pairs: Iterable[tuple[Words, Sequence[Words]]], most: int = 4) -> list[float]:
    """BLEU-1 to BLEU-`most` in [0, 1] of (caption, references) pairs (ACL P02-1040).

    An n-gram counts as often as in the reference that has it most often. Captions are held against
    the reference of the nearest length, the shorter of two.
    """
    guessed, correct = [0] * most, [0] * most
    length = wanted = 0
    for words, references in pairs:
        length += len(words)
        wanted += min((abs(len(each) - len(words)), len(each)) for each in references)[1]
        for n in range(1, most + 1):
            allowed: Counter[tuple[str, ...]] = Counter()
            for each in references:
                allowed |= ngrams(each, n)
            guessed[n - 1] += max(0, len(words) - n + 1)
            correct[n - 1] += (ngrams(words, n) & allowed).total()
    return bleu_of_counts(guessed, correct, length, wanted)


def bleu_of_counts(
    guessed: Sequence[int], correct: Sequence[int], length: int, wanted: int
) -> list[float]:
    """BLEU-1, 2, ... of the n-grams guessed, those correct, and the lengths of both sides."""
    ratio = (length + _TINY) / (wanted + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for n, (all_of_n, right) in enumerate(zip(guessed, correct, strict=True), start=1):
        product *= (right + _TINY) / (all_of_n + _SMALL)
        scores.append(penalty * product ** (1 / n))
    return scores


def rouge_l(words: Words, references: Sequence[Words]) -> float:
    """ROUGE-L in [0, 1] (ACL W04-1013): the best precision and the best recall, each for itself."""
    common = [longest_common(words, each) for each in references]
    precision = max((part / len(words) for part in common if words), default=0.0)
    recall = max(
        (part / len(each) for part, each in zip(common, references, strict=True) if each),
        default=0.0,
    )
    if not precision or not recall:
        return 0.0
    weight = _BETA**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


def longest_common(left: Words, right: Words) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(right) + 1)
    for word in left:
        before = 0
        for j, other in enumerate(right, start=1):
            before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]
