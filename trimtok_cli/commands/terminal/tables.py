"""The tables of `compare` on the terminal: a sample as in the paper's Figure 2, and the summary.

A table that is wider than the terminal loses the columns that matter least; no cell is cut.
"""

from collections.abc import Callable, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from trimtok_cli.commands.terminal.progress import message, names
from trimtok_cli.data import Comparison, Result
from trimtok_cli.evaluation.summary import Row
from trimtok_cli.units import duration
from trimtok_cli.wording import shown

Column = tuple[str, list[str]]

LEAST_ANSWER = 24  # columns of a terminal that answers have, where times would leave fewer


class SampleTable:
    """Prompt, reference, and a line for each setting: answer, tokens, time of each stage."""

    # The columns of times that a narrow terminal does without, one after the other.
    dropped = ("decode", "prune", "encode", "prefill", "total", "visual")

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        first = self.comparison.results[0]
        yield _title(self.comparison, first)
        columns = _numbers(self.comparison.results)

        def room(left: Sequence[Column]) -> bool:
            settings = max(len(result.setting.name) for result in self.comparison.results)
            widths = [max(map(len, (name, *cells))) for name, cells in left]
            return sum(widths) + settings + 3 * len(left) + 3 + LEAST_ANSWER <= options.max_width

        fitting = _fitting(columns, self.dropped, room)
        table = Table(expand=False, show_edge=False, pad_edge=False)
        table.add_column("setting", overflow="fold")
        table.add_column("answer", ratio=1, overflow="fold")
        for name, _ in fitting:
            table.add_column(name, justify="right", no_wrap=True)
        for i, result in enumerate(self.comparison.results):
            numbers = [cells[i] for _, cells in fitting]
            table.add_row(shown(result.setting.name), _answer(result, first), *numbers)
        yield table


class SummaryTable:
    """A line for each setting: agreement with dense, correctness, tokens, times, speed-ups."""

    dropped = ("encode", "prune", "decode", "prefill", "total", "correct")

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        labels = [shown(row.label) for row in self.rows]

        def room(left: Sequence[Column]) -> bool:
            widths = [max(map(len, (name, *cells))) for name, cells in left]
            return sum(widths) + max(map(len, labels)) + 2 * len(left) + 2 <= options.max_width

        fitting = _fitting(_figures(self.rows), self.dropped, room)
        table = Table(
            title="Medians over samples; same: answers as dense's",
            title_justify="left",
            box=None,
            padding=(0, 2, 0, 0),
        )
        table.add_column("setting", overflow="fold")
        for name, _ in fitting:
            table.add_column(name, justify="right", overflow="fold")
        for i, row in enumerate(self.rows):
            if not row.samples:  # nothing was measured, which is not a measurement of 0
                table.add_row(Text(labels[i]), "nothing to compare")
                continue
            table.add_row(Text(labels[i]), *(cells[i] for _, cells in fitting))
        yield table


def _fitting(
    columns: Sequence[Column], dropped: Sequence[str], room: Callable[[Sequence[Column]], bool]
) -> list[Column]:
    """The columns that fit: those named first in `dropped` go first."""
    left = list(columns)
    for name in dropped:
        if room(left):
            break
        left = [column for column in left if column[0] != name]
    return left


def _title(comparison: Comparison, first: Result) -> Text:
    title = Text(names(comparison.sample), "bold").append(
        f"  {message(first.question)}", "not bold"
    )
    if comparison.sample.answers:
        title.append(
            f"  reference: {message(' / '.join(dict.fromkeys(comparison.sample.answers)))}",
            "dim not bold",
        )
    return title


def _numbers(results: Sequence[Result]) -> list[Column]:
    """The visual tokens and times of each result; a failed one has none."""
    found = [("visual", ["" if each.error else str(each.tokens.kept) for each in results])]
    for name in ("encode", "prune", "prefill", "decode", "total"):
        times = ["" if each.error else duration(getattr(each.seconds, name)) for each in results]
        found.append((name, times))
    return found


def _answer(result: Result, dense: Result) -> Text:
    if result.error:
        return Text(f"failed: {message(result.error)}", "red")
    same = result.answer.strip() == dense.answer.strip()
    return Text(
        "\n".join(map(shown, result.answer.splitlines())),
        "" if result is dense else "green" if same else "yellow",
    )


def _figures(rows: Sequence[Row]) -> list[Column]:
    """The columns of the summary; `correct` is there only if there are references."""

    def pace(value: float | None, row: Row) -> str:
        return f" ({value:.1f}×)" if value and row is not rows[0] else ""

    found = [
        ("same", [f"{row.same} of {row.samples}" if i else "" for i, row in enumerate(rows)]),
        ("correct", [f"{row.matched} of {row.referenced}" for row in rows]),
        ("tokens", [_tokens(row) for row in rows]),
        ("encode", [duration(row.median.seconds.encode) for row in rows]),
        ("prune", [duration(row.median.seconds.prune) for row in rows]),
        (
            "prefill",
            [duration(r.median.seconds.prefill) + pace(r.prefill_speedup, r) for r in rows],
        ),
        ("decode", [duration(row.median.seconds.decode) for row in rows]),
        ("total", [duration(row.median.total) + pace(row.total_speedup, row) for row in rows]),
    ]
    if any(row.referenced for row in rows):
        return found
    return [column for column in found if column[0] != "correct"]


def _tokens(row: Row) -> str:
    """The tokens left at the end, and their mean over the layers where it is another number."""
    kept, mean = row.median.kept, row.median.layer_mean
    return f"{kept} (mean {mean:.0f})" if abs(mean - kept) > 0.5 and mean else str(kept)
