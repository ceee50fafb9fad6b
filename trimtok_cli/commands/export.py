"""trimtok export: the answers of a run in other formats. Loads no model."""

import re
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from trimtok_cli.commands import options as o
from trimtok_cli.commands.format_options import FormatOptions, say_made
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import INPUT, OUTPUT
from trimtok_cli.errors import EXIT_OK, TrimtokError, UsageError
from trimtok_cli.outputs.earlier import read_manifest
from trimtok_cli.outputs.exports.answers import Answers
from trimtok_cli.outputs.exports.registry import FORMS
from trimtok_cli.wording import shortened

EXAMPLES = (
    "Examples:\n\n"
    "trimtok export out --format csv,coco\n\n"
    "trimtok export out --format txt --caption-prefix 'sks, '\n\n"
    "trimtok export answers.jsonl --format vqav2 -o vqav2-results.json"
)

Run = Annotated[
    Path,
    typer.Argument(
        help="The folder of a run of caption or vqa, or its .jsonl file.", show_default=False
    ),
]

Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        rich_help_panel=OUTPUT,
        help="A folder, sidecars among what goes there; or, of one format, a file.",
        show_default="beside the answers; sidecars and metadata.jsonl with the pictures",
    ),
]

Root = Annotated[
    Path | None,
    typer.Option(
        "--image-root",
        rich_help_panel=INPUT,
        help="Where the names of pictures start, if they were moved.",
        show_default="as in the run",
        exists=True,
        file_okay=False,
    ),
]

Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        rich_help_panel=OUTPUT,
        help="Replace files of these formats that are already there.",
    ),
]

_FILE = re.compile(r"\.[a-z][a-z0-9]{0,6}", re.IGNORECASE)


@guarded
@o.settings()
def export(
    run: Run,
    *,
    out: Out = None,
    image_root: Root = None,
    overwrite: Overwrite = False,
    options: FormatOptions,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> int:
    """The command `trimtok export`; its help is in `cli.COMMANDS`."""
    names = options.format_names
    if not names:
        raise UsageError(f"no format was named; add --format with some of {', '.join(FORMS)}.")
    with closing(_answers(run, image_root)) as answers:
        _export(answers, names, out, overwrite, options, Screen(quiet=quiet))
    return EXIT_OK


def _export(
    answers: Answers,
    names: tuple[str, ...],
    out: Path | None,
    overwrite: bool,
    options: FormatOptions,
    screen: Screen,
) -> None:
    """Makes the formats, at `out` or beside the answers."""
    files = [name for name in names if FORMS[name].ending]
    single = out is not None and bool(_FILE.fullmatch(out.suffix)) and not out.is_dir()
    if single and len(names) != 1:
        raise UsageError(f"--out {out} is one file, and several formats were named: name a folder.")
    if single and not files:
        raise UsageError(f"--out {out}: --format {names[0]} is many files: name a folder.")
    folder = out or answers.path.parent
    targets = {
        name: Path(out) if out and single else folder / (answers.path.stem + FORMS[name].ending)
        for name in names
    }
    for name in files:
        _check(targets[name], answers.path, overwrite)
    if not answers.over:
        screen.say(f"note: the run is not over; it has {answers.total} answers so far", "yellow")
    _make_folders(targets[name] for name in files)
    say_made(answers, targets, options.wanted(None if single else out), screen)


def _answers(run: Path, image_root: Path | None) -> Answers:
    """The answers of a folder or a file. Raises UsageError if there are none."""
    path = run / "answers.jsonl" if run.is_dir() else run
    own = "" if path.name == "answers.jsonl" else f"{path.stem}."
    try:
        return Answers(path, read_manifest(path.with_name(f"{own}run.json")), image_root)
    except OSError as error:
        raise UsageError(
            f"{shortened(str(path))} cannot be read ({error.strerror or error}); name the folder "
            "of a run of `trimtok caption` or `trimtok vqa`, or its .jsonl file."
        ) from None


def _check(target: Path, answers: Path, overwrite: bool) -> None:
    if target.exists() and target.samefile(answers):
        raise UsageError(f"--out: {target} are the answers themselves; choose another --out.")
    if target.is_dir():
        raise UsageError(f"--out: {target} is a folder and in the way; choose another --out.")
    if target.exists() and not overwrite:
        raise UsageError(
            f"--out: {target} is already there; add --overwrite to replace it, or choose another "
            "--out."
        )


def _make_folders(targets) -> None:
    for target in targets:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrimtokError(
                f"--out: {target.parent} cannot be made ({error.strerror or error}); choose "
                "another --out."
            ) from None
