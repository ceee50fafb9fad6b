"""The table of a grid on terminals of every width."""

import io
import json
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from trimtok_cli.commands.terminal.grid import block_tables

DOCUMENT = json.loads(
    (Path(__file__).parents[2] / "samples/results/demo/core.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("width", [200, 120, 80, 60, 40])
def test_a_grid_shows_every_figure_whole_at_every_width(width):
    console = Console(file=io.StringIO(), width=width)
    for table in block_tables(DOCUMENT):
        console.print(table)
    said = console.file.getvalue()
    assert max(map(cell_len, said.splitlines())) <= width and "…" not in said
    words = " ".join(said.split())
    for row in DOCUMENT["rows"]:
        assert f"{row['average']:.1f} %" in words
        assert all(f"{cell['score']:.2f}" in words for cell in row["cells"].values())
        assert width == 40 or row["label"] in words
    assert all(words.count(f" {name} ") == 1 for name in DOCUMENT["columns"])
    assert words.count("method") == (
        1 if width >= 120 else words.count(DOCUMENT["rows"][0]["model"])
    )
