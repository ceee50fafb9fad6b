"""A table as wide as the terminal that shows it. Where its columns do not fit beside each other,
they stand in several tables; no figure is cut. Knows no figures.
"""

from collections.abc import Collection, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

BETWEEN, EDGES = 3, 2  # columns of the terminal between two of the table, and at both its ends
LONGEST_LABEL = 0.4  # of the terminal's width; a longer one goes on in the next line


class WideTable:
    """title: over each of the tables. first, names: headings, of the labels and of the cells.

    rows: a label and a cell for each name, or a label alone. left: names whose cells begin at the
    left.
    """

    def __init__(
        self,
        title: str,
        first: str,
        names: Sequence[str],
        rows: Sequence[Sequence[Text]],
        left: Collection[str] = (),
    ) -> None:
        self.title, self.first, self.names, self.rows, self.left = title, first, names, rows, left

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        longest = max([cell_len(self.first), *(row[0].cell_len for row in self.rows)])
        labels = min(longest, int(LONGEST_LABEL * options.max_width))
        for part in self._parts(options.max_width - labels - EDGES):
            title = Text(self.title) if self.title else None
            table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
            table.add_column(self.first, overflow="fold")
            for place in part:
                name = self.names[place]
                side = "left" if name in self.left else "right"
                table.add_column(Text(name), justify=side, no_wrap=True)
            for label, *cells in self.rows:
                table.add_row(label, *(cells[place] for place in part if cells))
            yield table

    def _parts(self, room: int) -> list[list[int]]:
        """The places of the columns, those that stand beside each other together."""
        parts, left = [list[int]()], room
        for place, name in enumerate(self.names):
            cells = [row[1 + place].cell_len for row in self.rows if len(row) > 1]
            needed = BETWEEN + max([cell_len(name), *cells])
            if parts[-1] and needed > left:
                parts.append([])
                left = room
            parts[-1].append(place)
            left -= needed
        return parts
