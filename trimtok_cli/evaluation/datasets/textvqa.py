"""TextVQA: questions about text in pictures, each with the answers of ten people (1904.08920).

Where LLaVA's question file lies beside the annotations, its questions are asked, which have the
texts that an OCR program found in the picture: LLaVA's published accuracy is with them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from trimtok_cli.data import Sample
from trimtok_cli.evaluation.datasets.asking import asked
from trimtok_cli.evaluation.datasets.base import SHORT_ANSWER, Dataset, Pair, Scores
from trimtok_cli.evaluation.datasets.files import found, image_root, read_rows, required
from trimtok_cli.evaluation.datasets.parts import scores_of_means
from trimtok_cli.evaluation.metrics.vqa import textvqa_accuracy

_OCR_MARK = "Reference OCR token:"


def samples(folder: Path, *, split: str = "", images: Path | None = None) -> Iterator[Sample]:
    """The samples; `extra` has `image_id`."""
    name = f"TextVQA_0.5.1_{split or 'val'}.json"
    path = required(folder, (name,), "questions")
    root = image_root(folder, images, "train_images", "images")
    llava = found(folder, (f"llava_textvqa_{split or 'val'}_v051_ocr.jsonl",))
    texts = _llava_texts(llava, root) if llava else {}
    for sample in read_rows(path, root):
        content = (Path(sample.names[0]).stem, (sample.question or "").lower())
        made = asked(sample, SHORT_ANSWER, {})
        yield replace(made, question=texts.get(content, made.question))


def _llava_texts(path: Path, root: Path) -> dict[tuple[str, str], str]:
    """(picture, question) -> the text that LLaVA asks."""
    texts = {}
    for sample in read_rows(path, root):
        text = sample.question or ""
        lines = text.split("\n")
        question = lines[1] if lines[0].startswith(_OCR_MARK) and len(lines) > 1 else lines[0]
        texts[Path(sample.names[0]).stem, question.lower()] = text
    return texts


def score(pairs: Sequence[Pair]) -> Scores:
    """TextVQA's accuracy."""
    each = [100.0 * textvqa_accuracy(answer, sample.answers) for sample, answer in pairs]
    return scores_of_means("accuracy", each, pairs)


TEXTVQA = Dataset(
    name="textvqa",
    title="TextVQA",
    layout="TextVQA_0.5.1_val.json, and llava_textvqa_val_v051_ocr.jsonl to ask as LLaVA does; "
    "pictures in train_images/",
    samples=samples,
    score=score,
    prompt=SHORT_ANSWER,
    splits=("val", "train"),
)
