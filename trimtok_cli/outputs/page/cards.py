"""The cards of a page: a sample, its pictures, and a pane for each setting. Knows no HTML."""

import math
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from trimtok_cli.data import Comparison, Result, Seconds
from trimtok_cli.evaluation.summary import is_match, is_same
from trimtok_cli.evaluation.words import Piece, agreement, diff
from trimtok_cli.outputs.page.overlays import overlays
from trimtok_cli.outputs.page.shelf import Shelf, Shown
from trimtok_cli.outputs.pictures import Picture, pictures_of
from trimtok_cli.wording import brief

STAGES = (
    ("load", "load, prepare"),
    ("encode", "encode"),
    ("prune", "prune"),
    ("prefill", "prefill"),
    ("decode", "decode"),
)

_OF_FILE = ("load", "encode")  # one for all settings where the tower ran once for all

Pictures = Sequence[tuple[Picture, Shown]]


def card(number: int, comparison: Comparison, shelf: Shelf) -> dict[str, Any]:
    """What the page shows of one sample; number: from 1, in the order of the input."""
    sample, results = comparison.sample, comparison.results
    pictures = [(picture, shelf.put(picture)) for picture in pictures_of(comparison)]
    errors = [result.error for result in results if result.error]
    # A sample that failed the same way everywhere says so once.
    shown = results[:1] if len(errors) == len(results) and len(set(errors)) == 1 else results
    shared = _shared([result for result in results if not result.error])
    return {
        "number": number,
        "sample": sample,
        "pictures": pictures,
        "names": _names(comparison),
        "question": results[0].question if results else sample.question or "",
        "panes": [_pane(comparison, i, pictures) for i in range(len(shown))],
        "shared": [(stage, took) for stage, took in shared.items() if took > 0],
        "hidden": set(shared),
        "longest": max((_own(result, shared) for result in results), default=0.0),
        "columns": [
            (name, brief(value, 200))
            for name, value in sample.extra.items()
            if str(value) not in sample.answers
        ],
    }


def data(number: int, comparison: Comparison) -> dict[str, Any]:
    """The same sample as plain values, for filters and for the page's own download."""
    sample, results = comparison.sample, comparison.results
    dense = results[0] if results else None
    return {
        "number": number,
        "id": sample.id,
        "images": list(sample.names),
        "question": results[0].question if results else sample.question or "",
        "references": list(sample.answers),
        "columns": {name: plain(value) for name, value in sample.extra.items()},
        "problem": sample.problem,
        "answers": [_answer(dense, result) for result in results if dense],
    }


def plain(value: Any) -> Any:
    """A value that JSON holds: text, a finite number or a truth; anything else in brief words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and value.bit_length() > 53:  # JavaScript would round it
        return brief(value, 200)
    return value if isinstance(value, (str, int, float)) else brief(value, 200)


def bars(
    seconds: Seconds, longest: float, hidden: Sequence[str] = ()
) -> list[tuple[str, float, float, float]]:
    """The parts of a stacked bar: (stage, start, width, seconds), where 100 is `longest` seconds.

    load includes prepare. hidden: stages that the bar lacks.
    """
    found, start = [], 0.0
    for stage, took in _steps(seconds).items():
        if took <= 0 or longest <= 0 or stage in hidden:
            continue
        found.append((stage, round(start / longest * 100, 2), round(took / longest * 100, 2), took))
        start += took
    return found


def _answer(dense: Result, result: Result) -> dict[str, Any]:
    """An answer as plain values; what was not measured or has no reference is not there."""
    found: dict[str, Any] = {"setting": result.setting.name}
    if result.error:
        return found | {"error": result.error}
    found |= {"answer": result.answer, "finish": result.finish}
    if not dense.error:
        found["same"] = is_same(dense, result)
        found["words_in_common"] = round(agreement(dense.answer, result.answer), 4)
    if result.sample.answers:
        found["matched"] = is_match(result)
    tokens = result.tokens
    found |= {
        "visual_tokens": tokens.visual,
        "kept": tokens.kept,
        "layer_mean": round(tokens.layer_mean, 3),
        "generated": tokens.generated,
    }
    times = {f"{stage}_ms": round(1000 * took, 3) for stage, took in _steps(result.seconds).items()}
    return found | times | {"total_ms": round(1000 * result.seconds.total, 3)}


def _pane(comparison: Comparison, number: int, pictures: Pictures) -> dict[str, Any]:
    dense, result = comparison.results[0], comparison.results[number]
    both = number > 0 and not result.error and not dense.error
    answer = [Piece(True, result.answer, result.answer)] if result.answer else []
    return {
        "number": number,
        "result": result,
        "same": is_same(dense, result) if both else None,
        "match": is_match(result) if result.sample.answers and not result.error else None,
        "pieces": diff(dense.answer, result.answer) if both else answer,
        "overlays": [
            overlays(comparison, result, picture, shown.size) if shown.uri else []
            for picture, shown in pictures
        ],
        "stages": [stage for stage in result.tokens.stages if stage[0] > 0],
    }


def _names(comparison: Comparison) -> list[str]:
    """The names of the files, each once; a video is one name, however many frames are shown."""
    sample = comparison.sample
    names = sample.names or tuple(
        str(medium.name) for medium in (*sample.images, sample.video) if medium
    )
    return [name for name in dict.fromkeys(names) if name != str(sample.id)]


def _shared(results: Sequence[Result]) -> dict[str, float]:
    """The seconds of stages that all settings share, by stage; empty for a single result."""
    if len(results) < 2:
        return {}
    first = _steps(results[0].seconds)
    same = len({astuple(result.seconds)[:3] for result in results}) == 1
    return {stage: first[stage] for stage in _OF_FILE} if same else {}


def _own(result: Result, shared: dict[str, float]) -> float:
    return sum(took for stage, took in _steps(result.seconds).items() if stage not in shared)


def _steps(seconds: Seconds) -> dict[str, float]:
    """The seconds of each of STAGES; load includes prepare."""
    times = {stage: float(getattr(seconds, stage)) for stage, _ in STAGES}
    return times | {"load": seconds.load + seconds.prepare}
