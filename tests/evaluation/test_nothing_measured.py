"""The summary table shows no numbers for a setting without a measured sample."""

from dataclasses import replace

from rich.console import Console

from trimtok_cli.commands.terminal.tables import SummaryTable
from trimtok_cli.data import Seconds, Setting
from trimtok_cli.evaluation.summary import Medians, Row

MEASURED = Row(
    Setting(), 2, 0, 0, 0.0, 0, 0, *[Medians(576, 576, 3, Seconds(prefill=0.1), 0.2)] * 2
)


def lines(*rows: Row) -> list[str]:
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(SummaryTable(rows))
    return [line.strip() for line in captured.get().splitlines() if line.strip()]


def test_a_setting_without_samples_says_so_and_shows_no_zeros():
    unmeasured = replace(MEASURED, setting=Setting("fastv", "8"), samples=0, failed=2)
    found = lines(MEASURED, unmeasured)
    assert "nothing to compare" in found[-1] and not any(
        mark in found[-1] for mark in ("0.0", "576", "ms")
    )
    assert "576" in found[-2] and "ms" in found[-2]
