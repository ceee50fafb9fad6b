"""Kept tokens as SVG path data over a picture. Knows no file."""

from collections.abc import Sequence
from dataclasses import dataclass

from trimtok_cli.data import Comparison, Result
from trimtok_cli.outputs.pictures import Picture
from trimtok_cli.outputs.token_layout import Box


@dataclass(frozen=True, slots=True)
class Overlay:
    """The tokens of a picture left after the stage at `layer`.

    path: SVG path data in pixels. The veil has a hole there; outlined: tokens are edged.
    """

    layer: int
    kept: int
    dense: int
    path: str
    outlined: bool = True


def boxes_on(comparison: Comparison, picture: Picture) -> dict[int, Box]:
    """The boxes of the visual tokens of a picture, by their numbers in the dense prompt."""
    frames = comparison.frame or (0,) * len(comparison.boxes)
    places = enumerate(zip(comparison.boxes, comparison.visual_index, frames, strict=False))
    return {
        token: box
        for token, (box, owner, frame) in places
        if owner == picture.number and picture.frame in (None, frame)
    }


def overlays(
    comparison: Comparison, result: Result, picture: Picture, size: tuple[int, int]
) -> list[Overlay]:
    """An overlay for each stage that dropped a token of the prompt; size: (width, height).

    Dense has a veil only over parts that the processor cropped, which no token sees.
    """
    boxes = boxes_on(comparison, picture)
    shown = [box for box in boxes.values() if _has_area(box)]
    if not shown:
        return []
    found = []
    for stage in result.kept:
        if len(stage.tokens) < len(comparison.boxes):
            kept = [boxes[token] for token in stage.tokens if token in boxes]
            found.append(Overlay(stage.layer, len(kept), len(boxes), edges(kept, size)))
    return found or _cropped(shown, len(boxes), size)


def seen_part(boxes: Sequence[Box]) -> Box:
    """The smallest box around all boxes."""
    low = [min(side) for side in zip(*boxes, strict=True)]
    high = [max(side) for side in zip(*boxes, strict=True)]
    return low[0], low[1], high[2], high[3]


def edges(boxes: Sequence[Box], size: tuple[int, int]) -> str:
    """Boxes as SVG path data, larger ones first, so that fine tokens lie over coarse ones."""
    width, height = size
    drawn = sorted(filter(_has_area, boxes), key=lambda b: (b[0] - b[2]) * (b[3] - b[1]))
    corners = ((x0 * width, y0 * height, x1 * width, y1 * height) for x0, y0, x1, y1 in drawn)
    return "".join(
        "M{:g} {:g}H{:g}V{:g}H{:g}z".format(*(round(v, 1) for v in (x0, y0, x1, y1, x0)))
        for x0, y0, x1, y1 in corners
    )


def _cropped(shown: Sequence[Box], dense: int, size: tuple[int, int]) -> list[Overlay]:
    seen = seen_part(shown)
    if (seen[2] - seen[0]) * (seen[3] - seen[1]) > 0.99:
        return []
    return [Overlay(0, dense, dense, edges([seen], size), outlined=False)]


def _has_area(box: Box) -> bool:
    return box[2] > box[0] and box[3] > box[1]
