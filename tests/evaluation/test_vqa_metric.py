"""VQA accuracy against the rule written out person by person, and its normalisation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtok_cli.evaluation.metrics.vqa import (
    normalised,
    normalised_words,
    textvqa_accuracy,
    vqa_accuracy,
)

WORDS = st.sampled_from(["red", "Red.", "a red", "two", "2", "dont", "don't", "no", "1,000", "x-y"])


def person_by_person(answer, references):
    """The rule as the authors say it, with nothing shortened."""
    total = 0.0
    for person in range(len(references)):
        others = [each for number, each in enumerate(references) if number != person]
        total += min(1.0, len([each for each in others if each == answer]) / 3)
    return total / len(references)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=10))
def test_each_nine_of_ten_people_are_asked(answer, references):
    same = [normalised(each) for each in references] if len({*references}) > 1 else references
    assert vqa_accuracy(answer, references) == pytest.approx(
        person_by_person(normalised(answer), same)
    )
    same = [normalised_words(each) for each in references]
    assert textvqa_accuracy(answer, references) == pytest.approx(
        person_by_person(normalised_words(answer), same)
    )


@pytest.mark.parametrize(
    ("matches", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
)
def test_one_match_of_ten_is_three_tenths(matches, accuracy):
    references = ["yes"] * matches + [f"other {number}" for number in range(10 - matches)]
    assert vqa_accuracy("Yes", references) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The Red ball.", "red ball"),
        ("None", "0"),
        ("None.", "0"),
        ("A red-haired dog!", "red haired dog"),
        ("1,000 people", "1000 people"),
        ("3.5 Miles", "3.5 miles"),
        ("The dog's\nball", "dog's ball"),
        ("", ""),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'dve", "yall'dve"),
        ("somebody'd", "somebodyd"),
        ("hell", "hell"),
        ("Im", "im"),
        ("1,000", "1000"),
        ("1,000; x/y", "1000 xy"),
        ("x/y", "x y"),
        ("black/white ,red", "black white red"),
        ("t-shirt", "t shirt"),
        ("t -shirt", "t shirt"),
        ("3.5", "3.5"),
        ("3.", "3"),
        (".5", ".5"),
        ("what? no!", "what no"),
        ("a", ""),
        ("line\none\ttab", "line 1 tab"),
    ],
)
def test_answers_are_compared_without_marks_articles_and_number_words(text, plain):
    assert normalised(text) == plain


def test_textvqa_parts_a_possessive_and_drops_commas_first():
    assert normalised_words("The dog's bone, here?") == "dog 's bone here"
    assert normalised_words("1,5") == "15" and normalised("1,5") == "15"
    assert textvqa_accuracy("kid's", ["kid's"] * 10) == 1


def test_references_are_normalised_only_where_people_disagree():
    assert vqa_accuracy("two", ["two"] * 10) == 0
    assert vqa_accuracy("two", ["two"] * 9 + ["three"]) == 1
    assert textvqa_accuracy("two", ["two"] * 10) == 1


def test_an_empty_answer_agrees_with_nobody():
    assert vqa_accuracy("", ["a", "the", "", "an"]) == 0
    assert vqa_accuracy("yes", []) == 0
