"""COCO and NoCaps: pictures to describe, each with several captions by people."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.datasets.base import Dataset, Pair, Samples, Scores
from trimtok_cli.evaluation.datasets.files import image_root, read_rows, required
from trimtok_cli.evaluation.metrics.caption_words import caption_words
from trimtok_cli.evaluation.metrics.captions import bleu, rouge_l
from trimtok_cli.evaluation.metrics.cider import cider_d
from trimtok_cli.evaluation.metrics.counting import mean
from trimtok_cli.wording import brief

PROMPT = "Provide a one-sentence caption for the provided image."

# Pictures below which CIDEr-D says little.
_FEW = 100

_WORDS = (
    "Captions are taken apart without the toolkit's Java, which moves CIDEr-D by a tenth of a per "
    "cent at most on COCO; published CIDEr is this number, or a hundredth of it."
)

COCO_SPLITS = ("val2014", "val2017", "train2014", "train2017")


def _reader(patterns: Callable[[str], Sequence[str]], default: str) -> Samples:
    def samples(folder: Path, *, split: str = "", images: Path | None = None) -> Iterator[Sample]:
        split = split or default
        path = required(folder, patterns(split), "captions")
        root = image_root(folder, images, split, f"images/{split}", "images")
        for sample in read_rows(path, root, command="caption"):
            if not sample.answers:
                raise UsageError(f"--data: {path} has no caption of picture {brief(sample.id)}.")
            yield replace(sample, question=PROMPT)

    return samples


def score(pairs: Sequence[Pair]) -> Scores:
    """CIDEr-D, BLEU-1 to 4 and ROUGE-L, times 100; each is the CIDEr-D of a picture.

    `domain`, which NoCaps has, divides CIDEr-D's mean into parts; rarity is that of the whole set.
    """
    words = [
        (caption_words(answer), [caption_words(each) for each in sample.answers])
        for sample, answer in pairs
    ]
    each = [100.0 * value for value in cider_d(words)]
    values = {"cider": mean(each)}
    values |= {f"bleu{n}": 100.0 * value for n, value in enumerate(bleu(words), start=1)}
    values["rouge_l"] = 100.0 * mean([rouge_l(*pair) for pair in words])
    parts: dict[str, list[float]] = defaultdict(list)
    for (sample, _), value in zip(pairs, each, strict=True):
        if domain := sample.extra.get("domain"):
            parts[str(domain)].append(value)
    values |= {f"{part}/cider": mean(own) for part, own in parts.items()}
    notes = [_WORDS]
    if len(pairs) < _FEW:
        notes.append(
            f"CIDEr-D takes the rarity of words from these {len(pairs)} pictures alone; below "
            f"{_FEW} it says little."
        )
    return Scores("cider", values, each, notes)


COCO = Dataset(
    name="coco",
    title="COCO captions",
    layout="annotations/captions_{split}.json, or a list of its form; pictures in {split}/",
    samples=_reader(
        lambda split: (f"captions_{split}.json", f"annotations/captions_{split}.json"),
        COCO_SPLITS[0],
    ),
    score=score,
    prompt=PROMPT,
    max_new_tokens=64,
    splits=COCO_SPLITS,
)

NOCAPS = Dataset(
    name="nocaps",
    title="NoCaps",
    layout="nocaps_val_4500_captions.json; pictures in val/ or images/",
    samples=_reader(
        lambda split: (f"nocaps_{split}_4500_captions.json", f"nocaps_{split}*captions.json"),
        "val",
    ),
    score=score,
    prompt=PROMPT,
    max_new_tokens=64,
    splits=("val",),
)
