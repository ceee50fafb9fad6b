"""trimtok report: the page of finished runs, from their files. Loads no model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from trimtok_cli.commands import options as o
from trimtok_cli.commands.export import Root
from trimtok_cli.commands.page_options import PageOptions, Pictures
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.commands.terminal.tables import SummaryTable
from trimtok_cli.config import OUTPUT
from trimtok_cli.data import Comparison
from trimtok_cli.errors import EXIT_OK, TrimtokError, UsageError

EXAMPLES = (
    "Examples:\n\n"
    "trimtok report case-study -o case-study.html --figure fig2.png\n\n"
    "trimtok report dense-answers keep-64 keep-32 -o page.html\n\n"
    "Runs of caption and vqa are joined by what they were asked, and one of them has to be dense. "
    "Only compare records where the kept tokens lie, which the page draws over the pictures."
)

Runs = Annotated[
    list[Path],
    typer.Argument(
        help="Folders of runs of compare, caption or vqa, or their .jsonl files.",
        show_default=False,
    ),
]

Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        rich_help_panel=OUTPUT,
        help="The page, a file that ends in .html.",
        show_default="report.html beside the first run's answers",
    ),
]

Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", rich_help_panel=OUTPUT, help="Replace a page or pictures already there."
    ),
]


@guarded
@o.settings()
def report(
    runs: Runs,
    *,
    out: Out = None,
    image_root: Root = None,
    overwrite: Overwrite = False,
    page: PageOptions,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> int:
    """The command `trimtok report`; its help is in `cli.COMMANDS`."""
    from trimtok_cli.outputs.finished_runs import joined, read_run
    from trimtok_cli.outputs.pictures import Loader
    from trimtok_cli.readers.columns import references

    screen = Screen(quiet=quiet, noun="samples")
    try:
        found = [read_run(path, image_root, references) for path in runs]
    except OSError as error:
        raise UsageError(
            f"{error.filename} cannot be read ({error.strerror or error}); name the folder of a "
            "run."
        ) from error
    comparisons, notes = joined(found)
    for note in notes:
        screen.say(f"note: {note}", "yellow")
    target = out or found[0].path.with_name("report.html")
    _check(target, overwrite)
    page.check(overwrite, [run.path for run in found])
    pictures = Pictures(page, Loader(rule=found[0].frame_rule))
    for number, comparison in enumerate(comparisons, start=1):
        pictures.add(number, comparison)
    _write(target, comparisons, found, pictures, screen)
    pictures.finish(comparisons, screen)
    return EXIT_OK


def _write(
    target: Path, comparisons: Sequence[Comparison], runs, pictures: Pictures, screen: Screen
) -> None:
    """Shows the summary on the terminal, and writes the page."""
    from trimtok_cli.evaluation.headline import explain
    from trimtok_cli.evaluation.summary import summarize
    from trimtok_cli.outputs.page.facts import details_of, facts_of
    from trimtok_cli.outputs.page.write import write_page

    rows = summarize(comparisons)
    if any(row.samples for row in rows):
        screen.show(SummaryTable(rows))
    screen.say(explain(rows), "bold")
    documents = [run.document for run in runs]
    facts = facts_of(documents[0], comparisons)
    if len(runs) > 1:
        facts["Timing"] = "each run at its own time, so times are not measured side by side"
    if not any(comparison.boxes for comparison in comparisons):
        facts["Kept tokens"] = (
            "not drawn: runs of caption and vqa record how many are kept, and compare which"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_page(
            target,
            comparisons,
            model=next((run.model for run in runs if run.model), "answers"),
            facts=facts,
            details=details_of(documents),
            loader=pictures.loader,
        )
    except OSError as error:
        raise TrimtokError(
            f"--out: {target} cannot be written ({error.strerror or error}); choose another --out."
        ) from error
    screen.say(f"page in {target}", "dim")


def _check(target: Path, overwrite: bool) -> None:
    if target.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {target}: name a file that ends in .html.")
    if target.is_dir():
        raise UsageError(f"--out: {target} is a folder and in the way; choose another --out.")
    if target.exists() and not overwrite:
        raise UsageError(
            f"--out: {target} is already there; add --overwrite to replace it, or choose another "
            "--out."
        )
