"""Comparisons made by hand, and pictures that lie nowhere."""

from pathlib import Path

from PIL import Image

from trimtok_cli.data import (
    Comparison,
    Kept,
    Media,
    Result,
    Sample,
    Seconds,
    Setting,
    TokenCounts,
)
from trimtok_cli.errors import MediaError

GRID = tuple((x / 4, y / 4, (x + 1) / 4, (y + 1) / 4) for y in range(4) for x in range(4))
DENSE = Seconds(load=0.01, prepare=0.01, encode=0.05, prefill=0.08, decode=0.05)
FAST = Seconds(load=0.01, prepare=0.01, encode=0.05, prune=0.005, prefill=0.02, decode=0.05)


def make(
    *answers,
    sample=None,
    kept=((5, 10),),
    boxes=GRID,
    index=None,
    dense=DENSE,
    fast=FAST,
    generated=(4, 4),
) -> Comparison:
    """A Comparison of the dense answer and the pruned ones; None stands for a failed answer."""
    sample = sample or Sample("one", question="What is it?", answers=("a red cat",))
    results = []
    for i, answer in enumerate(answers):
        alive = kept[min(i, len(kept)) - 1] if i else tuple(range(len(boxes)))
        results.append(
            Result(
                sample,
                sample.question or "",
                answer or "",
                Setting("trimtokenator", str(len(kept[min(i, len(kept)) - 1]))) if i else Setting(),
                TokenCounts(
                    text=9,
                    visual=len(boxes),
                    kept=len(alive),
                    layer_mean=float(len(alive)),
                    generated=generated[bool(i)],
                    stages=((0, len(alive)),),
                ),
                fast if i else dense,
                kept=(Kept(0, alive),) if i else (),
                error="" if answer is not None else "out of memory",
            )
        )
    return Comparison(sample, tuple(results), boxes, (0,) * len(boxes) if index is None else index)


def load(path: Path) -> tuple[Image.Image, Media]:
    if "broken" in path.name:
        raise MediaError(f"{path.name} is not an image")
    width, height = (800, 400) if "wide" in path.name else (40, 40)
    return Image.new("RGB", (width, height), (200, 30, 30)), Media(width, height, "RGB")


def picture(*names: str, **fields) -> Sample:
    return Sample(
        "one", tuple(Path(name) for name in names), names, question="What is it?", **fields
    )
