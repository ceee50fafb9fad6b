"""GQA: questions about scenes, each with one answer (arXiv 1902.09506)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from trimtok_cli.data import Sample
from trimtok_cli.evaluation.datasets.asking import asked
from trimtok_cli.evaluation.datasets.base import SHORT_ANSWER, Dataset, Pair, Scores
from trimtok_cli.evaluation.datasets.files import image_root, records, required
from trimtok_cli.evaluation.datasets.parts import scores_of_means
from trimtok_cli.evaluation.metrics.exact_match import exact_match

SPLITS = ("testdev", "val", "train")


def samples(folder: Path, *, split: str = "", images: Path | None = None) -> Iterator[Sample]:
    """The samples of the balanced questions; `extra` has `structural`, the kind of question."""
    name = f"{split or SPLITS[0]}_balanced_questions.json"
    path = required(folder, (name, f"**/{name}"), "questions")
    root = image_root(folder, images, "images", "data/images")
    for key, record in records(path, ("question", "imageId", "answer")):
        kinds = record.get("types")
        image = f"{record['imageId']}.jpg"
        sample = Sample(
            id=key,
            images=(root / image,),
            names=(image,),
            question=str(record["question"]),
            answers=(str(record["answer"]),),
        )
        kind = kinds.get("structural", "") if isinstance(kinds, dict) else ""
        yield asked(sample, SHORT_ANSWER, {"structural": kind})


def score(pairs: Sequence[Pair]) -> Scores:
    """Exact match, of all and of each kind of question."""
    each = [100.0 * exact_match(answer, sample.answers) for sample, answer in pairs]
    return scores_of_means("accuracy", each, pairs, "structural")


GQA = Dataset(
    name="gqa",
    title="GQA",
    layout="{split}_balanced_questions.json; pictures in images/",
    samples=samples,
    score=score,
    prompt=SHORT_ANSWER,
    splits=SPLITS,
)
