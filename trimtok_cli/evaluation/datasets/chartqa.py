"""ChartQA: questions about charts, half of them by people (arXiv 2203.10244)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from trimtok_cli.data import Sample
from trimtok_cli.evaluation.datasets.asking import asked
from trimtok_cli.evaluation.datasets.base import SHORT_ANSWER, Dataset, Pair, Scores
from trimtok_cli.evaluation.datasets.files import found, image_root, records, required
from trimtok_cli.evaluation.datasets.parts import scores_of_means
from trimtok_cli.evaluation.metrics.relaxed import relaxed_match

PARTS = ("human", "augmented")
SPLITS = ("test", "val", "train")


def samples(folder: Path, *, split: str = "", images: Path | None = None) -> Iterator[Sample]:
    """The samples of both halves, or of the one that is there; `extra` has `part`.

    ChartQA has no ids; a sample's is its half and its number there, from 0.
    """
    for part, path in _files(folder, split or SPLITS[0]).items():
        root = image_root(path.parent, images, "png", "images")
        rows = records(path, ("imgname", "query", "label"))
        for number, (_, record) in enumerate(rows):
            sample = Sample(
                id=f"{part}/{number}",
                images=(root / str(record["imgname"]),),
                names=(str(record["imgname"]),),
                question=str(record["query"]),
                answers=(str(record["label"]),),
            )
            yield asked(sample, SHORT_ANSWER, {"part": part})


def _files(folder: Path, split: str) -> dict[str, Path]:
    """The file of each half."""
    if folder.is_file():
        return {folder.stem.rpartition("_")[2]: folder}
    names = {part: f"{split}_{part}.json" for part in PARTS}
    files = {
        part: found(folder, (name, f"{split}/{name}", f"**/{name}")) for part, name in names.items()
    }
    there = {part: path for part, path in files.items() if path}
    return there or {
        "": required(folder, [f"{split}/{name}" for name in names.values()], "questions")
    }


def score(pairs: Sequence[Pair]) -> Scores:
    """Relaxed accuracy, of all and of each half."""
    each = [100.0 * relaxed_match(answer, sample.answers) for sample, answer in pairs]
    return scores_of_means("accuracy", each, pairs, "part")


CHARTQA = Dataset(
    name="chartqa",
    title="ChartQA",
    layout="{split}/{split}_human.json, {split}/{split}_augmented.json; pictures in {split}/png/",
    samples=samples,
    score=score,
    prompt=SHORT_ANSWER,
    max_new_tokens=16,
    splits=SPLITS,
)
