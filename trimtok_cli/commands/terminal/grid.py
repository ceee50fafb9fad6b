"""The tables of a grid on the terminal: one for each model, a line for each setting."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from trimtok_cli.outputs.grid_files import costs, heading, milliseconds, number
from trimtok_cli.wording import shown

Figures = Mapping[str, Any]


def block_tables(document: Figures) -> Iterator[Table]:
    """Scores by column, the best of each block in bold; intervals stand in the files."""
    columns = document["columns"]
    for model in dict.fromkeys(row["model"] for row in document["rows"]):
        table = Table(title=shown(model), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("method", overflow="fold")
        for name in ("tokens", "layer mean", milliseconds(document), *columns, "average"):
            table.add_column(shown(name), justify="right", no_wrap=True)
        for block in document["blocks"]:
            if block["model"] != model:
                continue
            if block["keep"]:
                table.add_row(Text(heading(block), "italic"))
            for place in block["rows"]:
                table.add_row(*_cells(document["rows"][place], block, place))
        yield table


def _cells(row: Figures, block: Figures, place: int) -> Iterator[Text]:
    yield Text(f"  {shown(row['label'])}" if block["keep"] else shown(row["label"]))
    yield from map(Text, costs(row))
    for name, cell in row["cells"].items():
        style = "bold" if place in block["best"].get(name, ()) else ""
        failed = cell["score"] is None and cell["error"]
        yield Text("failed" if failed else number(cell["score"]), "red" if failed else style)
    style = "bold" if place in block["best"].get("average", ()) else ""
    yield Text("" if row["average"] is None else f"{row['average']:.1f} %", style)
