"""Boxes of visual tokens as strips: rows of equal boxes that lie side by side.

A strip is [picture, frame, number of boxes, x0, y0, x1, y1]. A prompt of LLaVA-1.5 is 24 strips
where it has 576 boxes. Knows no file.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

Box = tuple[float, float, float, float]
Strip = list[float]

ROUNDED = 1.1e-5  # how far apart equal edges are, which were rounded to 5 digits


def strips_of(boxes: Sequence[Box], pictures: Sequence[int], frames: Sequence[int]) -> list[Strip]:
    """The strips of boxes that are rounded to 5 digits; no frames are frame 0 of each picture."""
    places = list(zip(boxes, pictures, frames or (0,) * len(boxes), strict=True))
    starts = [
        number
        for number, (before, here) in enumerate(pairwise(places), start=1)
        if not _goes_on(before, here)
    ]
    strips: list[Strip] = []
    for start, end in pairwise([0, *starts, len(places)]) if places else ():
        run = places[start:end]
        while run:  # widths may drift by less than an edge shows, so a run is cut where it does
            count = next(n for n in range(len(run), 0, -1) if _is_even(run[:n]))
            (x0, y0, _, _), picture, frame = run[0]
            strips.append([picture, frame, count, x0, y0, *run[count - 1][0][2:]])
            run = run[count:]
    return strips


def boxes_of(
    strips: Iterable[Sequence[float]],
) -> tuple[tuple[Box, ...], tuple[int, ...], tuple[int, ...]]:
    """The boxes, their pictures and their frames, as `strips_of` took them.

    Raises ValueError or TypeError for what is no list of strips.
    """
    boxes: list[Box] = []
    pictures: list[int] = []
    frames: list[int] = []
    for picture, frame, count, x0, y0, x1, y1 in strips:
        number = int(count)
        edges = [round(x0 + (x1 - x0) * i / number, 5) for i in range(number + 1)]
        boxes += [(left, y0, right, y1) for left, right in pairwise(edges)]
        pictures += [int(picture)] * number
        frames += [int(frame)] * number
    return tuple(boxes), tuple(pictures), tuple(frames)


def _goes_on(before: tuple[Box, int, int], here: tuple[Box, int, int]) -> bool:
    """Whether a box lies right of the one before it, as wide and as high."""
    (left, top, right, bottom), *owner = before
    (x0, y0, x1, y1), *other = here
    return (
        owner == other
        and (y0, y1) == (top, bottom)
        and abs(x0 - right) <= ROUNDED
        and abs((x1 - x0) - (right - left)) <= 2 * ROUNDED
        and x1 > x0
    )


def _is_even(run: Sequence[tuple[Box, int, int]]) -> bool:
    """Whether even division of the run gives its boxes back."""
    x0, x1, count = run[0][0][0], run[-1][0][2], len(run)
    return all(
        abs(box[0] - (x0 + (x1 - x0) * i / count)) <= ROUNDED
        and abs(box[2] - (x0 + (x1 - x0) * (i + 1) / count)) <= ROUNDED
        for i, (box, _, _) in enumerate(run)
    )
