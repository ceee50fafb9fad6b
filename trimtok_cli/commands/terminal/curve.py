"""The curve of a sweep on the terminal: a bar of agreement for each budget, and a sentence."""

from collections.abc import Sequence

from rich.text import Text

from trimtok_cli.commands.terminal.wide_table import WideTable
from trimtok_cli.data import Setting
from trimtok_cli.evaluation.statistics import Interval
from trimtok_cli.evaluation.sweep import Choice, Point
from trimtok_cli.units import duration
from trimtok_cli.wording import shown

WIDTH = 20  # characters of a whole bar
_EIGHTHS = " ▏▎▍▌▋▊▉█"

SAID = {
    "words": "of the words differ from dense's answers",
    "exact": "of the answers are not dense's",
}


def bar(share: float, width: int = WIDTH) -> str:
    """A bar of a share in [0, 1], in eighths of a character."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def table(points: Sequence[Point], measure: str, *, on_cpu: bool) -> WideTable:
    """A line for each budget, dense last: agreement with its interval, tokens, time, memory."""
    other = "exact" if measure == "words" else "words"
    title = "Agreement with dense (95 % intervals); medians of times"
    rows = []
    for point in points:
        agreed: Interval = getattr(point, measure)
        cells = (
            tokens(point),
            f"{100 * agreed.value:.1f} % ({100 * agreed.low:.1f} to {100 * agreed.high:.1f})",
            f"{100 * getattr(point, other).value:.1f} %",
            duration(point.seconds.prefill),
            duration(point.total),
            f"{point.cache_bytes / 2**20:.1f} MiB",
        )
        curve = Text(bar(agreed.value), "green")
        label, *figures = map(Text, (shown(point.setting.name), *cells))
        rows.append([label, figures[0], curve, *figures[1:]])
    names = ("tokens", measure, "", other, "prefill", "total", "KV cache")
    return WideTable(title + (", on a CPU" if on_cpu else ""), "setting", names, rows, {measure})


def tokens(point: Point) -> str:
    """The visual tokens kept; the layers' mean behind them if it is another number."""
    kept = f"{point.kept:.0f}"
    mean = f"{point.layer_mean:.0f}"
    return kept if kept == mean else f"{kept} (layers' mean {mean})"


def headline(points: Sequence[Point], choice: Choice, loss: float, measure: str) -> str:
    """The sentence that names the smallest budget within the loss."""
    pruned = [point for point in points if point.setting != Setting()]
    allowed = f"--max-loss {100 * loss:g} %"
    if not pruned:
        return "No sample was answered both dense and pruned, so there is nothing to compare."
    if choice.likely is None:
        most = pruned[-1]
        return (
            f"No budget that was tried stays within {allowed}: with {_share(most)}, "
            f"{_loss(most, measure)}."
        )
    point = choice.likely
    said = f"Smallest budget within {allowed}: --keep {point.setting.keep}, {_share(point)}; "
    said += _loss(point, measure)
    if choice.below is not None:
        said += f"; with --keep {choice.below.setting.keep} {_loss(choice.below, measure, short=1)}"
    if choice.sure is None:
        said += f". {point.samples} samples are too few to be sure of any budget"
    elif choice.sure != point:
        said += f". To be sure on {point.samples} samples, --keep {choice.sure.setting.keep}"
    return said + "."


def _share(point: Point) -> str:
    return f"{point.kept:.0f} of {point.dense:.0f} visual tokens"


def _loss(point: Point, measure: str, *, short: bool = False) -> str:
    lost = point.loss(measure)
    figures = f"{100 * lost.value:.1f} % ({100 * lost.low:.1f} to {100 * lost.high:.1f})"
    return figures if short else f"{figures} {SAID[measure]}"
