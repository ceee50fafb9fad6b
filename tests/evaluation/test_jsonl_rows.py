"""Rows of one's own: references, parts, and what is refused."""

import json

import pytest

from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.datasets.jsonl import JSONL
from trimtok_cli.evaluation.datasets.registry import DATASETS, dataset_named

ROWS = [
    {
        "question_id": 1,
        "image": "a.png",
        "text": "How many?",
        "answers": ["2", "two"],
        "task": "count",
    },
    {
        "question_id": 2,
        "image": "a.png",
        "text": "Which colour?",
        "answer": "red",
        "task": "colour",
    },
    {"question_id": 3, "text": "And now?", "answer": "Paris", "task": "colour"},
]


def samples(tmp_path, rows=ROWS):
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [*JSONL.samples(tmp_path)]


def test_an_answer_is_right_if_it_equals_a_reference_but_for_case_and_a_full_stop(tmp_path):
    pairs = list(zip(samples(tmp_path), ("Two.", "dark red", "PARIS"), strict=True))
    scores = JSONL.score(pairs)
    assert scores.each == [100, 0, 100]
    assert scores.values["accuracy"] == pytest.approx(200 / 3)
    assert scores.values["count/accuracy"] == 100 and scores.values["colour/accuracy"] == 50


def test_an_empty_answer_is_never_right(tmp_path):
    pairs = [(sample, "") for sample in samples(tmp_path)]
    assert JSONL.score(pairs).values["accuracy"] == 0


def test_a_row_without_a_reference_is_refused(tmp_path):
    with pytest.raises(UsageError, match="row 9 has no reference; put one under answers"):
        samples(tmp_path, [*ROWS, {"question_id": 9, "text": "What?"}])


def test_a_broken_row_is_refused_with_its_place(tmp_path):
    with pytest.raises(UsageError, match=r"questions\.jsonl line 4: there is no question"):
        samples(tmp_path, [*ROWS, {"question_id": 9, "answer": "x"}])


def test_an_unknown_name_is_refused_with_all_names():
    with pytest.raises(UsageError, match=r"no data set popee \(did you mean pope\?\); choose one"):
        dataset_named("popee")
    assert all(dataset_named(name) is dataset for name, dataset in DATASETS.items())


def test_a_folder_of_several_files_of_rows_is_not_guessed_at(tmp_path):
    for name in ("a.jsonl", "answers.jsonl"):
        (tmp_path / name).write_text(json.dumps(ROWS[0]))
    with pytest.raises(UsageError, match=r"several files of rows, such as a\.jsonl and answers"):
        [*JSONL.samples(tmp_path)]
    assert len(samples(tmp_path)) == 3  # questions.jsonl is there now
    assert len([*JSONL.samples(tmp_path / "a.jsonl")]) == 1
