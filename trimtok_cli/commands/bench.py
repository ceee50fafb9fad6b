"""trimtok bench: the costs and savings of pruning, measured on this machine.

Knows no way to measure and no method.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtok_cli import interrupts
from trimtok_cli.bench.derive import changes, derive
from trimtok_cli.bench.document import NAME, read_document, write
from trimtok_cli.bench.spec import PARTS, Bench, read_bench
from trimtok_cli.bench.tables import ceilings_line, change_table, count_table, tables
from trimtok_cli.commands import options as o
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.errors import EXIT_OK, EXIT_SOME_FAILED, TrimtokError
from trimtok_cli.outputs.destination import Destination, Files, claimed, listed
from trimtok_cli.outputs.earlier import FAIL, OVERWRITE
from trimtok_cli.yaml_text import preset_names

PLOTS = ("kept.png", "batch.png")

EXAMPLES = (
    "Examples:\n\n"
    "trimtok bench\n\n"
    "trimtok bench table4 --out h200\n\n"
    "trimtok bench mine.yaml --rounds 9 --against h200\n\n"
    "A YAML says what is measured: a grid of model, method, keep, batch and new tokens, and "
    "the pruner, the decode loop, a whole "
    "run's overhead, its memory, and what can be counted without a GPU. It writes bench.json "
    "with all raw numbers, and plots where matplotlib is installed."
)

Preset = Annotated[
    str,
    typer.Argument(
        help="A YAML file, or a preset of configs/bench: cpu, table4, floor, ladder, "
        "methods, counts, smoke.",
        autocompletion=o.completing(preset_names("bench")),
    ),
]

Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        "-o",
        help="A folder, a .json file, or - for standard output.",
        show_default="a new folder in trimtok-out",
    ),
]

Against = Annotated[
    Path | None,
    typer.Option(
        "--against",
        help="A folder with an earlier bench.json, or the file: print what has changed since.",
    ),
]


@guarded
@o.settings(read_bench, file="preset")
def bench(
    preset: Preset = "cpu",
    *,
    out: Out = None,
    against: Against = None,
    asked: Bench,
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> int:
    """The command `trimtok bench`; its help is in `cli.COMMANDS`."""
    earlier = read_document(against) if against is not None else None
    screen = Screen(quiet=quiet)
    read = [preset, *([against / NAME if against.is_dir() else against] if against else [])]
    read += [path for name in asked.model_names() + asked.images() for path in listed(name)]
    existing = OVERWRITE if overwrite else FAIL
    with claimed(out, "bench", read, Files(NAME, plots=PLOTS), existing=existing) as destination:
        screen.say_imports()
        from trimtok_cli.bench.run import run_bench

        measured: dict[str, Any] = {"preset": preset, "bench": dataclasses.asdict(asked)}

        def save(so_far: dict[str, Any]) -> None:
            measured.update(so_far)
            write(destination, measured)

        def say(line: str) -> None:
            interrupts.look()
            screen.say(line, "dim")

        with interrupts.under_way():
            try:
                run_bench(asked, say, save)
            finally:  # an interrupted run keeps its measurements
                if "ceilings" in measured:
                    _finish(derive(measured), earlier, destination, screen)
    failed = any(row["error"] for part in PARTS for row in measured.get(part, []))
    return EXIT_SOME_FAILED if failed else EXIT_OK


def _finish(
    document: dict[str, Any],
    earlier: dict[str, Any] | None,
    destination: Destination,
    screen: Screen,
) -> None:
    """Writes the file, and shows the tables, the change from an earlier file, and the plots."""
    write(destination, document)
    if destination.answers is None:
        typer.echo(json.dumps(document))  # ASCII: it is read in any encoding
    screen.say(ceilings_line(document), "bold")
    for table in tables(document):
        screen.show(table)
    if document["conditions"]["device_kind"] == "cpu":
        screen.say(
            "Ratios to dense only: on a CPU absolute times say little about other machines; "
            "they are in the JSON.",
            "dim",
        )
    if earlier is not None:
        if document["grid"]:
            screen.show(change_table(changes(document, earlier)))
        if document["counts"] or document["schedule"]:
            screen.show(count_table(document, earlier))
    _plot(document, destination, screen)


def _plot(document: dict[str, Any], destination: Destination, screen: Screen) -> None:
    if destination.answers is None:
        return
    try:
        from trimtok_cli.bench.plots import write_plots

        plots = write_plots(document, destination.answers.parent)
    except ImportError:
        screen.say("no plots: they need matplotlib (pip install 'trimtok[plot]')", "dim")
        plots = []
    except OSError as error:
        raise TrimtokError(
            f"a plot cannot be written ({error.strerror}); the raw numbers are in {destination}."
        ) from None
    screen.say(
        f"raw numbers in {destination}" + "".join(f", plot in {path}" for path in plots), "dim"
    )
