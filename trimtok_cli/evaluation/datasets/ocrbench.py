"""OCRBench: a thousand questions whose answers are texts in pictures (arXiv 2305.07895)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from trimtok_cli.data import Sample
from trimtok_cli.evaluation.datasets.asking import asked
from trimtok_cli.evaluation.datasets.base import Dataset, Pair, Scores
from trimtok_cli.evaluation.datasets.files import image_root, records, required
from trimtok_cli.evaluation.datasets.parts import scores_of_means
from trimtok_cli.evaluation.metrics.containment import contains
from trimtok_cli.readers.columns import references

# The set whose answers are formulas, which are compared without blanks and with case.
_FORMULAS = "HME100k"


def samples(folder: Path, *, split: str = "", images: Path | None = None) -> Iterator[Sample]:
    """The samples; `extra` has `type`, the kind of task, and `dataset_name`, where it is from."""
    path = required(folder, ("OCRBench.json", "**/OCRBench.json"), "questions")
    root = image_root(path.parent, images, "OCRBench_Images", "images")
    rows = records(path, ("image_path", "question", "answers", "type", "dataset_name"))
    for number, (key, record) in enumerate(rows):
        name = str(record["image_path"])
        sample = Sample(
            id=key or number,
            images=(root / name,),
            names=(name,),
            question=str(record["question"]),
            answers=references(record),
        )
        extra = {name: str(record[name]) for name in ("type", "dataset_name")}
        yield asked(sample, "{question}", extra)


def score(pairs: Sequence[Pair]) -> Scores:
    """The share of answers that hold a reference, of all and of each task; `points` of a thousand.

    Points are the number of right answers, as the authors report them.
    """
    right = [
        contains(answer, sample.answers, formula=sample.extra["dataset_name"] == _FORMULAS)
        for sample, answer in pairs
    ]
    scores = scores_of_means("accuracy", [100.0 * value for value in right], pairs, "type")
    return replace(scores, values={**scores.values, "points": sum(right)})


OCRBENCH = Dataset(
    name="ocrbench",
    title="OCRBench",
    layout="OCRBench.json; pictures in OCRBench_Images/",
    samples=samples,
    score=score,
    max_new_tokens=128,
)
