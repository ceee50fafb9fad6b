"""The plots of a page: what a setting keeps of dense, against its tokens and its time.

A plot is numbers in pixels, which the template draws as SVG. Knows no file.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trimtok_cli.evaluation.proportion import Share
from trimtok_cli.evaluation.summary import Row
from trimtok_cli.units import duration

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 14, 40
LABELLED = 7  # more points than that are labelled only where no other one is better
LINE = 13  # pixels between two labels
TICKS = 4


@dataclass(frozen=True, slots=True)
class Point:
    """A setting in a plot. low, high: the ends of its interval. front: no setting beats it."""

    number: int
    label: str
    told: str
    x: float
    y: float
    low: float
    high: float
    front: bool
    labelled: bool = False
    label_y: float = 0.0
    left: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot of points; ticks are (pixels, text), front is the line of the settings ahead."""

    title: str
    across: str
    points: tuple[Point, ...]
    front: str
    ticks_x: tuple[tuple[float, str], ...]
    ticks_y: tuple[tuple[float, str], ...]


def plots(rows: Sequence[Row]) -> list[Plot]:
    """Agreement, and matches where there are references, against visual tokens and time."""
    told = [row for row in rows if row.samples]
    if len(told) < 2:
        return []
    found = []
    if any(row.referenced for row in told):
        matched = [row for row in told if row.referenced]
        found += _pair("Answers that match a reference", matched, lambda row: row.matched_share)
    return found + _pair("Words in common with dense", told, lambda row: row.agreement_share)


def _pair(title: str, rows: Sequence[Row], share: Callable[[Row], Share]) -> list[Plot]:
    tokens = [row.median.layer_mean or row.median.kept for row in rows]
    found = [_plot(title, "visual tokens, mean over layers", rows, share, tokens, _count)]
    times = [row.median.total for row in rows]
    if all(times):
        found.append(_plot(title, "time of a sample", rows, share, times, duration))
    return found


def _count(value: float) -> str:
    return f"{value:.0f}"


def _plot(
    title: str,
    across: str,
    rows: Sequence[Row],
    share: Callable[[Row], Share],
    xs: Sequence[float],
    text: Callable[[float], str],
) -> Plot:
    most = max(xs) or 1.0
    shares = [share(row) for row in rows]
    least = min(int(min(each.low for each in shares) * 10) / 10, 0.9)
    ahead = _ahead(list(xs), [each.value for each in shares])

    def x_of(value: float) -> float:
        return round(LEFT + value / most * (WIDTH - LEFT - RIGHT), 1)

    def y_of(value: float) -> float:
        return round(TOP + (1 - value) / (1 - least) * (HEIGHT - TOP - BOTTOM), 1)

    points = [
        Point(
            number=i,
            label=row.label,
            told=f"{row.label}: {100 * part.value:.0f} % ({100 * part.low:.0f} to "
            f"{100 * part.high:.0f} %) of {part.samples} at {text(x)}",
            x=x_of(x),
            y=y_of(part.value),
            low=y_of(part.low),
            high=y_of(part.high),
            front=i in ahead,
        )
        for i, (row, part, x) in enumerate(zip(rows, shares, xs, strict=True))
    ]
    line = " ".join(
        f"{point.x},{point.y}" for point in sorted(points, key=lambda p: p.x) if point.front
    )
    return Plot(
        title=title,
        across=across,
        points=tuple(_labelled(points)),
        front=line,
        ticks_x=tuple((x_of(value), text(value)) for value in _ticks(0.0, most)),
        ticks_y=tuple((y_of(value), f"{100 * value:.0f} %") for value in _ticks(least, 1.0)),
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, at most TICKS + 1 steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / (TICKS + 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in (1, 2, 5, 10) if power * each >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * number for number in range(first, last + 1)]


def _ahead(xs: Sequence[float], ys: Sequence[float]) -> set[int]:
    """The points that no other one beats: as high at less, or higher at as much."""
    ahead, best = set(), -1.0
    for i in sorted(range(len(xs)), key=lambda i: (xs[i], -ys[i])):
        if ys[i] > best:
            ahead.add(i)
            best = ys[i]
    return ahead


def _labelled(points: Sequence[Point]) -> list[Point]:
    """The points with their labels set one below the other where they would overlap."""
    few = len(points) <= LABELLED
    found, taken = [], {True: -1.0 * HEIGHT, False: -1.0 * HEIGHT}
    for point in sorted(points, key=lambda p: (p.y, p.x)):
        if not (few or point.front):
            found.append(point)
            continue
        left = point.x > LEFT + (WIDTH - LEFT - RIGHT) * 0.55
        place = max(point.y + 4, taken[left] + LINE)
        taken[left] = place
        found.append(replace(point, labelled=True, label_y=round(place, 1), left=left))
    return sorted(found, key=lambda p: p.number)
