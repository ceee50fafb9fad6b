"""trimtok evaluate: the tables of a paper, from one YAML."""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtok_cli import __version__, interrupts
from trimtok_cli.commands import grid_cells as cells
from trimtok_cli.commands import grid_plan as plans
from trimtok_cli.commands import options as o
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.commands.terminal.grid import block_tables
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.errors import EXIT_OK, EXIT_SOME_FAILED, TrimtokError, UsageError
from trimtok_cli.evaluation.grid_scores import Scorer
from trimtok_cli.evaluation.grid_spec import Grid, read_grid
from trimtok_cli.evaluation.grid_table import Row, document
from trimtok_cli.models.catalog import locate
from trimtok_cli.outputs.destination import OWN, Files, claimed
from trimtok_cli.outputs.earlier import OVERWRITE, read_manifest
from trimtok_cli.outputs.grid_files import NAMES, write_tables
from trimtok_cli.outputs.manifest import versions
from trimtok_cli.wording import brief
from trimtok_cli.yaml_text import preset_names

EXAMPLES = (
    "Examples:\n\n"
    "trimtok evaluate demo-methods\n\n"
    "trimtok evaluate table1 --data /data/benchmarks --batch-size 16 -o table1\n\n"
    "A YAML names models, data sets, methods, budgets and seeds. Every cell is a run with answers "
    "of its own; the same command again goes on, and ends with the same table."
)

File = Annotated[
    str,
    typer.Argument(
        metavar="GRID",
        help="A YAML file, or a preset of configs/eval.",
        show_default=False,
        autocompletion=o.completing(preset_names("eval")),
    ),
]

DataFolder = Annotated[
    Path, typer.Option("--data", help="The folder in which the grid's data sets lie.")
]

Out = Annotated[
    str | None,
    typer.Option("--out", "-o", help="A folder.", show_default="the grid's name, in trimtok-out"),
]

TableOnly = Annotated[
    bool, typer.Option("--table-only", help="Make the table of the answers that are there.")
]


@guarded
@o.settings(read_grid, file="file")
def evaluate(
    file: File,
    *,
    data: DataFolder = Path(),
    out: Out = None,
    table_only: TableOnly = False,
    asked: Grid,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> int:
    """The command `trimtok evaluate`; its help is in `cli.COMMANDS`."""
    screen = Screen(quiet=quiet, noun="questions")
    for model in asked.models:
        locate(model)
    columns = plans.read_columns(asked, data)
    folder = _folder(out, Path(file).stem)
    screen.say_imports()
    lines = {model: plans.plan(asked, model) for model in asked.models}
    with (
        claimed(
            f"{folder}/", "evaluate", [file], Files(NAMES[0], plots=NAMES[1:]), existing=OVERWRITE
        ) as destination,
        interrupts.under_way(),
    ):
        problems = {} if table_only else _answer_all(asked, lines, columns, folder, screen)
        table = _table(asked, lines, columns, folder, problems)
        found = {"title": asked.title or Path(file).stem, **_facts(asked, file), **table}
        try:
            write_tables(found, destination.file.parent)
        except OSError as error:
            raise TrimtokError(
                f"the table cannot be written ({error.strerror}): the answers in {folder} are "
                "safe; make room, and run again to have it."
            ) from None
        for each in block_tables(found):
            screen.show(each)
        screen.say(f"table in {', '.join(str(folder / name) for name in NAMES)}", "dim")
    whole = all(
        cell["answered"] == cell["samples"] and not cell["failed"]
        for row in table["rows"]
        for cell in row["cells"].values()
    )
    return EXIT_OK if whole else EXIT_SOME_FAILED


def _folder(out: str | None, name: str) -> Path:
    """The folder of a grid. Raises UsageError for one that holds another's table."""
    folder = Path(out or OWN / f"evaluate-{name}")
    if folder.is_file() or out == "-":
        raise UsageError(f"--out {brief(out)} is no folder: a grid has a folder of many files.")
    there = [folder / each for each in NAMES if (folder / each).exists()]
    if there and "blocks" not in read_manifest(folder / NAMES[0]):
        raise UsageError(
            f"--out: {there[0]} is there and is no table of a grid; choose another --out."
        )
    return folder


def _answer_all(
    grid: Grid,
    lines: Mapping[str, Sequence[plans.Line]],
    columns: Sequence[plans.Column],
    out: Path,
    screen: Screen,
) -> dict[Path, str]:
    """Answers what is left of every cell, model by model; returns why cells stay empty.

    On a CPU the settings take turns, part by part of the pictures, so that a picture is encoded
    once for all settings and questions, and whatever is answered by then is answered by all.
    """
    from trimtok_cli.device import pick_device

    size = cells.PART if pick_device(grid.device).type == "cpu" else None
    opener, problems = cells.OneModel(), dict[Path, str]()
    for model in grid.models:
        for part in cells.parts(columns, size):
            opener.next_part()
            for column, due in part:
                cell = [
                    run for line in lines[model] for run in plans.runs_of(line, column, grid, out)
                ]
                for each in {
                    run.folder: run for run in cell if run.folder not in problems
                }.values():
                    interrupts.look()
                    of = f"{len(due)} of {len(column.samples)} questions"
                    screen.say(f"{each.folder.relative_to(out)}, {of}", "bold")
                    try:
                        cells.answer(each, due, opener, screen)
                    except cells.Unfit as error:
                        problems[each.folder] = str(error)
                        screen.say(f"left out: {error}", "yellow")
    return problems


def _table(
    grid: Grid,
    lines: Mapping[str, Sequence[plans.Line]],
    columns: Sequence[plans.Column],
    out: Path,
    problems: Mapping[Path, str],
) -> dict[str, Any]:
    """The table of the answers that are there."""
    shared = {column.folder: Scorer(column.dataset, column.samples) for column in columns}
    scorers = {column.heading: shared[column.folder] for column in columns}
    rows = []
    for model, planned in lines.items():
        for line in planned:
            found, read = {}, {}
            for column in columns:
                if column.folder not in read:
                    runs = plans.runs_of(line, column, grid, out)
                    problem = next((problems[e.folder] for e in runs if e.folder in problems), "")
                    read[column.folder] = cells.read_cell(runs, problem)
                cell, texts = read[column.folder]
                # Where nothing but failures came back, there is nothing to score.
                metric, scorer = column.spec.metric, scorers[column.heading]
                score = scorer.score(*texts, metric=metric) if cell.succeeded else None
                found[column.heading] = dataclasses.replace(cell, score=score)
            rows.append(Row(model, line.settings[0], line.label, found))
    return document(rows, scorers, reference=grid.reference, published=grid.published.rows)


def _facts(grid: Grid, file: str) -> dict[str, Any]:
    return {
        "trimtok": __version__,
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": dict(versions()),
        "grid": json.loads(json.dumps(dataclasses.asdict(grid))),
        "file": Path(file).name,
    }
