"""trimtok score: what answers are worth, whoever gave them. Loads no model."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from trimtok_cli.commands import options as o
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.commands.terminal.scores import parts_table, scores_table
from trimtok_cli.data import Sample
from trimtok_cli.errors import EXIT_OK, EXIT_SOME_FAILED, UsageError
from trimtok_cli.evaluation.answer_files import Answer, answers_of, read_answers
from trimtok_cli.evaluation.datasets.base import Dataset, Scores
from trimtok_cli.evaluation.datasets.registry import DATASETS, dataset_named
from trimtok_cli.evaluation.joining import Joined, join
from trimtok_cli.outputs.earlier import read_manifest
from trimtok_cli.outputs.exports.answers import Answers
from trimtok_cli.wording import brief, shortened

SKIP, WRONG = MISSING = ("skip", "wrong")

EXAMPLES = (
    "Examples:\n\n"
    "trimtok score answers.jsonl --dataset pope --data playground/data/eval/pope\n\n"
    "trimtok score dense pruned --dataset jsonl --data questions.jsonl\n\n"
    "trimtok score LaVIN --dataset mme --data Your_Results --json\n\n"
    "Names and layouts of the data sets: trimtok_cli/evaluation/datasets/README.md."
)

AnswerFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="ANSWERS...",
        help="Files of answers (trimtok's, LLaVA's, COCO's, VQA's or GQA's results, ScienceQA's "
        "outputs, MME's .txt), or folders of runs; several give one table.",
        show_default=False,
    ),
]

Name = Annotated[
    str,
    typer.Option(
        "--dataset",
        help=f"What was asked: {', '.join(DATASETS)}.",
        show_default=False,
        autocompletion=o.completing(DATASETS),
    ),
]

Data = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar="DIR",
        help="The folder of the data set in its published layout, or its file of questions.",
        show_default=False,
    ),
]

Split = Annotated[
    str,
    typer.Option("--split", help="The split that was asked.", show_default="the data set's usual"),
]

Missing = Annotated[
    str,
    typer.Option(
        "--missing",
        help="Samples without an answer: skip (score the others, and say so) or wrong (as an empty "
        "answer is).",
        autocompletion=o.completing(MISSING),
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@dataclass(frozen=True, slots=True)
class Scored:
    """One file of answers, joined and scored."""

    path: Path
    joined: Joined
    scores: Scores

    @property
    def complete(self) -> bool:
        return not self.joined.missing and not self.joined.foreign

    @property
    def empty(self) -> int:
        return len([answer for _, answer in self.joined.pairs if not answer.strip()])

    def as_dict(self, missing: str) -> dict[str, Any]:
        return {
            "file": str(self.path),
            "main": self.scores.main,
            "values": dict(self.scores.values),
            "samples": self.joined.total,
            "answered": len(self.joined.pairs),
            "partial": bool(self.joined.missing),
            "missing": len(self.joined.missing),
            "missing_counts_as": missing,
            "empty": self.empty,
            "unjoined": len(self.joined.foreign),
            "notes": list(self.scores.notes),
        }


@guarded
def score(
    answers: AnswerFiles,
    dataset: Name,
    data: Data,
    split: Split = "",
    missing: Missing = SKIP,
    as_json: AsJson = False,
    debug: o.Debug = False,
) -> int:
    """The command `trimtok score`; its help is in `cli.COMMANDS`."""
    if missing not in MISSING:
        raise UsageError(f"--missing must be skip or wrong, got {brief(missing)}.")
    asked = dataset_named(dataset)
    if split and split not in asked.splits and asked.splits != ("",):
        raise UsageError(
            f"--split: {asked.title} has {', '.join(asked.splits)}, and not {brief(split)}."
        )
    samples = [*asked.samples(data, split=split)]
    if not samples:
        raise UsageError(f"--data: {shortened(str(data))} holds no sample of {asked.title}.")
    scored = [_scored(path, asked, samples, missing) for path in answers]
    if as_json:
        document = {
            "dataset": asked.name,
            "data": str(data),
            "split": split or asked.splits[0],
            "scores": [each.as_dict(missing) for each in scored],
        }
        typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        _show(asked, scored, missing)
    return EXIT_OK if all(each.complete for each in scored) else EXIT_SOME_FAILED


def _scored(path: Path, dataset: Dataset, samples: Sequence[Sample], missing: str) -> Scored:
    answers = _answers(path)
    try:
        joined = join(samples, answers)
    except UsageError as error:
        raise UsageError(f"{shortened(str(path))}: {error}") from None
    if not joined.pairs:
        raise UsageError(
            f"no answer of {shortened(str(path))} is to a sample of {dataset.title}: the first has "
            f"{_said(answers[0])}, and the first sample {_asked(samples[0])}."
        )
    pairs = list(joined.pairs)
    if missing == WRONG:
        pairs += [(sample, "") for sample in joined.missing]
    return Scored(path, joined, dataset.score(pairs))


def _answers(path: Path) -> list[Answer]:
    """The answers of a file, or of a run of trimtok as a run that goes on reads them."""
    file = path / "answers.jsonl" if path.is_dir() else path
    own = "" if file.name == "answers.jsonl" else f"{file.stem}."
    manifest = file.with_name(f"{own}run.json")
    if file.is_file() and manifest.is_file():
        with closing(Answers(file, read_manifest(manifest))) as run:
            return [*answers_of(run.records(), shortened(str(file)))]
    return read_answers(file if file.is_file() else path)


def _said(answer: Answer) -> str:
    """What an answer says of its question, for a message."""
    facts = {
        "id": answer.id,
        "picture": ", ".join(answer.images),
        "question": answer.question,
    }
    known = [f"{name} {brief(value)!r}" for name, value in facts.items() if value]
    return ", ".join(known) or "neither an id nor a picture nor a question"


def _asked(sample: Sample) -> str:
    question = str(sample.extra.get("question") or "")
    return _said(Answer("", "", str(sample.id), question, sample.names))


def _show(dataset: Dataset, scored: Sequence[Scored], missing: str) -> None:
    console, screen = Console(highlight=False), Screen()
    labels = short_names([each.path for each in scored])
    answered = [
        f"{len(each.joined.pairs):,} of {each.joined.total:,}" if each.joined.missing else ""
        for each in scored
    ]
    scores = [each.scores for each in scored]
    console.print(scores_table(dataset.title, labels, scores, answered))
    if len(scored) == 1 and (parts := parts_table(scored[0].scores)):
        console.print(parts)
    for label, each in zip(labels, scored, strict=True):
        for sentence in _remarks(each, missing):
            screen.say(f"{label}: {sentence}", "yellow")
    for note in dict.fromkeys(note for each in scored for note in each.scores.notes):
        screen.say(f"note: {note}")


def short_names(paths: Sequence[Path]) -> list[str]:
    """The paths by as many of their last parts as tell them apart, the same number for all."""
    parts = [path.absolute().parts for path in paths]
    count = next(
        (n for n in range(1, 100) if len({each[-n:] for each in parts}) == len({*parts})), 1
    )
    return [shortened("/".join(each[-count:]), 40) for each in parts]


def _remarks(each: Scored, missing: str) -> list[str]:
    """What a reader of the numbers must know of one file of answers."""
    joined, remarks = each.joined, []
    if joined.missing:
        done = (
            "count as wrong" if missing == WRONG else "are left out (--missing wrong counts them)"
        )
        remarks.append(
            f"partial: {len(joined.pairs):,} of {joined.total:,} samples are answered; the others "
            f"{done}."
        )
    if each.empty:
        remarks.append(f"{each.empty:,} answers are empty or failed, and count as wrong.")
    if joined.foreign:
        first = joined.foreign[0]
        remarks.append(
            f"{len(joined.foreign):,} answers are to no sample of this data, such as {first.place} "
            f"with {_said(first)}."
        )
    return remarks
