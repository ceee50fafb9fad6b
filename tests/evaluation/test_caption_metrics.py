"""BLEU, ROUGE-L and CIDEr-D against known numbers and the definitions written out."""

import math
from itertools import combinations, pairwise

import pytest

from trimtok_cli.evaluation.metrics.caption_words import caption_words
from trimtok_cli.evaluation.metrics.captions import bleu, bleu_of_counts, longest_common, rouge_l
from trimtok_cli.evaluation.metrics.cider import cider_d

SET = [
    ("a dog runs on green grass", ["a dog runs on the grass", "the brown dog is running outside"]),
    ("two cats", ["two cats sleep on a sofa", "cats on a red sofa"]),
    ("a man rides a wave on a board", ["a man riding a wave", "surfer on a wave on a board"]),
    ("plate plate plate of food", ["a plate of food", "plate and plate"]),
    ("a a a a", ["a plate of food", "food on a plate on a table near a wall"]),
]
PAIRS = [(text.split(), [each.split() for each in references]) for text, references in SET]


def test_the_toolkits_published_counts_give_its_published_bleu():
    """Its example: 1,000 captions of COCO, .579 .404 .279 .191."""
    scores = bleu_of_counts([9893, 8893, 7893, 6893], [5732, 2510, 1043, 423], 9893, 9855)
    assert [round(score, 3) for score in scores] == [0.579, 0.404, 0.279, 0.191]


def test_bleu_of_a_caption_worked_out_by_hand():
    """Words: the (1 of 3 counts), cat; 4 of 5 are right. Bigrams: the cat, 1 of 4. r = 6, c = 5."""
    caption, reference = map(str.split, ("the the the cat sat", "on the mat the cat sat"))
    one, two = bleu([(caption, [reference])], 2)
    penalty = math.exp(1 - 6 / 5)
    assert one == pytest.approx(penalty * 4 / 5)
    assert two == pytest.approx(penalty * math.sqrt(4 / 5 * 2 / 4))


def test_bleu_takes_the_nearest_length_and_of_two_the_shorter():
    assert bleu([([*"abcd"], [[*"abc"], [*"abcde"]])], 1)[0] == pytest.approx(1)
    assert bleu([([*"abcd"], [[*"abcde"], [*"abcdef"]])], 1)[0] == pytest.approx(
        math.exp(1 - 5 / 4)
    )


def every_subsequence(words):
    return {each for size in range(len(words) + 1) for each in combinations(words, size)}


@pytest.mark.parametrize(("words", "references"), PAIRS)
def test_rouge_l_equals_its_definition(words, references):
    lengths = [
        max(map(len, every_subsequence(words) & every_subsequence(each))) for each in references
    ]
    assert lengths == [longest_common(words, each) for each in references]
    precision = max(length / len(words) for length in lengths)
    recall = max(length / len(each) for length, each in zip(lengths, references, strict=True))
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l(words, references) == pytest.approx(expected)


def test_no_words_in_common_is_nothing():
    assert rouge_l(["x"], [["y"]]) == 0 and rouge_l([], [["y"]]) == 0 and rouge_l(["x"], [[]]) == 0
    assert cider_d([]) == [] and cider_d([([], [["y"]]), (["y"], [[]])]) == [0, 0]


def slow_cider(pairs):
    """Equations 1 to 5 of the paper and the penalty of CIDEr-D, one n-gram at a time."""

    def grams(words, n):
        runs = [words[i : i + n] for i in range(len(words) - n + 1)]
        return [" ".join(run) for run in runs]

    def weight(gram, words, n):
        having = 0
        for _, references in pairs:
            having += int(any(gram in grams(each, n) for each in references))
        return grams(words, n).count(gram) * math.log(len(pairs) / max(1, having))

    scores = []
    for words, references in pairs:
        total = 0.0
        for each in references:
            for n in (1, 2, 3, 4):
                every = sorted({*grams(words, n), *grams(each, n)})
                left = [weight(gram, words, n) for gram in every]
                right = [weight(gram, each, n) for gram in every]
                top = sum(min(a, b) * b for a, b in zip(left, right, strict=True))
                below = math.sqrt(sum(a * a for a in left)) * math.sqrt(sum(b * b for b in right))
                delta = len(words) - len(each)
                total += (top / below if below else 0) * math.exp(-(delta**2) / 72)
        scores.append(10 * total / 4 / len(references))
    return scores


def test_cider_d_equals_the_paper_written_out():
    scores = cider_d(PAIRS)
    assert scores == pytest.approx(slow_cider(PAIRS))
    assert min(scores) >= 0 and max(scores) > 1 and scores[0] != scores[2]


def test_cider_of_one_picture_is_nothing_and_of_its_own_reference_most():
    assert cider_d(PAIRS[:1]) == [0]
    own = [(references[0], references[:1]) for _, references in PAIRS]
    assert cider_d(own) == pytest.approx([10] * len(own))
    assert all(a <= b for a, b in pairwise([0, *sorted(cider_d(PAIRS)), 10]))


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man's dog can't swim.", "a man 's dog ca n't swim"),
        ("Two t-shirts, 12:30 & 1,000 people!", "two t-shirts 12:30 & 1,000 people"),
        ('He said "stop" (twice) - really...', "he said stop twice really"),
        ("It's 5 o'clock; they’ll cannot go", "it 's 5 o'clock they 'll can not go"),
        ("the 'red' U.S. flag", "the red u.s. flag"),
        ("men- and dogs' toys", "men and dogs toys"),
        ("", ""),
        ("50% of $3.50\nonly", "50 % of $ 3.50 only"),
        ("Ein Café in Zürich", "ein café in zürich"),
    ],
)
def test_captions_are_taken_apart_as_a_treebank_would(caption, words):
    assert caption_words(caption) == words.split()
