"""The tables of a grid on the terminal: one for each model, a line for each setting."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from trimtok_cli.commands.terminal.wide_table import WideTable
from trimtok_cli.outputs.grid_files import costs, heading, milliseconds, number
from trimtok_cli.wording import shown

Figures = Mapping[str, Any]


def block_tables(document: Figures) -> Iterator[WideTable]:
    """Scores by column, the best of each block in bold; intervals stand in the files."""
    costs_of = ("tokens", "layer mean", milliseconds(document))
    names = list(map(shown, (*costs_of, *document["columns"], "average")))
    for model in dict.fromkeys(row["model"] for row in document["rows"]):
        blocks = [block for block in document["blocks"] if block["model"] == model]
        rows = [row for block in blocks for row in _rows(document, block)]
        yield WideTable(shown(model), "method", names, rows)


def _rows(document: Figures, block: Figures) -> Iterator[Sequence[Text]]:
    """A block's heading, if it has one, and the cells of its rows."""
    if block["keep"]:
        yield [Text(heading(block), "italic")]
    for place in block["rows"]:
        yield list(_cells(document["rows"][place], block, place))


def _cells(row: Figures, block: Figures, place: int) -> Iterator[Text]:
    yield Text(f"  {shown(row['label'])}" if block["keep"] else shown(row["label"]))
    yield from map(Text, costs(row))
    for name, cell in row["cells"].items():
        style = "bold" if place in block["best"].get(name, ()) else ""
        failed = cell["score"] is None and cell["error"]
        yield Text("failed" if failed else number(cell["score"]), "red" if failed else style)
    style = "bold" if place in block["best"].get("average", ()) else ""
    yield Text("" if row["average"] is None else f"{row['average']:.1f} %", style)
