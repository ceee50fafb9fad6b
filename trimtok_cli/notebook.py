"""What a notebook shows of a record: a small table. Everything in it is escaped."""

from collections.abc import Iterable
from html import escape
from typing import Any


def comparison_table(comparison: Any) -> str:
    """The table of a Comparison: a row for each way in which its sample was answered."""
    results = comparison.results
    question = results[0].question if results else ""
    rows = [
        (
            result.setting.name,
            f"{result.tokens.visual} → {result.tokens.kept}",
            f"{result.tokens.layer_mean:g}",
            f"{1000 * result.seconds.total:.0f} ms",
            result.error or result.answer,
        )
        for result in results
    ]
    heads = ("setting", "visual tokens", "layer mean", "time", "answer")
    return (
        f"<table><caption>{escape(f'{comparison.sample.id}: {question}')}</caption>"
        + _row(heads, "th")
        + "".join(_row(row, "td") for row in rows)
        + "</table>"
    )


def _row(cells: Iterable[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
