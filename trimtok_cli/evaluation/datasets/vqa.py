"""VQAv2 and OK-VQA: questions about COCO's pictures, each with the answers of ten people."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.datasets.asking import asked
from trimtok_cli.evaluation.datasets.base import SHORT_ANSWER, Dataset, Pair, Samples, Scores
from trimtok_cli.evaluation.datasets.files import image_root, read_json, read_rows, required
from trimtok_cli.evaluation.datasets.parts import scores_of_means
from trimtok_cli.evaluation.metrics.vqa import vqa_accuracy
from trimtok_cli.readers.columns import references
from trimtok_cli.wording import brief

SPLITS = ("val2014", "train2014")


def _reader(prefix: str) -> Samples:
    def samples(folder: Path, *, split: str = "", images: Path | None = None) -> Iterator[Sample]:
        split = split or SPLITS[0]
        questions = f"{prefix}OpenEnded_mscoco_{split}_questions.json"
        notes = f"{prefix}mscoco_{split}_annotations.json"
        path = required(folder, (questions, f"**/{questions}"), "questions")
        base = folder.parent if folder.is_file() else folder
        answers = _answers(required(base, (notes, f"**/{notes}"), "answers"))
        for sample in read_rows(path, image_root(folder, images, split, f"images/{split}")):
            if sample.id not in answers:
                raise UsageError(f"--data: question {brief(sample.id)} has no answers in {notes}.")
            given, kind = answers[sample.id]
            yield asked(replace(sample, answers=given), SHORT_ANSWER, {"answer_type": kind})

    return samples


def _answers(path: Path) -> dict[object, tuple[tuple[str, ...], str]]:
    """The answers of each question and their kind: yes/no, number or other."""
    document = read_json(path)
    notes = document.get("annotations") if isinstance(document, dict) else None
    if not isinstance(notes, list) or not all(isinstance(note, dict) for note in notes):
        raise UsageError(f"--data: {path} holds no annotations.")
    return {
        note.get("question_id"): (references(note), str(note.get("answer_type") or ""))
        for note in notes
    }


def score(pairs: Sequence[Pair]) -> Scores:
    """VQA accuracy, of all and of each kind of answer."""
    each = [100.0 * vqa_accuracy(answer, sample.answers) for sample, answer in pairs]
    return scores_of_means("accuracy", each, pairs, "answer_type")


VQAV2 = Dataset(
    name="vqav2",
    title="VQAv2",
    layout="v2_OpenEnded_mscoco_{split}_questions.json, v2_mscoco_{split}_annotations.json; "
    "pictures in {split}/",
    samples=_reader("v2_"),
    score=score,
    prompt=SHORT_ANSWER,
    splits=SPLITS,
)

OKVQA = Dataset(
    name="okvqa",
    title="OK-VQA",
    layout="OpenEnded_mscoco_{split}_questions.json, mscoco_{split}_annotations.json; pictures in "
    "{split}/",
    samples=_reader(""),
    score=score,
    prompt=SHORT_ANSWER,
    splits=SPLITS,
)
