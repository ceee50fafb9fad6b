"""ScienceQA: school questions with options, half of them about a picture (arXiv 2209.09513).

A question is asked as in LLaVA's question file (`llava_test_CQM-A.json`, which is not read): its
context, the question, and the options on one line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.datasets.asking import asked
from trimtok_cli.evaluation.datasets.base import LETTER_ANSWER, Dataset, Pair, Scores
from trimtok_cli.evaluation.datasets.files import image_root, read_json, records, required
from trimtok_cli.evaluation.datasets.options import options_of
from trimtok_cli.evaluation.datasets.parts import scores_of_means
from trimtok_cli.evaluation.metrics.choices import letters, scienceqa_choice

SPLITS = ("test", "val", "minival", "train", "trainval")


def samples(folder: Path, *, split: str = "", images: Path | None = None) -> Iterator[Sample]:
    """The samples of a split; `extra` has `options` by letter, `subject` and `pictures`.

    `pictures` is `with picture` or `text only`: published IMG accuracies are of the former.
    """
    split = split or SPLITS[0]
    base = folder.parent if folder.is_file() else folder
    path = required(base, ("problems.json", "**/problems.json"), "problems")
    splits = read_json(required(base, ("pid_splits.json", "**/pid_splits.json"), "splits"))
    wanted = splits.get(split) if isinstance(splits, dict) else None
    if not isinstance(wanted, list):
        raise UsageError(f"--data: pid_splits.json has no split {split}.")
    problems = dict(records(path, ("question", "choices", "answer")))
    root = image_root(path.parent, images, f"images/{split}", split, "images")
    for key in map(str, wanted):
        if key not in problems:
            raise UsageError(f"--data: {path} has no problem {key}, which is of split {split}.")
        yield _sample(key, problems[key], root)


def _sample(key: str, problem: dict[str, Any], root: Path) -> Sample:
    choices = [str(choice) for choice in problem["choices"]]
    options = dict(zip(letters(len(choices)), choices, strict=True))
    right = problem["answer"]
    if not isinstance(right, int) or not 0 <= right < len(choices):
        raise UsageError(f"--data: problem {key} has {right!r} for an answer, which is no option.")
    name = f"{key}/{problem['image']}" if problem.get("image") else ""
    listed = " ".join(f"({letter}) {text}" for letter, text in options.items())
    context = str(problem.get("hint") or "").strip() or "N/A"
    question = str(problem["question"])
    sample = Sample(
        id=key,
        images=(root / name,) if name else (),
        names=(name,) if name else (),
        question=f"Context: {context}\nQuestion: {question}\nOptions: {listed}",
        answers=(letters(len(choices))[right],),
    )
    extra = {
        "options": options,
        "subject": str(problem.get("subject") or ""),
        "pictures": "with picture" if name else "text only",
    }
    made = asked(sample, LETTER_ANSWER, extra)
    return replace(made, extra={**made.extra, "question": question})


def score(pairs: Sequence[Pair]) -> Scores:
    """Accuracy, of all, with and without a picture, and of each subject."""
    each = [
        100.0 * float(scienceqa_choice(answer, options_of(sample)) in sample.answers)
        for sample, answer in pairs
    ]
    by_picture = scores_of_means("accuracy", each, pairs, "pictures")
    by_subject = scores_of_means("accuracy", each, pairs, "subject")
    return replace(by_picture, values={**by_picture.values, **by_subject.values})


SCIENCEQA = Dataset(
    name="scienceqa",
    title="ScienceQA",
    layout="problems.json, pid_splits.json; pictures in images/{split}/{id}/",
    samples=samples,
    score=score,
    prompt=LETTER_ANSWER,
    splits=SPLITS,
)
