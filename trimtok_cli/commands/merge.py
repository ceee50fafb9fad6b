"""trimtok merge: the shards of a run as one run. Loads no model."""

from pathlib import Path
from typing import Annotated

import typer

from trimtok_cli.commands import options as o
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import OUTPUT
from trimtok_cli.errors import EXIT_OK, EXIT_SOME_FAILED, TrimtokError, UsageError
from trimtok_cli.outputs.destination import Files, claimed
from trimtok_cli.outputs.earlier import FAIL, OVERWRITE
from trimtok_cli.outputs.fingerprint import other_versions
from trimtok_cli.outputs.merged import merge as merge_parts
from trimtok_cli.outputs.merged import parts_of

EXAMPLES = (
    "Examples:\n\n"
    "trimtok caption ./images -o night --shard 1/2; trimtok caption ./images -o night --shard 2/2"
    "\n\n"
    "trimtok merge night -o night"
)

Runs = Annotated[
    list[Path],
    typer.Argument(
        help="The folders of all shards, or the folder that --out named for them.",
        show_default=False,
        exists=True,
        file_okay=False,
    ),
]

Out = Annotated[
    str,
    typer.Option(
        "--out",
        "-o",
        help="A folder for the whole run, or a .jsonl file; may be the folder of the shards.",
        rich_help_panel=OUTPUT,
        show_default=False,
    ),
]


@guarded
@o.settings()
def merge(
    runs: Runs,
    *,
    out: Out,
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> int:
    """The command `trimtok merge`; its help is in `cli.COMMANDS`."""
    screen = Screen(quiet=quiet, noun="inputs")
    parts = parts_of(runs)
    if out == "-":
        raise UsageError("--out -: name a folder or a .jsonl file.")
    reads = [path for part in parts for path in part.folder.iterdir()]
    existing = OVERWRITE if overwrite else FAIL
    with claimed(out, "merge", reads, Files(errors=True), existing=existing) as destination:
        first = parts[0].manifest
        changed = {
            told for part in parts[1:] for told in other_versions(first, part.manifest["versions"])
        }
        if changed:
            screen.say(f"note: in other shards, {', '.join(sorted(changed))}", "yellow")
        try:
            summary = merge_parts(parts, destination)
        except OSError as error:
            raise TrimtokError(
                f"{destination} cannot be written ({error.strerror or error}): the shards are as "
                "they were; make room, and run again."
            ) from None
    screen.say(
        f"{summary.done + summary.failed} answers of {len(parts)} shards in {destination}, "
        f"{summary.failed} failed"
    )
    return EXIT_SOME_FAILED if summary.failed else EXIT_OK
