"""MMBench: questions with options in a TSV that holds its pictures (arXiv 2307.06281).

With CircularEval a question stands there several times, with its options turned round; rows whose
indices are equal but for millions are one question, right if all its rows are. The test splits have
no answers.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from trimtok_cli.blobs import Held
from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.datasets.asking import asked
from trimtok_cli.evaluation.datasets.base import LETTER_ANSWER, Dataset, Pair, Scores
from trimtok_cli.evaluation.datasets.files import read_text, required
from trimtok_cli.evaluation.datasets.options import options_of, with_letters
from trimtok_cli.evaluation.datasets.parts import scores_of_means
from trimtok_cli.evaluation.metrics.choices import letters, mmbench_choice
from trimtok_cli.evaluation.metrics.counting import mean
from trimtok_cli.readers.columns import Problem
from trimtok_cli.readers.media_names import held
from trimtok_cli.readers.text import LONGEST
from trimtok_cli.wording import shortened

_NEEDED = ("index", "question", "A", "B", "answer", "image")

# Rows of one question differ by multiples of this in their index.
_ROUND = 1_000_000


def samples(folder: Path, *, split: str = "", images: Path | None = None) -> Iterator[Sample]:
    """The samples; `extra` has `options` by letter, `category` and `round_of`, the first index."""
    path = required(folder, ("*mmbench*.tsv", "*MMBench*.tsv", "*.tsv"), "MMBench TSV")
    csv.field_size_limit(LONGEST)
    pictures: dict[int, Held] = {}
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter="\t")
    lacking = [name for name in _NEEDED if name not in (rows.fieldnames or ())]
    if lacking:
        raise UsageError(
            f"--data: {shortened(str(path))} has no column {lacking[0]}; MMBench's TSV has "
            f"{', '.join(_NEEDED)}."
        )
    for row in rows:
        yield _sample(row, pictures, f"{path} line {rows.line_num}")


def _sample(row: dict[str, str], pictures: dict[int, Held], place: str) -> Sample:
    options = {letter: row[letter] for letter in letters(26) if row.get(letter)}
    try:
        index = int(row["index"] or "")
        picture = _picture(row["image"] or "", index, pictures)
    except (ValueError, Problem) as problem:
        raise UsageError(f"--data: {place}: {problem}.") from None
    if row["answer"] not in options:
        raise UsageError(
            f"--data: {place} has no answer among its options; MMBench publishes none for its "
            "test splits, which only its server scores."
        )
    hint = (row.get("hint") or "").strip()
    hint = "" if hint.lower() in ("nan", "none") else f"{hint}\n"
    question = row["question"]
    sample = Sample(
        id=index,
        images=(picture,),
        names=(picture.name,),
        question=f"{hint}{question}\n{with_letters(options)}",
        answers=(row["answer"],),
    )
    extra = {
        "options": options,
        "category": row.get("l2-category") or row.get("category") or "",
        "round_of": index % _ROUND,
    }
    made = asked(sample, LETTER_ANSWER, extra)
    return replace(made, extra={**made.extra, "question": question})


def _picture(cell: str, index: int, pictures: dict[int, Held]) -> Held:
    """The picture of a row: base64, or the index of the row that has it."""
    if cell.isdigit() and len(cell) < 16:
        if int(cell) not in pictures:
            raise Problem(f"its picture is that of row {cell}, which is not above it")
        return pictures[int(cell)]
    pictures[index] = Held(f"{index}.jpg", held(f"data:;base64,{cell}").content)
    return pictures[index]


def score(pairs: Sequence[Pair]) -> Scores:
    """Accuracy, of all rows and of each category; `circular` where questions come in rounds.

    Then a question is right if each of its rows is, and that is the headline.
    """
    each = [
        100.0 * float(mmbench_choice(answer, options_of(sample)) in sample.answers)
        for sample, answer in pairs
    ]
    scores = scores_of_means("accuracy", each, pairs, "category")
    rounds: dict[int, list[float]] = defaultdict(list)
    for (sample, _), value in zip(pairs, each, strict=True):
        rounds[sample.extra["round_of"]].append(value)
    if len(rounds) == len(each):
        return scores
    circular = mean([min(values) for values in rounds.values()])
    return Scores("circular", {"circular": circular, **scores.values})


MMBENCH = Dataset(
    name="mmbench",
    title="MMBench",
    layout="a TSV of a dev split: index, question, hint, A to D, answer, category, image (base64)",
    samples=samples,
    score=score,
    prompt=LETTER_ANSWER,
)
