"""The tables of `compare` on the terminal: a sample as in the paper's Figure 2, and the summary."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from trimtok_cli.commands.terminal.progress import message, names
from trimtok_cli.data import Comparison, Result
from trimtok_cli.evaluation.summary import Row
from trimtok_cli.units import duration
from trimtok_cli.wording import shown


def sample_table(comparison: Comparison) -> Table:
    """Prompt, reference, and a line for each setting: answer, tokens, time of each stage."""
    first = comparison.results[0]
    title = Text(names(comparison.sample), "bold").append(
        f"  {message(first.question)}", "not bold"
    )
    if comparison.sample.answers:
        title.append(
            f"  reference: {message(' / '.join(dict.fromkeys(comparison.sample.answers)))}",
            "dim not bold",
        )
    table = Table(title=title, title_justify="left", expand=False, show_edge=False, pad_edge=False)
    table.add_column("setting")
    table.add_column("answer", ratio=1, overflow="fold")
    for name in ("visual", "encode", "prune", "prefill", "decode", "total"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in comparison.results:
        table.add_row(*_cells(result, first))
    return table


def _cells(result: Result, dense: Result) -> list[Text]:
    if result.error:
        return [Text(shown(result.setting.name)), Text(f"failed: {message(result.error)}", "red")]
    same = result.answer.strip() == dense.answer.strip()
    s = result.seconds
    times = [Text(duration(value)) for value in (s.encode, s.prune, s.prefill, s.decode, s.total)]
    return [
        Text(shown(result.setting.name)),
        Text(
            "\n".join(map(shown, result.answer.splitlines())),
            "" if result is dense else "green" if same else "yellow",
        ),
        Text(str(result.tokens.kept)),
        *times,
    ]


def summary_table(rows: Sequence[Row]) -> Table:
    """A line for each setting: agreement with dense, correctness, tokens, times, speed-ups."""
    table = Table(
        title="Medians over samples", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("setting", no_wrap=True)
    for name in (
        "same as dense",
        "correct",
        "visual tokens",
        "encode",
        "prune",
        "prefill",
        "decode",
        "total",
    ):
        whole = name in ("same as dense", "prefill", "total")  # a time and its ratio stay together
        table.add_column(name, justify="right", no_wrap=whole)
    for i, row in enumerate(rows):
        if not row.samples:  # nothing was measured, which is not a measurement of 0
            table.add_row(Text(shown(row.label)), "nothing to compare")
            continue
        now, pace = row.median, lambda value: f" ({value:.1f}×)" if value else ""
        table.add_row(
            Text(shown(row.label)),
            f"{row.same} of {row.samples}" if i else "",
            f"{row.matched} of {row.referenced}" if row.referenced else "",
            str(now.kept),
            *(duration(value) for value in (now.seconds.encode, now.seconds.prune)),
            duration(now.seconds.prefill) + (pace(row.prefill_speedup) if i else ""),
            duration(now.seconds.decode),
            duration(now.total) + (pace(row.total_speedup) if i else ""),
        )
    return table
