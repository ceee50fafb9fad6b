"""The tables of a grid on the terminal: a line for each setting of a model.

Where the columns do not fit beside each other, they stand in several tables; no figure is cut.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from trimtok_cli.outputs.grid_files import costs, heading, milliseconds, number
from trimtok_cli.wording import shown

Figures = Mapping[str, Any]

BETWEEN = 3  # columns of the terminal between two of the table
LONGEST_LABEL = 0.4  # of the terminal's width; a longer one goes on in the next line


def block_tables(document: Figures) -> Iterator["GridTable"]:
    """Scores by column, the best of each block in bold; intervals stand in the files."""
    for model in dict.fromkeys(row["model"] for row in document["rows"]):
        yield GridTable(document, model)


class GridTable:
    """The rows of one model, as wide as the terminal that shows it."""

    def __init__(self, document: Figures, model: str) -> None:
        names = ("tokens", "layer mean", milliseconds(document), *document["columns"], "average")
        self.title, self.names = shown(model), list(map(shown, names))
        self.rows = [
            line
            for block in document["blocks"]
            if block["model"] == model
            for line in _lines(document, block)
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        labels = min(max(row[0].cell_len for row in self.rows), int(LONGEST_LABEL * width))
        for part in self._parts(width - max(labels, len("method"))):
            table = Table(title=self.title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
            table.add_column("method", overflow="fold")
            for place in part:
                table.add_column(self.names[place], justify="right", no_wrap=True)
            for label, *cells in self.rows:
                table.add_row(label, *(cells[place] for place in part if cells))
            yield table

    def _parts(self, room: int) -> list[list[int]]:
        """The places of the columns, those that stand beside each other together."""
        parts: list[list[int]] = [[]]
        left = room
        for place, name in enumerate(self.names):
            cells = [row[1 + place].cell_len for row in self.rows if len(row) > 1]
            needed = BETWEEN + max([cell_len(name), *cells])
            if parts[-1] and needed > left:
                parts.append([])
                left = room
            parts[-1].append(place)
            left -= needed
        return parts


def _lines(document: Figures, block: Figures) -> Iterator[Sequence[Text]]:
    """A block's heading, if it has one, alone on its line, and the cells of its rows."""
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
