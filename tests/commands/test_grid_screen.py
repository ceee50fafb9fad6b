"""The tables of a grid, of scores and of a sweep on terminals of every width."""

import io
import json
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from trimtok_cli.commands.terminal.curve import table as curve_table
from trimtok_cli.commands.terminal.grid import block_tables
from trimtok_cli.commands.terminal.scores import scores_table
from trimtok_cli.data import Seconds, Setting
from trimtok_cli.evaluation.datasets.base import Scores
from trimtok_cli.evaluation.statistics import Interval
from trimtok_cli.evaluation.sweep import Point

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


@pytest.mark.parametrize("width", [140, 80, 60, 40])
def test_scores_and_a_sweep_are_whole_at_every_width(width):
    values = {f"metric {n}": 11.11 * n for n in range(1, 9)}
    scored = [Scores("metric 3", values)] * 2
    agreed = Interval(0.875, 0.81, 0.93)
    point = Point(
        Setting("trimtokenator", "64"), 40, 0, 576, 64, 64, agreed, agreed, Seconds(), 1.5, 2e8, 0
    )
    console = Console(file=io.StringIO(), width=width)
    console.print(scores_table("A data set", ["one.jsonl", "two.jsonl"], scored, ["3 of 9", ""]))
    console.print(curve_table([point], "words", on_cpu=True))
    said = console.file.getvalue()
    assert max(map(cell_len, said.splitlines())) <= width and "…" not in said
    for figure in (*(f"{value:.2f}" for value in values.values()), "3 of 9", "metric 8"):
        assert figure in said
    assert width == 40 or "trimtokenator@64 " in said
    for figure in ("87.5 % (81.0 to 93.0)", "1.50 s", "190.7 MiB", "█" * 17):
        assert figure in said
