"""The tables of `score`: a line a file, and a line a part of the data. Readable at 80 columns."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from trimtok_cli.evaluation.datasets.base import Scores
from trimtok_cli.wording import shown


def scores_table(
    title: str, labels: Sequence[str], scores: Sequence[Scores], answered: Sequence[str]
) -> Table:
    """Every metric over all samples; the headline comes first, and is bold.

    answered: how many samples each file answers, `50 of 60`, shown where one is not complete.
    """
    names = _headline_first([name for name in scores[0].values if "/" not in name], scores[0])
    table = _table(title, "answers", [*names, "answered"] if any(answered) else names)
    for label, each, count in zip(labels, scores, answered, strict=True):
        cells = [
            Text(f"{each.values[name]:.2f}", "bold" if name == each.main else "") for name in names
        ]
        if any(answered):
            cells.append(Text(count or "all", "yellow" if count else ""))
        table.add_row(Text(shown(label)), *cells)
    return table


def _headline_first(names: list[str], scores: Scores) -> list[str]:
    return sorted(names, key=lambda name: name != scores.main)


def parts_table(scores: Scores) -> Table | None:
    """Every metric over each part of the samples; None where there are no parts."""
    split = [name.rpartition("/") for name in scores.values if "/" in name]
    parts = list(dict.fromkeys(part for part, _, _ in split))
    names = _headline_first(list(dict.fromkeys(name for _, _, name in split)), scores)
    if not parts:
        return None
    table = _table("", "part", names)
    for part in parts:
        cells = (scores.values.get(f"{part}/{name}") for name in names)
        table.add_row(
            Text(shown(part)), *(Text("" if cell is None else f"{cell:.2f}") for cell in cells)
        )
    return table


def _table(title: str, first: str, names: Sequence[str]) -> Table:
    table = Table(
        title=Text(title) if title else None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column(first, overflow="fold")
    for name in names:
        table.add_column(Text(shown(name)), justify="right", no_wrap=True)
    return table
