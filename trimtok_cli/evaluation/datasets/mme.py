"""MME: fourteen tasks of pictures with two yes-or-no questions each (arXiv 2306.13394).

Two published layouts: the benchmark, a folder a task with pictures and a .txt of two questions for
each; and the results folder of its evaluation tool, `TASK.txt` with a line a question: picture,
question, answer. Pictures have other endings in different lists, so that their names are compared
without.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.datasets.asking import asked
from trimtok_cli.evaluation.datasets.base import SHORT_ANSWER, Dataset, Pair, Scores
from trimtok_cli.evaluation.datasets.files import read_text
from trimtok_cli.evaluation.metrics.mme import TASKS, mme
from trimtok_cli.readers.folders import known_kind
from trimtok_cli.wording import shortened

_SUFFIX = " Please answer yes or no."


def samples(folder: Path, *, split: str = "", images: Path | None = None) -> Iterator[Sample]:
    """The samples; `extra` has `category`, the task, `picture`, a name without ending, and `label`.

    The id is the task and the picture, as LLaVA writes it, so that two samples share one.
    """
    there = [task for task in TASKS if (folder / f"{task}.txt").is_file()]
    if there:
        for task in there:
            yield from _listed(folder / f"{task}.txt", task, images or folder)
        return
    there = [task for task in TASKS if (folder / task).is_dir()]
    if not there:
        raise UsageError(
            f"--data: {shortened(str(folder))} holds no task of MME; looked for folders or .txt "
            f"files named {', '.join(TASKS[:3])}, ..."
        )
    for task in there:
        yield from _task(folder / task, task, (images or folder) / task)


def _listed(path: Path, task: str, root: Path) -> Iterator[Sample]:
    for place, cells in _lines(path, 3):
        name, question, label = cells[:3]
        yield _sample(task, root / task / name, question, label, f"{path} {place}")


def _task(folder: Path, task: str, root: Path) -> Iterator[Sample]:
    """The samples of a task, its questions in a folder of their own or among the pictures."""
    texts = folder / "questions_answers_YN"
    files = sorted((texts if texts.is_dir() else folder).glob("*.txt"))
    if not files:
        raise UsageError(f"--data: {folder} holds no questions; looked for a .txt of each picture.")
    pictures = root / "images" if (root / "images").is_dir() else root
    for path in files:
        picture = next(
            (each for each in sorted(pictures.glob(f"{path.stem}.*")) if known_kind(each.name)),
            pictures / f"{path.stem}.jpg",
        )
        for place, (question, label) in _lines(path, 2):
            yield _sample(task, picture, question, label, f"{path} {place}")


def _lines(path: Path, cells: int) -> Iterator[tuple[str, list[str]]]:
    """(place, cells) of each line. UsageError for one with fewer than so many cells."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        found = [cell.strip() for cell in line.split("\t")]
        if len(found) < cells:
            raise UsageError(
                f"--data: {path} line {number} has {len(found)} cells between tabs, and MME's have "
                f"{cells}."
            )
        yield f"line {number}", found


def _sample(task: str, picture: Path, question: str, label: str, place: str) -> Sample:
    if label.lower() not in ("yes", "no"):
        raise UsageError(f"--data: {place} is labelled {shortened(label, 40)!r}, not Yes or No.")
    sample = Sample(
        id=f"{task}/{picture.name}",
        images=(picture,),
        names=(f"{task}/{picture.name}",),
        question=question.removesuffix(_SUFFIX).rstrip(),
        answers=(label,),
    )
    extra = {"category": task, "picture": picture.stem, "label": label}
    return asked(sample, SHORT_ANSWER, extra)


def score(pairs: Sequence[Pair]) -> Scores:
    """Perception, the headline, cognition, their sum, and each task, in points."""
    facts = (
        (sample.extra["category"], sample.extra["picture"], sample.extra["label"], answer)
        for sample, answer in pairs
    )
    return Scores("perception", mme(facts))


MME = Dataset(
    name="mme",
    title="MME",
    layout="a folder a task ({task}/images/, {task}/questions_answers_YN/, or both in {task}/), or "
    "the evaluation tool's {task}.txt",
    samples=samples,
    score=score,
    prompt=SHORT_ANSWER,
)
