"""What each budget costs in answers that change, against dense, without labels.

Pure functions on Comparisons: a Point for each budget, and the smallest budget within a loss. Knows
no model, no file and no terminal.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from trimtok_cli.data import Comparison, Result, Seconds, Setting
from trimtok_cli.evaluation.statistics import Interval, pictures_of, share_interval
from trimtok_cli.evaluation.summary import is_same
from trimtok_cli.evaluation.words import agreement

FEWEST = 16  # visual tokens of the smallest budget

MEASURES = {
    "words": "the share of words in common with dense's answer, in order",
    "exact": "the share of answers that are identical to dense's",
}


def budgets(num_dense: int) -> list[int]:
    """Budgets from 16 to fewer than all N tokens, each about 1.41 times the one before."""
    counts = (round(FEWEST * 2 ** (step / 2)) for step in range(64))
    return [count for count in counts if count < num_dense]


@dataclass(frozen=True, slots=True)
class Point:
    """One budget over the samples that both it and dense answered.

    kept, layer_mean: visual tokens, means over samples. words, exact: agreement with dense by each
    of MEASURES. seconds: medians of each step; total: the median of whole samples. cache_bytes: the
    mean size of a prompt's keys and values. peak_bytes: the highest peak, 0 if the device does not
    count.
    """

    setting: Setting
    samples: int
    failed: int
    dense: float
    kept: float
    layer_mean: float
    words: Interval
    exact: Interval
    seconds: Seconds
    total: float
    cache_bytes: float
    peak_bytes: int

    def loss(self, measure: str) -> Interval:
        """1 - agreement, with its interval."""
        found: Interval = getattr(self, measure)
        return Interval(1 - found.value, 1 - found.high, 1 - found.low)


@dataclass
class _Measured:
    """The values of one setting, sample by sample."""

    setting: Setting
    failed: int = 0
    peak_bytes: int = 0
    groups: list[Any] = field(default_factory=list)
    values: dict[str, "array[float]"] = field(default_factory=dict)

    def add(self, group: Any, **values: float) -> None:
        self.groups.append(group)
        for name, value in values.items():
            self.values.setdefault(name, array("d")).append(value)


class Sweep:
    """Gathers comparisons as they come. a_token: the bytes of one token's keys and values."""

    def __init__(self, settings: Sequence[Setting], a_token: int) -> None:
        self.each = [_Measured(setting) for setting in settings]
        self.a_token = a_token
        self.samples = 0

    def add(self, comparison: Comparison) -> None:
        self.samples += 1
        dense, *_ = comparison.results
        # Questions about one picture are no independent evidence.
        group = pictures_of(comparison.sample)
        for measured, result in zip(self.each, comparison.results, strict=True):
            if dense.error or result.error:
                measured.failed += 1
                continue
            measured.peak_bytes = max(measured.peak_bytes, result.peak_bytes)
            measured.add(group, **self._values(dense, result))

    def _values(self, dense: Result, result: Result) -> dict[str, float]:
        tokens, seconds = result.tokens, result.seconds
        return {
            "words": agreement(dense.answer, result.answer),
            "exact": float(is_same(dense, result)),
            "dense": tokens.visual,
            "kept": tokens.kept,
            "layer_mean": tokens.layer_mean,
            "cache_bytes": self.a_token * (tokens.text + tokens.layer_mean),
            "total": seconds.total,
            **{name: getattr(seconds, name) for name in Seconds.__slots__},
        }

    def points(self) -> list[Point]:
        """A Point for each setting that answered a sample, the fewest tokens first, dense last."""
        found = [_point(each) for each in self.each if each.values]
        return sorted(
            found, key=lambda point: (point.setting == Setting(), point.layer_mean, point.kept)
        )


def _point(measured: _Measured) -> Point:
    values = measured.values
    return Point(
        setting=measured.setting,
        samples=len(measured.groups),
        failed=measured.failed,
        words=share_interval(values["words"], measured.groups),
        exact=share_interval(values["exact"], measured.groups),
        seconds=Seconds(**{name: median(values[name]) for name in Seconds.__slots__}),
        total=median(values["total"]),
        peak_bytes=measured.peak_bytes,
        **{name: fmean(values[name]) for name in ("dense", "kept", "layer_mean", "cache_bytes")},
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """The smallest budgets within a loss; None where only dense is.

    likely: it and every larger one lose no more than that. sure: so do the upper ends of their
    intervals. below: the next smaller budget than `likely`, which loses more.
    """

    likely: Point | None
    sure: Point | None
    below: Point | None


def choose(points: Sequence[Point], loss: float, measure: str) -> Choice:
    """The smallest budgets of which no larger one loses more than `loss`, by `measure`."""
    pruned = [point for point in points if point.setting != Setting()]
    held = _holding(pruned, lambda point: point.loss(measure).value <= loss + 1e-12)
    certain = _holding(pruned, lambda point: point.loss(measure).high <= loss + 1e-12)
    below = len(pruned) - len(held) - 1
    return Choice(
        likely=held[0] if held else None,
        sure=certain[0] if certain else None,
        below=pruned[below] if below >= 0 else None,
    )


def _holding(points: Sequence[Point], holds: Any) -> list[Point]:
    """The last points that all hold."""
    found: list[Point] = []
    for point in reversed(points):
        if not holds(point):
            break
        found.insert(0, point)
    return found
