"""Rows of your own with the right answers beside them: the file that `trimtok vqa` reads.

References are what the readers find: `answers`, `answer`, `gt_answer` or `label`. A `task` or
`category` divides the samples into parts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.datasets.asking import asked
from trimtok_cli.evaluation.datasets.base import Dataset, Pair, Scores
from trimtok_cli.evaluation.datasets.files import image_root, read_rows, required
from trimtok_cli.evaluation.datasets.parts import scores_of_means
from trimtok_cli.evaluation.metrics.anls import anls
from trimtok_cli.evaluation.metrics.counting import mean
from trimtok_cli.evaluation.metrics.exact_match import exact_match
from trimtok_cli.wording import brief

_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_PARTS = ("task", "category")


def samples(folder: Path, *, split: str = "", images: Path | None = None) -> Iterator[Sample]:
    """The samples as they are asked; one without a reference is refused."""
    path = _file(folder)
    for sample in read_rows(path, image_root(folder, images), text_only=True):
        if not sample.answers:
            raise UsageError(
                f"--data: {path} row {brief(sample.id)} has no reference; put one under answers."
            )
        yield asked(sample, "{question}", {})


def _file(folder: Path) -> Path:
    """The file itself, questions.jsonl, or the only file of rows in the folder."""
    rows = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in _ENDINGS]
    if len(rows) > 1 and not (folder / "questions.jsonl").is_file():
        raise UsageError(
            f"--data: {folder} holds several files of rows, such as {rows[0].name} and "
            f"{rows[1].name}; name the one with the questions."
        )
    patterns = ("questions.jsonl", *(f"*{ending}" for ending in _ENDINGS))
    return required(folder, patterns, "file of questions")


def score(pairs: Sequence[Pair]) -> Scores:
    """Exact match, of all and of each task, and ANLS for answers that are nearly right."""
    each = [100.0 * exact_match(answer, sample.answers) for sample, answer in pairs]
    near = [100.0 * anls(answer, sample.answers) for sample, answer in pairs]
    scores = scores_of_means("accuracy", each, pairs, *_PARTS)
    return replace(scores, values={**scores.values, "anls": mean(near)})


JSONL = Dataset(
    name="jsonl",
    title="rows with answers",
    layout="questions.jsonl, or a file itself: rows as trimtok vqa reads them, with answers",
    samples=samples,
    score=score,
    max_new_tokens=64,
)
