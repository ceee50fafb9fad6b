"""trimtok score: published formats and rules end to end, partial runs, several files, refusals."""

import json
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.evaluation.test_datasets import LAYOUTS, SHORT, write
from trimtok_cli.cli import app
from trimtok_cli.commands.score import short_names
from trimtok_cli.evaluation.datasets.registry import DATASETS
from trimtok_cli.evaluation.metrics.mme import COGNITION, PERCEPTION

ROOT = Path(__file__).parent.parent.parent


def score(*arguments, code=0):
    done = CliRunner().invoke(app, ["score", *map(str, arguments)], env={"COLUMNS": "80"})
    assert done.exit_code == code, done.output
    return done


def scores(*arguments, code=0):
    return json.loads(score(*arguments, "--json", code=code).stdout)["scores"]


def rows_file(path, rows):
    write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


# POPE, as LLaVA's answers are scored: 60 questions, counts chosen, scores worked out by hand.


def pope_data(folder):
    """Ten pictures, two questions each and three lists; LLaVA's rows in another order."""
    asked = []
    for category in ("random", "popular", "adversarial"):
        rows = [
            {
                "question_id": number + 1,
                "image": f"COCO_val2014_{number // 2:012d}.jpg",
                "text": f"Is there a {category if number % 2 else 'snowboard'} in the image?",
                "label": "no" if number % 2 else "yes",
            }
            for number in range(20)
        ]
        rows_file(folder / "coco" / f"coco_pope_{category}.json", rows)
        asked += [(row, category) for row in rows]
    asked = asked[::-1]
    rows_file(
        folder / "llava_pope_test.jsonl",
        [
            {"question_id": n, "image": row["image"], "text": row["text"] + SHORT, "category": each}
            for n, (row, each) in enumerate(asked)
        ],
    )
    return asked


def pope_answers(path, asked, said):
    """LLaVA's lines, which name no picture. said: from a row and its category."""
    return rows_file(
        path,
        [
            {
                "question_id": number,
                "prompt": row["text"] + SHORT,
                "text": said(row, category),
                "answer_id": "ab",
                "model_id": "llava-v1.5-13b",
                "metadata": {},
            }
            for number, (row, category) in enumerate(asked)
        ],
    )


def test_llavas_answers_to_pope_give_the_scores_of_its_script(tmp_path):
    """Yes to every object but two, and to two (random), four (popular) and five (adversarial) that
    are not there: TP 8, FN 2, FP 2, 4, 5, so F1 is 16/20, 16/22 and 16/23."""
    asked = pope_data(tmp_path / "pope")
    false = {"random": 2, "popular": 4, "adversarial": 5}

    def said(row, category):
        picture = int(row["image"][-6:-4])
        if row["label"] == "yes":
            return "No, it is not." if picture < 2 else "Yes"
        return "Yes, there is" if picture < false[category] else "No"

    file = pope_answers(tmp_path / "answers.jsonl", asked, said)
    (found,) = scores(file, "--dataset", "pope", "--data", tmp_path / "pope")
    values = {name: round(value, 2) for name, value in found["values"].items()}
    assert values["random/f1"] == 80.0 and values["popular/f1"] == 72.73
    assert values["adversarial/f1"] == 69.57 and values["f1"] == 74.10
    assert values["popular/accuracy"] == 70.0 and values["popular/precision"] == 66.67
    assert values["popular/recall"] == 80.0 and values["popular/yes"] == 60.0
    assert (found["samples"], found["answered"], found["partial"]) == (60, 60, False)


def test_without_llavas_question_file_its_ids_say_nothing(tmp_path):
    asked = pope_data(tmp_path / "pope")
    file = pope_answers(tmp_path / "answers.jsonl", asked, lambda row, category: "Yes")
    (tmp_path / "pope" / "llava_pope_test.jsonl").unlink()
    done = score(file, "--dataset", "pope", "--data", tmp_path / "pope", code=2)
    assert (
        "no answer of" in done.stderr and "the first has id '0', question 'Is there" in done.stderr
    )


def test_one_list_is_scored_by_itself_from_lines_that_name_the_picture(tmp_path):
    pope_data(tmp_path / "pope")
    path = tmp_path / "pope" / "coco" / "coco_pope_popular.json"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    answers = [
        {"question_id": row["question_id"], "prompt": row["text"], "text": row["label"].title()}
        | {"image": row["image"]}
        for row in rows[::-1]
    ]
    file = rows_file(tmp_path / "answers.jsonl", answers)
    (found,) = scores(file, "--dataset", "pope", "--data", path)
    assert found["values"]["f1"] == found["values"]["popular/f1"] == 100


# MME, in the text files of its own tool.


def mme_files(folder, said):
    """Three pictures a task; said: from task, picture and label. Your_Results beside the answers."""
    for task, column in product(PERCEPTION + COGNITION, ("Your_Results", "answers")):
        lines = []
        for picture, label in product(("0001", "0002", "0003"), ("Yes", "No")):
            question = f"Is it {label.lower()}?  Please answer yes or no."
            cells = [f"{picture}.png", question, label]
            if column == "answers":
                cells = [f"{picture}.jpg", question, label, said(task, picture, label)]
            lines.append("\t".join(cells))
        order = lines if column == "answers" else lines[::-1]
        write(folder / column / f"{task}.txt", "\n".join(order) + "\n")
    return folder / "answers", folder / "Your_Results"


def test_mmes_text_files_give_accuracy_and_accuracy_plus_in_points(tmp_path):
    """Each task: 5 of 6 questions and 2 of 3 pictures, 150 points; count: one in two, no picture."""

    def said(task, picture, label):
        if task == "count":
            return "yes"
        return "Maybe" if (picture, label) == ("0002", "No") else f"{label}, I think."

    answers, data = mme_files(tmp_path, said)
    (found,) = scores(answers, "--dataset", "mme", "--data", data)
    values = found["values"]
    assert values["OCR/score"] == pytest.approx(100 * 5 / 6 + 100 * 2 / 3)
    assert values["count/score"] == pytest.approx(50)
    assert values["perception"] == pytest.approx(9 * 150 + 50) and found["main"] == "perception"
    assert values["cognition"] == pytest.approx(4 * 150)
    shown = score(answers, "--dataset", "mme", "--data", data).stdout
    assert "1400.00" in shown and "600.00" in shown and "2000.00" in shown
    assert max(map(len, shown.splitlines())) <= 80


# ScienceQA.


def test_scienceqas_outputs_give_llavas_accuracy(tmp_path):
    """Seven of nine right; a letter that is no option, and a sentence without one, are wrong."""
    problems = {
        str(n): {
            "question": f"Which, {n}?",
            "choices": ["x", "y", "z"],
            "answer": n % 3,
            "hint": "",
            "image": "image.png" if n < 3 else None,
            "subject": "natural science",
        }
        for n in range(9)
    }
    write(tmp_path / "sqa" / "problems.json", problems)
    write(tmp_path / "sqa" / "pid_splits.json", {"test": [*problems]})
    texts = ["A", "B. y", "The answer is C.", "A", "B", "C", "D", "because of x", "The answer is C"]
    rows = [
        {
            "question_id": str(n),
            "prompt": f"<image>\nContext: N/A\nQuestion: Which, {n}?\nOptions: (A) x (B) y (C) z",
            "text": text,
        }
        for n, text in enumerate(texts)
    ]
    file = rows_file(tmp_path / "llava.jsonl", rows[::-1])
    (found,) = scores(file, "--dataset", "scienceqa", "--data", tmp_path / "sqa")
    assert found["values"]["accuracy"] == pytest.approx(100 * 7 / 9)
    assert found["values"]["with picture/accuracy"] == 100
    assert found["values"]["text only/accuracy"] == pytest.approx(100 * 4 / 6)
    write(tmp_path / "result.json", {"outputs": {str(n): text for n, text in enumerate(texts)}})
    assert (
        scores(tmp_path / "result.json", "--dataset", "scienceqa", "--data", tmp_path / "sqa")[0][
            "values"
        ]
        == found["values"]
    )


# What the command does with any data set.


@pytest.fixture
def own(tmp_path):
    """Ten rows of one's own, and a function that writes answers to some of them."""
    rows = [
        {"question_id": n, "image": f"{n}.png", "text": f"Number {n}?", "answers": [str(n)]}
        for n in range(10)
    ]
    data = rows_file(tmp_path / "data" / "questions.jsonl", rows)

    def answers(name, numbers, said=str, **more):
        given = [
            {"question_id": n, "prompt": f"Number {n}?", "text": said(n)} | more for n in numbers
        ]
        return rows_file(tmp_path / name, given)

    return data, answers


def test_a_partial_run_is_said_to_be_partial_and_ends_with_3(own):
    data, answers = own
    file = answers("a.jsonl", range(4), lambda n: "0")
    done = score(file, "--dataset", "jsonl", "--data", data, code=3)
    assert re.search(r"a\.jsonl +25\.00 .* 4 of 10", done.stdout)
    assert "partial: 4 of 10 samples are answered; the others are left out" in done.stderr
    done = score(file, "--dataset", "jsonl", "--data", data, "--missing", "wrong", code=3)
    assert re.search(r"a\.jsonl +10\.00 .* 4 of 10", done.stdout)
    assert "the others count as wrong" in done.stderr
    (found,) = scores(file, "--dataset", "jsonl", "--data", data, code=3)
    assert (found["partial"], found["missing"], found["missing_counts_as"]) == (True, 6, "skip")


def test_failed_and_empty_answers_are_counted_and_wrong(own):
    data, answers = own
    file = answers("a.jsonl", range(10), lambda n: str(n) if n > 1 else " ")
    done = score(file, "--dataset", "jsonl", "--data", data)
    assert "2 answers are empty or failed, and count as wrong" in done.stderr
    assert "80.00" in done.stdout and "partial" not in done.stderr


def test_answers_to_nothing_are_named_and_end_with_3(own):
    data, answers = own
    done = score(answers("a.jsonl", range(11)), "--dataset", "jsonl", "--data", data, code=3)
    assert "1 answers are to no sample of this data, such as row 11 with id '10'" in done.stderr


def test_several_files_give_one_table(own):
    data, answers = own
    files = [answers("dense.jsonl", range(10)), answers("pruned.jsonl", range(10), lambda n: "1")]
    done = score(*files, "--dataset", "jsonl", "--data", data)
    assert re.search(r"dense\.jsonl +100\.00[^%]*pruned\.jsonl +10\.00", done.stdout)
    assert [
        each["values"]["accuracy"] for each in scores(*files, "--dataset", "jsonl", "--data", data)
    ] == [100, 10]


def test_files_are_called_by_what_tells_them_apart():
    paths = [Path("a/dense/answers.jsonl"), Path("a/pruned/answers.jsonl")]
    assert short_names(paths) == ["dense/answers.jsonl", "pruned/answers.jsonl"]
    assert short_names(paths[:1]) == short_names(paths[:1] * 2)[:1] == ["answers.jsonl"]


def test_a_run_of_trimtok_is_scored_by_its_folder(own):
    data, answers = own
    answers("out/answers.jsonl", range(10), metadata={"status": "ok"}, image="x.png")
    done = score(data.parent.parent / "out", "--dataset", "jsonl", "--data", data, code=2)
    assert "no answer of" in done.stderr  # the pictures are other ones
    answers("out/answers.jsonl", range(10), metadata={"status": "ok"})
    assert (
        "100.00" in score(data.parent.parent / "out", "--dataset", "jsonl", "--data", data).stdout
    )


def test_cider_of_few_pictures_says_so(tmp_path):
    LAYOUTS["coco"](tmp_path)
    file = rows_file(
        tmp_path / "a.jsonl",
        [{"image_id": 9, "caption": "A dog."}, {"image_id": 8, "caption": "Cats"}],
    )
    done = score(file, "--dataset", "coco", "--data", tmp_path)
    assert "from these 2 pictures alone; below 100 it says little" in done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "popee"), r"no data set popee \(did you mean pope\?\); choose one of coco"),
        (("--dataset", "pope"), "holds no labels of POPE; looked for"),
        (("--dataset", "jsonl", "--missing", "no"), "--missing must be skip or wrong, got no"),
        (("--dataset", "gqa", "--split", "tset"), "GQA has testdev, val, train, and not tset"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments, message, own):
    data, answers = own
    done = score(answers("a.jsonl", range(3)), "--data", data.parent, *arguments, code=2)
    assert re.search(message, done.stderr) and done.stderr.count("\n") == 1


def test_a_file_that_is_not_there_is_named(own):
    data, _ = own
    done = score("nowhere.jsonl", "--dataset", "jsonl", "--data", data, code=2)
    assert "there is no file nowhere.jsonl" in done.stderr


def test_the_readme_lists_every_data_set_with_its_files():
    folder = ROOT / "trimtok_cli" / "evaluation" / "datasets"
    table = (folder / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    assert listed == [*DATASETS]


def test_answers_are_scored_without_torch(own):
    data, answers = own
    code = (
        "import sys\nfrom trimtok_cli.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    )
    file = answers("a.jsonl", range(10))
    line = [sys.executable, "-c", code, "score", file, "--dataset", "jsonl", "--data", data]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert "100.00" in done.stdout and done.stdout.strip().endswith("False"), done.stderr
