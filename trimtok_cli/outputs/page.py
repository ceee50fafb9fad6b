"""The page of a comparison: one HTML file of pictures, kept tokens drawn over them, and answers.

Names, questions, answers and errors are untrusted text, and the template escapes all of it. Knows
no model: each Comparison brings the boxes of its tokens.
"""

import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trimtok_cli.blobs import Medium
from trimtok_cli.data import Comparison, Result, Seconds
from trimtok_cli.errors import MediaError
from trimtok_cli.evaluation import summary
from trimtok_cli.media.kinds import by_content
from trimtok_cli.outputs.whole_files import write_whole

LONGEST_SIDE = 640  # pixels of a picture on the page
JPEG_QUALITY = 85
FLAT_COLORS = 256  # a picture of at most so many colors may be smaller as PNG

Load = Callable[[Medium], tuple[Any, Any]]  # an image and its Media

LoadClip = Callable[[Medium], Any]  # a Clip

BARS = (
    ("load", "load, prepare"),
    ("encode", "encode"),
    ("prune", "prune"),
    ("prefill", "prefill"),
    ("decode", "decode"),
)


def write_page(
    path: Path,
    comparisons: Sequence[Comparison],
    *,
    title: str,
    facts: Mapping[str, str],
    sentence: str,
    load: Load | None = None,
    load_clip: LoadClip | None = None,
    limit: int = 200,
) -> None:
    """Writes the page: a card for each of the first `limit` samples, and a summary of all of them.

    facts: the conditions, in order. sentence: says which step takes the time. load: gives an
    upright RGB image and its Media, by default `media.images.load_image`. load_clip: gives a
    video's Clip, by default `media.video.load_video`. A file that `load` or `load_clip` refuses
    becomes a box with the reason.
    """
    if load is None:
        from trimtok_cli.media.images import load_image

        load = load_image
    if load_clip is None:
        from trimtok_cli.data import FrameRule
        from trimtok_cli.media.video import load_video

        load_clip = partial(load_video, rule=FrameRule())
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": summary.duration,
        "percent": summary.percent,
        "pace": summary.pace,
        "bars": _bars,
    }
    page = environment.get_template("page.html.j2").render(
        title=title,
        facts=facts,
        sentence=sentence,
        rows=summary.summarize(comparisons),
        cards=[
            _card(i, comparison, load, load_clip)
            for i, comparison in enumerate(comparisons[:limit])
        ],
        samples=len(comparisons),
        stages=BARS,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file name that is no valid Unicode holds lone surrogates; they become "?" rather than end
    # the page.
    write_whole(path, page.encode("utf-8", "replace").decode("utf-8"))


@dataclass(frozen=True, slots=True)
class Picture:
    """An image, or a frame of a video, as the page shows it.

    `uri` is empty if the file could not be read, and `problem` says why. number: its visual index.
    frame: its number in a video.
    """

    name: str
    uri: str = ""
    width: int = 4
    height: int = 3
    problem: str = ""
    number: int = 0
    frame: int | None = None


@dataclass(frozen=True, slots=True)
class Overlay:
    """SVG path data in pixels of a picture: `clear` has no veil, `outline` edges kept tokens."""

    kept: int
    dense: int
    clear: str
    outline: str


def diff(dense: str, pruned: str) -> list[tuple[str, str]]:
    """The pruned answer in pieces (kind, text).

    equal, replace and insert hold its own words; delete holds words of dense that it lacks.
    """
    old, new = dense.split(), re.findall(r"\S+\s*", pruned)
    pieces: list[tuple[str, str]] = []
    for kind, i, j, k, end in SequenceMatcher(
        None, old, pruned.split(), autojunk=False
    ).get_opcodes():
        text = " ".join(old[i:j]) if kind == "delete" else "".join(new[k:end])
        words = text.rstrip()
        pieces += [(kind, words)] + [("equal", text[len(words) :])] * (len(words) < len(text))
    return pieces


def _card(number: int, comparison: Comparison, load: Load, load_clip: LoadClip) -> dict[str, Any]:
    sample, results = comparison.sample, comparison.results
    pictures = list(_pictures(comparison, load, load_clip))
    errors = [result.error for result in results if result.error]
    # A sample that failed the same way everywhere says so once.
    shown = results[:1] if len(errors) == len(results) and len(set(errors)) == 1 else results
    scores = [summary.agreement(results[0], result) for result in results[1:]]
    return {
        "number": number,
        "sample": sample,
        "pictures": pictures,
        "question": results[0].question if results else sample.question or "",
        "panes": [_pane(comparison, i, pictures) for i in range(len(shown))],
        "longest": max((result.seconds.total for result in results), default=0.0),
        # Failed samples come first, then the answers with the fewest words in common with dense.
        "disagreement": 2.0 if errors or not results else round(1 - min(scores, default=1.0), 4),
    }


def _pane(comparison: Comparison, number: int, pictures: Sequence[Picture]) -> dict[str, Any]:
    dense, result = comparison.results[0], comparison.results[number]
    both = number > 0 and not result.error and not dense.error
    return {
        "number": number,
        "result": result,
        "same": summary.is_same(dense, result) if both else None,
        "match": summary.is_match(result) if result.sample.answers and not result.error else None,
        "pieces": diff(dense.answer, result.answer) if both else [("equal", result.answer)],
        "overlays": [_overlay(comparison, result, picture) for picture in pictures],
    }


def _pictures(comparison: Comparison, load: Load, load_clip: LoadClip) -> Iterator[Picture]:
    """The images in the prompt's order; a video gives every frame that has tokens."""
    sample = by_content(comparison.sample)
    names = iter(
        zip(
            sample.images,
            [*sample.names, *(path.name for path in sample.images[len(sample.names) :])],
            strict=False,
        )
    )
    kinds = comparison.kinds or ("image",) * len(sample.images) + ("video",) * (
        sample.video is not None
    )
    for number, kind in enumerate(kinds):
        if kind == "image":
            path, name = next(names)
        elif sample.video is not None:
            path, name = sample.video, sample.video.name
        else:
            continue
        try:
            if kind == "image":
                yield _picture(name, load(path)[0], number)
                continue
            owners = zip(comparison.frame, comparison.visual_index, strict=False)
            wanted = sorted({frame for frame, owner in owners if owner == number})
            if not wanted:
                yield Picture(name, problem="No frame of this video was read.", number=number)
                continue
            clip = load_clip(path)
            for frame in wanted:
                yield _picture(
                    f"{name}, {clip.times[frame]:.2f} s", clip.frames[frame], number, frame
                )
        except (MediaError, OSError) as error:
            yield Picture(name, problem=str(error), number=number)


def _picture(name: str, image: Any, number: int, frame: int | None = None) -> Picture:
    image = image.convert("RGB")
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    width, height = image.size
    return Picture(name, _data_uri(image), width, height, number=number, frame=frame)


def _data_uri(image: Any) -> str:
    """The data URI of an image, as JPEG, or as PNG if a flat drawing comes out smaller."""
    best, kind = BytesIO(), "jpeg"
    image.save(best, "JPEG", quality=JPEG_QUALITY, optimize=True)
    if image.getcolors(FLAT_COLORS):
        drawing = BytesIO()
        image.save(drawing, "PNG", optimize=True)
        if drawing.tell() < best.tell():
            best, kind = drawing, "png"
    return f"data:image/{kind};base64,{b64encode(best.getvalue()).decode()}"


def _overlay(comparison: Comparison, result: Result, picture: Picture) -> Overlay | None:
    """The overlay of a picture; None if none of its tokens has a box, or none was dropped.

    Dense has a veil only over parts that the processor cropped, which no token sees.
    """
    frames = comparison.frame or (0,) * len(comparison.boxes)
    places = enumerate(zip(comparison.boxes, comparison.visual_index, frames, strict=False))
    boxes = {
        token: box
        for token, (box, owner, frame) in places
        if owner == picture.number and picture.frame in (None, frame)
    }
    shown = [box for box in boxes.values() if box[2] > box[0] and box[3] > box[1]]
    if not shown or not picture.uri:
        return None
    if result.kept and len(result.kept[-1].tokens) < len(comparison.boxes):
        kept = [boxes[token] for token in result.kept[-1].tokens if token in boxes]
        edges = _edges(kept, picture)
        return Overlay(len(kept), len(boxes), edges, edges)
    low = [min(side) for side in zip(*shown, strict=True)]
    high = [max(side) for side in zip(*shown, strict=True)]
    seen = (low[0], low[1], high[2], high[3])
    whole = (seen[2] - seen[0]) * (seen[3] - seen[1]) > 0.99
    return None if whole else Overlay(len(boxes), len(boxes), _edges([seen], picture), "")


def _edges(boxes: Sequence[tuple[float, float, float, float]], picture: Picture) -> str:
    """Boxes as SVG path data, larger ones first, so that fine tokens lie over coarse ones."""
    boxes = sorted(
        (box for box in boxes if box[2] > box[0] and box[3] > box[1]),
        key=lambda b: (b[0] - b[2]) * (b[3] - b[1]),
    )
    corners = (
        (x0 * picture.width, y0 * picture.height, x1 * picture.width, y1 * picture.height)
        for x0, y0, x1, y1 in boxes
    )
    return "".join(
        "M{:g} {:g}H{:g}V{:g}H{:g}z".format(*(round(v, 1) for v in (x0, y0, x1, y1, x0)))
        for x0, y0, x1, y1 in corners
    )


def _bars(seconds: Seconds, longest: float) -> list[tuple[str, float, float, float]]:
    """The parts of a stacked bar: (stage, start, width, seconds), where 100 is `longest` seconds.

    load includes prepare.
    """
    bars, start = [], 0.0
    for stage, _ in BARS:
        took = getattr(seconds, stage) + (seconds.prepare if stage == "load" else 0.0)
        if took > 0 and longest > 0:
            bars.append(
                (stage, round(start / longest * 100, 2), round(took / longest * 100, 2), took)
            )
        start += took
    return bars
