"""A list on standard output: a table where it fits, else a few lines for each of its rows.

What has to be typed is never cut short. Knows no model and no method.
"""

import os
import sys
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

NO_LIMIT = 10_000  # columns where no terminal limits them: a pipe, a file


def show_list(head: Sequence[str], rows: Sequence[Sequence[str]], *, names: int = 1) -> None:
    """Prints rows of equally many cells. names: the first so many cells are what one types."""
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(width=None if narrow else NO_LIMIT, highlight=False)
    table = Table(*head, box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))
    natural = console.measure(table, options=console.options.update(max_width=NO_LIMIT)).maximum
    if natural <= console.width:
        console.print(table)
        return
    for row in rows:
        console.print(Text("  ".join(row[:names]), "bold"), overflow="fold")
        facts = zip(head[names:], row[names:], strict=True)
        said = "; ".join(f"{name}: {value}" for name, value in facts if value)
        console.print(Padding(Text(said), (0, 0, 0, 2), expand=False))
