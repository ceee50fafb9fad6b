"""The options of formats that are made of finished answers, and the making of them."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import OUTPUT
from trimtok_cli.errors import UsageError
from trimtok_cli.outputs.destination import Destination
from trimtok_cli.outputs.earlier import read_manifest
from trimtok_cli.outputs.exports.answers import Answers
from trimtok_cli.outputs.exports.form import Wanted
from trimtok_cli.outputs.exports.registry import FORMS, chosen, make
from trimtok_cli.wording import brief, suggestion

SIDECAR_NAMES = ("stem", "full")


def _complete(incomplete: str) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in FORMS if name.startswith(last)]


def _option(*names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=OUTPUT, help=help, **more)


Formats = Annotated[
    str,
    _option(
        "--format",
        help=f"Other formats of the answers, with commas between: {', '.join(FORMS)}.",
        show_default=False,
        autocompletion=_complete,
    ),
]

SidecarFolder = Annotated[
    Path | None,
    _option(
        "--sidecar-dir",
        help="The folder of txt and caption files, which mirrors the pictures' own.",
        show_default="beside the pictures",
        file_okay=False,
    ),
]

SidecarNames = Annotated[
    str,
    _option(
        "--sidecar-names",
        help="Names of txt and caption files: stem (a.txt) or full (a.jpg.txt).",
        autocompletion=lambda incomplete: [
            name for name in SIDECAR_NAMES if name.startswith(incomplete)
        ],
    ),
]

Replace = Annotated[
    bool,
    _option(
        "--overwrite-sidecars",
        help="Replace txt, caption and metadata.jsonl files that trimtok did not write.",
    ),
]

Prefix = Annotated[
    str,
    _option(
        "--caption-prefix",
        help="In txt, caption and imagefolder: what stands before every answer.",
        show_default=False,
    ),
]

Suffix = Annotated[
    str,
    _option(
        "--caption-suffix",
        help="In txt, caption and imagefolder: what stands behind every answer.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class FormatOptions:
    """Which formats are made of the answers, and how. Raises UsageError for unknown ones."""

    formats: Formats = ""
    sidecar_dir: SidecarFolder = None
    sidecar_names: SidecarNames = "stem"
    overwrite_sidecars: Replace = False
    caption_prefix: Prefix = ""
    caption_suffix: Suffix = ""

    def __post_init__(self) -> None:
        chosen(self.formats)
        if self.sidecar_names not in SIDECAR_NAMES:
            raise UsageError(
                f"--sidecar-names must be stem or full, got {brief(self.sidecar_names)}"
                f"{suggestion(self.sidecar_names, SIDECAR_NAMES)}."
            )

    @property
    def format_names(self) -> tuple[str, ...]:
        return chosen(self.formats)

    def wanted(self, tree: Path | None = None) -> Wanted:
        """tree: where sidecars lie if --sidecar-dir does not say so; None is beside pictures."""
        return Wanted(
            prefix=self.caption_prefix,
            suffix=self.caption_suffix,
            full_names=self.sidecar_names == "full",
            replace=self.overwrite_sidecars,
            tree=self.sidecar_dir or tree,
        )


def check_output(options: FormatOptions, out: str | None) -> None:
    """Raises UsageError if there is no place for formats."""
    if options.format_names and out == "-":
        raise UsageError(
            "--format: answers on standard output have no file beside them; name a folder or a "
            ".jsonl file with -o."
        )


def make_formats(destination: Destination, options: FormatOptions, screen: Screen) -> None:
    """Makes the formats of a run that is over, anew each time, and says what became of them."""
    names = options.format_names
    if not names or destination.answers is None or not destination.answers.exists():
        return
    targets = {
        name: destination.file.with_name(destination.file.stem + FORMS[name].ending)
        for name in names
    }
    with closing(Answers(destination.file, read_manifest(destination.manifest))) as answers:
        say_made(answers, targets, options.wanted(), screen)


def say_made(answers: Answers, targets: dict[str, Path], wanted: Wanted, screen: Screen) -> None:
    for name, made in make(answers, targets, wanted):
        screen.say(f"{name}: {made}", "dim")
