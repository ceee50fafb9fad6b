"""MMMU: college questions about one picture or several, from Parquet files (arXiv 2311.16502)."""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimtok_cli.blobs import Blob
from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.datasets.asking import asked
from trimtok_cli.evaluation.datasets.base import LETTER_ANSWER, SHORT_ANSWER, Dataset, Pair, Scores
from trimtok_cli.evaluation.datasets.files import required
from trimtok_cli.evaluation.datasets.options import options_of, with_letters
from trimtok_cli.evaluation.datasets.parts import scores_of_means
from trimtok_cli.evaluation.metrics.choices import letters, mmmu_choice
from trimtok_cli.evaluation.metrics.open_answer import open_match
from trimtok_cli.readers.columns import Problem
from trimtok_cli.readers.parquet import parquet_table
from trimtok_cli.wording import shortened

_NEEDED = ("id", "question", "options", "answer", "question_type")

# How a question refers to its pictures.
_MARK = re.compile(r"<image (\d)>")

_SUBJECT = re.compile(r"^(?:validation|dev|test)_(.+)_\d+$")


def samples(folder: Path, *, split: str = "", images: Path | None = None) -> Iterator[Sample]:
    """The samples of every subject; `extra` has `options` by letter (none if open) and `subject`.

    The pictures that a question names come in its order; the text calls them `image 1`, ....
    """
    split = split or "validation"
    first = required(folder, (f"{split}-*.parquet", f"**/{split}-*.parquet"), "Parquet files")
    files = [first] if folder.is_file() else sorted(folder.glob(f"**/{split}-*.parquet"))
    for path in files:
        for place, row in parquet_table(str(path), shortened(str(path))).rows():
            if isinstance(row, Problem):
                raise UsageError(f"--data: {path} {place}: {row}.")
            lacking = [name for name in _NEEDED if name not in row]
            if lacking:
                raise UsageError(f"--data: {path} has no column {lacking[0]}, which MMMU's have.")
            yield _sample(row, f"{path} {place}")


def _sample(row: dict[str, Any], place: str) -> Sample:
    choices = [str(each) for each in _listed(row["options"])]
    options = dict(zip(letters(len(choices)), choices, strict=True))
    answers = tuple(str(each) for each in _listed(row["answer"])) or (str(row["answer"]),)
    if options and answers[0] not in options:
        raise UsageError(f"--data: {place} has no answer among its options.")
    question = str(row["question"])
    text = f"{question}\n{with_letters(options)}" if options else question
    numbers = list(dict.fromkeys(_MARK.findall(text))) or ["1"]
    pictures = [row.get(f"image_{number}") for number in numbers]
    held = tuple(each for each in pictures if isinstance(each, Blob))
    subject = _SUBJECT.match(str(row["id"]))
    sample = Sample(
        id=str(row["id"]),
        images=held,
        names=tuple(each.name for each in held),
        question=_MARK.sub(r"image \1", text),
        answers=answers,
    )
    extra = {"options": options, "subject": subject[1] if subject else ""}
    made = asked(sample, LETTER_ANSWER if options else SHORT_ANSWER, extra)
    return replace(made, extra={**made.extra, "question": _MARK.sub(r"image \1", question)})


def _listed(value: Any) -> list[Any]:
    """A list that a cell holds, as such or as Python writes it; [] for any other text."""
    if isinstance(value, list):
        return value
    try:
        made = ast.literal_eval(value) if isinstance(value, str) and value[:1] == "[" else []
    except (ValueError, SyntaxError):
        return []
    return made if isinstance(made, list) else []


def score(pairs: Sequence[Pair]) -> Scores:
    """Accuracy, of all and of each subject."""
    each = [100.0 * _right(sample, answer) for sample, answer in pairs]
    return scores_of_means("accuracy", each, pairs, "subject")


def _right(sample: Sample, answer: str) -> float:
    options = options_of(sample)
    if not options:
        return open_match(answer, sample.answers)
    return float(mmmu_choice(answer, options) in sample.answers)


MMMU = Dataset(
    name="mmmu",
    title="MMMU",
    layout="{subject}/{split}-*.parquet (pip install 'trimtok[parquet]')",
    samples=samples,
    score=score,
    prompt=LETTER_ANSWER,
    splits=("validation", "dev"),
)
