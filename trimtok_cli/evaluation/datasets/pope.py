"""POPE: three lists of yes-or-no questions about objects in pictures (arXiv 2305.10355).

The labels are POPE's own files. Where LLaVA's question file lies beside them, it says what is asked
and under which ids; its rows find their labels by category, picture and question, because POPE's
ids differ, and one of its lists has been longer since.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.datasets.asking import asked, question_alone
from trimtok_cli.evaluation.datasets.base import SHORT_ANSWER, Dataset, Pair, Scores
from trimtok_cli.evaluation.datasets.files import found, image_root, read_rows, required
from trimtok_cli.evaluation.metrics.counting import mean
from trimtok_cli.evaluation.metrics.pope import pope
from trimtok_cli.wording import brief

CATEGORIES = ("random", "popular", "adversarial")
SPLITS = ("coco", "aokvqa", "gqa")

_LLAVA = "llava_pope_test.jsonl"


def samples(folder: Path, *, split: str = "", images: Path | None = None) -> Iterator[Sample]:
    """The samples; `extra` has `label` and `category`."""
    split = split or SPLITS[0]
    root = image_root(folder, images, "val2014", "coco/val2014", "images")
    if folder.is_file():
        yield from _labelled(folder, _category(folder), root)
        return
    questions = found(folder, (_LLAVA,)) if split == SPLITS[0] else None
    if questions:
        yield from _llava(questions, folder, root)
        return
    files = {each: found(folder, _patterns(split, each)) for each in CATEGORIES}
    if not any(files.values()):
        required(folder, [_patterns(split, each)[0] for each in CATEGORIES], "labels of POPE")
    for category, path in files.items():
        if path:
            yield from _labelled(path, category, root)


def _patterns(split: str, category: str) -> tuple[str, ...]:
    name = f"{split}_pope*_{category}.json*"
    return (name, f"{split}/{name}", f"**/{name}")


def _category(path: Path) -> str:
    return next((each for each in CATEGORIES if path.stem.endswith(f"_{each}")), path.stem)


def _labelled(path: Path, category: str, root: Path) -> Iterator[Sample]:
    for sample in read_rows(path, root):
        label = str(sample.extra.get("label", "")).strip().lower()
        if label not in ("yes", "no"):
            raise UsageError(
                f"--data: {path} question {brief(sample.id)} has no label, which must be yes or no."
            )
        yield asked(
            replace(sample, id=f"{category}/{sample.id}", answers=(label,)),
            SHORT_ANSWER,
            {"label": label, "category": category},
        )


def _llava(path: Path, folder: Path, root: Path) -> Iterator[Sample]:
    labels: dict[str, dict[tuple[str, str], str]] = {}
    for sample in read_rows(path, root):
        category = str(sample.extra.get("category", ""))
        if category not in labels:
            file = required(folder, _patterns(SPLITS[0], category), f"labels of {category}")
            labels[category] = {
                _content(each): each.answers[0] for each in _labelled(file, category, root)
            }
        label = labels[category].get(_content(sample))
        if label is None:
            raise UsageError(
                f"--data: {path} question {brief(sample.id)} of {category} is not among POPE's "
                "labels; both files must be of one version."
            )
        extra = {"label": label, "category": category}
        yield asked(replace(sample, answers=(label,)), SHORT_ANSWER, extra)


def _content(sample: Sample) -> tuple[str, str]:
    return Path(sample.names[0]).stem, question_alone(sample.question or "")


def score(pairs: Sequence[Pair]) -> Scores:
    """Each list by itself, and the means over the lists; LLaVA's headline is the mean F1."""
    lists: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for sample, answer in pairs:
        lists[str(sample.extra["category"])].append((answer, str(sample.extra["label"])))
    parts = {name: pope(said) for name, said in lists.items()}
    values = {name: mean([part[name] for part in parts.values()]) for name in pope(())}
    for name, part in parts.items():
        values |= {f"{name}/{metric}": value for metric, value in part.items()}
    return Scores("f1", values)


POPE = Dataset(
    name="pope",
    title="POPE",
    layout="coco/coco_pope_{random,popular,adversarial}.json, and LLaVA's llava_pope_test.jsonl "
    "if its answers are scored; pictures in val2014/",
    samples=samples,
    score=score,
    prompt=SHORT_ANSWER,
    max_new_tokens=16,
    splits=SPLITS,
)
