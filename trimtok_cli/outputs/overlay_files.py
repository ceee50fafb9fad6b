"""Kept tokens drawn over pictures as PNG files, and several of them as a figure.

The dropped parts are darkened, as on the page. Knows no model.
"""

import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from trimtok_cli.data import Comparison, Result
from trimtok_cli.errors import MediaError
from trimtok_cli.outputs.page.overlays import boxes_on
from trimtok_cli.outputs.pictures import Loader, Picture, pictures_of
from trimtok_cli.outputs.token_layout import Box
from trimtok_cli.outputs.whole_files import put, writing

VEIL, OPACITY = (11, 15, 22), 0.68
EDGE, LEAST_EDGED = (235, 235, 235), 6  # pixels that a token is wide, to have an edge

_ODD = re.compile(r"[^A-Za-z0-9._@=+-]+")


def write_overlays(folder: Path, number: int, comparison: Comparison, loader: Loader) -> int:
    """Writes a PNG for each picture and setting of the sample `number`; returns how many.

    A picture that cannot be read again has none.
    """
    count = 0
    for i, picture in enumerate(pictures_of(comparison), start=1):
        for result in comparison.results:
            if result.error or (drawn := overlaid(comparison, result, picture, loader)) is None:
                continue
            name = file_name(number, comparison, i, result)
            content = BytesIO()
            drawn.save(content, "PNG")
            with writing(folder / name) as file:
                put(file, content.getvalue())
            count += 1
    return count


def file_name(number: int, comparison: Comparison, picture: int, result: Result) -> str:
    """A name in ASCII without a folder, unlike that of any other overlay of the run."""
    last = re.split(r"[/\\]", str(comparison.sample.id))[-1]
    parts = (f"{number:05d}", _safe(last.rpartition(".")[0] or last), str(picture))
    return f"{'-'.join(part for part in parts if part)}-{_safe(result.setting.name)}.png"


def overlaid(
    comparison: Comparison, result: Result, picture: Picture, loader: Loader
) -> Any | None:
    """The picture with its dropped tokens darkened; None if it cannot be read again."""
    try:
        image = loader.image(picture)
    except (MediaError, OSError, ValueError):
        return None
    boxes = boxes_on(comparison, picture)
    dropped = bool(result.kept) and len(result.kept[-1].tokens) < len(comparison.boxes)
    if not boxes or not dropped:
        return image
    return darkened(image, [boxes[token] for token in result.kept[-1].tokens if token in boxes])


def darkened(image: Any, kept: Sequence[Box]) -> Any:
    """The image, dark everywhere but in the boxes, which are edged where they are large enough."""
    from PIL import Image, ImageDraw

    dark = Image.blend(image, Image.new("RGB", image.size, VEIL), OPACITY)
    mask = Image.new("L", image.size, 0)
    draw = ImageDraw.Draw(mask)
    places = list(_pixels(kept, image.size))
    for place in places:
        draw.rectangle(place, fill=255)
    drawn = Image.composite(image, dark, mask)
    edge = ImageDraw.Draw(drawn)
    for place in places:
        if place[2] - place[0] >= LEAST_EDGED:
            edge.rectangle(place, outline=EDGE)
    return drawn


def _pixels(boxes: Sequence[Box], size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """The first and the last pixel of each box that has an area, in both directions."""
    width, height = size
    for x0, y0, x1, y1 in boxes:
        left, top = round(x0 * width), round(y0 * height)
        right, bottom = round(x1 * width) - 1, round(y1 * height) - 1
        if x1 > x0 and y1 > y0:
            yield left, top, max(left, right), max(top, bottom)


def _safe(text: str, most: int = 80) -> str:
    return _ODD.sub("-", text).strip("-.")[:most]
