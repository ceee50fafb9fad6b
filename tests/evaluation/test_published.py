"""Published scores to the last digit: the answers of LLaVA-1.5-13B, as its authors published them.

`tests/golden/published.json` holds each answer by one letter, and what is right. The files around
them are made here: the formats are the published ones, pictures and questions have numbers for
names. Rows of answers stand in another order than the questions.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from typer.testing import CliRunner

from tests.evaluation.test_datasets import SHORT
from trimtok_cli.cli import app

PUBLISHED = json.loads(
    (Path(__file__).parent.parent / "golden" / "published.json").read_text(encoding="utf-8")
)
WORDS = {"Y": "Yes", "N": "No", "y": "yes", "n": "no"}
WORDS |= {each: f"{each.upper()}. the option's own words" for each in "abcde"}


def said(letters: str, others: Iterator[str] = iter(())) -> list[str]:
    """The answers of letters; a `?` is the next of the others."""
    return [next(others) if each == "?" else WORDS.get(each, each) for each in letters]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def answer(number: object, question: str, text: str) -> dict:
    return {"question_id": number, "prompt": question + SHORT, "text": text, "metadata": {}}


def scored(answers: list[dict], dataset: str) -> dict[str, float]:
    """The scores of answers in any order, to the digits that `trimtok score` prints."""
    random.Random(7).shuffle(answers)
    write_rows(Path("answers.jsonl"), answers)
    line = ["score", "answers.jsonl", "--dataset", dataset, "--data", "data", "--json"]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)["scores"]
    return {name: round(value, 2) for name, value in found["values"].items()}


def test_mme_of_llava_is_1531_32_and_295_36():
    """Of two questions about a picture the first is right to affirm."""
    others, answers = iter(PUBLISHED["mme"]["others"]), []
    for part, letters in PUBLISHED["mme"]["parts"].items():
        rows = []
        for number, text in enumerate(said(letters, others)):
            question = f"Is it number {number}?"
            right = "No" if number % 2 else "Yes"
            rows.append(f"{number // 2}.png\t{question} Please answer yes or no.\t{right}\n")
            answers.append(answer(f"{part}/{number // 2}.png", question, text))
        Path("data").mkdir(exist_ok=True)
        Path("data", f"{part}.txt").write_text("".join(rows))
    assert len(answers) == 2374
    found = scored(answers, "mme")
    assert (found["perception"], found["cognition"]) == (1531.32, 295.36)


def test_pope_of_llava_is_87_14_and_86_25_and_84_46():
    answers, asked = [], []
    for category, lists in PUBLISHED["pope"].items():
        labels = []
        for number, (label, text) in enumerate(
            zip(said(lists["labels"]), said(lists["answers"]), strict=True)
        ):
            question = f"Is there a thing {number} in the image?"
            row = {"image": f"COCO_val2014_{number // 6:012d}.jpg", "text": question}
            labels.append({"question_id": number + 1, **row, "label": label})
            asked.append(
                {
                    "question_id": len(asked),
                    **row,
                    "text": question + SHORT,
                    "category": category,
                }
            )
            answers.append(answer(len(answers), question, text))
        write_rows(Path("data/coco", f"coco_pope_{category}.json"), labels)
    write_rows(Path("data/llava_pope_test.jsonl"), asked)
    found = scored(answers, "pope")
    assert [found[f"{each}/f1"] for each in ("random", "popular", "adversarial")] == [
        87.14,
        86.25,
        84.46,
    ]
    assert [found[f"{each}/accuracy"] for each in ("random", "popular", "adversarial")] == [
        88.01,
        87.43,
        85.5,
    ]
    assert found["f1"] == 85.95


def test_scienceqa_of_llava_is_74_39():
    lists = PUBLISHED["scienceqa"]
    texts = said(lists["answers"], iter(lists["others"]))
    problems, answers = {}, []
    for number, (options, right, text) in enumerate(
        zip(lists["options"], lists["right"], texts, strict=True)
    ):
        problems[str(number)] = {
            "question": f"Which is {number}?",
            "choices": [f"{number} of {each}" for each in range(int(options))],
            "answer": "ABCDE".index(right),
        }
        answers.append({"question_id": str(number), "text": text, "metadata": {}})
    Path("data").mkdir()
    Path("data/problems.json").write_text(json.dumps(problems))
    Path("data/pid_splits.json").write_text(json.dumps({"test": list(problems)}))
    assert len(answers) == 4241
    assert scored(answers, "scienceqa")["accuracy"] == 74.39
