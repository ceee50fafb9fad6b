"""Relaxed accuracy, ANLS, containment, exact match, MME, letters and open answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtok_cli.evaluation.metrics.anls import anls, levenshtein
from trimtok_cli.evaluation.metrics.choices import (
    letters,
    mmbench_choice,
    mmmu_choice,
    scienceqa_choice,
)
from trimtok_cli.evaluation.metrics.containment import contains
from trimtok_cli.evaluation.metrics.exact_match import exact_match
from trimtok_cli.evaluation.metrics.mme import TASKS, mme, said
from trimtok_cli.evaluation.metrics.open_answer import open_match
from trimtok_cli.evaluation.metrics.relaxed import relaxed_match

OPTIONS = {"A": "a cat", "B": "the dog", "C": "birds"}


@pytest.mark.parametrize(
    ("answer", "target", "right"),
    [
        ("105", "100", 1),
        ("95", "100", 1),
        ("105.1", "100", 0),
        ("-95", "-100", 1),
        ("14%", "14%", 1),
        ("0.14", "14%", 1),
        ("14", "14%", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),
        ("0.01", "0", 0),
        ("Yes", "yes", 1),
        ("[Yes, No]", "[yes, no]", 1),
        ("1,000", "1000", 0),
        ("about 100", "100", 0),
        ("", "", 0),
        (" 100 ", "100", 1),
    ],
)
def test_a_number_may_be_off_by_five_per_cent(answer, target, right):
    assert relaxed_match(answer, [target]) == right


@pytest.mark.parametrize(
    ("answer", "references", "value"),
    [
        ("abcd", ["abcd"], 1),
        ("ABCD ", ["abcd"], 1),
        ("abce", ["abcd"], 0.75),
        ("abxy", ["abcd"], 0.5),
        ("axyz", ["abcd"], 0),
        ("abcdefgh", ["abcd"], 0.5),
        ("abce", ["zzzz", "abcd"], 0.75),
        ("", ["abcd"], 0),
        ("x", [], 0),
    ],
)
def test_similarity_below_a_half_is_nothing(answer, references, value):
    assert anls(answer, references) == value


def slow_distance(left, right):
    if not left or not right:
        return len(left) + len(right)
    return min(
        slow_distance(left[1:], right) + 1,
        slow_distance(left, right[1:]) + 1,
        slow_distance(left[1:], right[1:]) + int(left[0] != right[0]),
    )


@given(st.text("abc", max_size=5), st.text("abc", max_size=5))
def test_distances_equal_the_definition(left, right):
    assert levenshtein(left, right) == slow_distance(left, right)


def test_ocrbench_looks_for_a_reference_within_the_answer():
    assert contains("The sign says STOP\nhere.", ["stop here"]) == 1
    assert contains("stop", ["stop sign"]) == 0
    assert contains(r"\frac {a} {B}", [r"\frac{a}{B}"], formula=True) == 1
    assert contains(r"\frac {a} {b}", [r"\frac{a}{B}"], formula=True) == 0
    assert contains("anything", [""]) == 0 and contains("", ["x"]) == 0


def test_exact_match_ignores_case_blanks_and_one_full_stop():
    assert exact_match(" Traffic  light.", ["traffic light"]) == 1
    assert exact_match("the traffic light", ["traffic light"]) == 0
    assert exact_match("", [""]) == 0


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        (" No, it is", "no"),
        ("Noyes", "no"),
        ("I say yes", "other"),
        ("The", "other"),
        ("Unknown", "other"),
        ("", "other"),
        ("not", "no"),
    ],
)
def test_the_first_four_letters_decide_in_mme(text, meant):
    assert said(text) == meant


def test_a_picture_counts_in_mme_where_both_its_questions_are_right():
    rows = [
        ("OCR", "1", "Yes", "Yes"),
        ("OCR", "1", "No", "no"),
        ("OCR", "2", "Yes", "Yes"),
        ("OCR", "2", "No", "Yes"),
        ("OCR", "3", "Yes", "perhaps"),
        ("OCR", "3", "No", "No"),
        ("code_reasoning", "1", "yes", "yes"),
        ("code_reasoning", "1", "no", "no"),
        ("count", "1", "Yes", "Yes"),
    ]
    scores = mme(rows)
    assert scores["OCR/score"] == pytest.approx(100 * 4 / 6 + 100 / 3)
    assert scores["count/score"] == 100  # a picture with one question has no accuracy+
    assert scores["perception"] == pytest.approx(100 * 4 / 6 + 100 / 3 + 100)
    assert (scores["cognition"], scores["total"]) == (200, scores["perception"] + 200)
    assert len(TASKS) == 14


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("B", "B"),
        (" B\n", "B"),
        ("B. the dog", "B"),
        ("D", ""),
        ("D. x", ""),
        ("B.", ""),
        ("b", ""),
        ("The answer is C.", "C"),
        ("The answer is C", "C"),
        ("LECTURE: long. The answer is A. BECAUSE: The answer is C.", ""),
        ("the dog", ""),
        ("", ""),
    ],
)
def test_scienceqa_reads_a_letter_as_llava_does(answer, chosen):
    assert scienceqa_choice(answer, OPTIONS) == chosen


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("Answer: B", "B"),
        ("B or C", ""),
        ("It is the dog", "B"),
        ("The Dog and birds", ""),
        ("A man with a hat", ""),
        ("A small cat", "A"),
        ("A bird or birds it seems", ""),
        ("D", ""),
        ("", ""),
    ],
)
def test_mmbench_reads_a_letter_that_stands_alone_or_an_option(answer, chosen):
    assert mmbench_choice(answer, OPTIONS) == chosen


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(A) is wrong, (C) is right", "C"),
        ("C or B", "B"),
        ("B. the dog", "B"),
        ("I think that it is surely the dog", "B"),
        ("the dog", ""),
        ("not birds but rather the dog there", "B"),
        ("none of these", ""),
        ("", ""),
    ],
)
def test_mmmu_takes_the_last_letter_named(answer, chosen):
    assert mmmu_choice(answer, OPTIONS) == chosen


@pytest.mark.parametrize(
    ("answer", "references", "right"),
    [
        ("The result is 1,234.561", ["1234.56"], 1),
        ("x = 5\ny = 7", ["7"], 1),
        ("x = 5\ny = 7", ["5"], 0),
        ("so the answer is Paris.", ["paris"], 1),
        ("Paris", ["paris", "london"], 1),
        ("1e3", ["1000"], 1),
        ("about 3", ["3"], 1),
        ("13", ["3"], 0),
        ("x", ["x"], 1),
        ("ax", ["x"], 0),
        ("", ["1"], 0),
    ],
)
def test_open_answers_are_looked_for_at_their_key_places(answer, references, right):
    assert open_match(answer, references) == right


def test_letters_go_on_in_the_alphabet():
    assert letters(4) == "ABCD" and letters(0) == ""
