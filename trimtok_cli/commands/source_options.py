"""The options that say how sources are read, as one record."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtok_cli.blobs import Stored
from trimtok_cli.config import INPUT, RunConfig
from trimtok_cli.errors import UsageError
from trimtok_cli.readers.reading import Reading
from trimtok_cli.stores import checked, is_stored
from trimtok_cli.wording import brief


def image_root(text: str) -> Path | Stored:
    """The folder. Raises BadParameter for one that is not there; a store is asked later."""
    if is_stored(text):
        try:
            return Stored(checked(text))
        except UsageError as error:
            raise typer.BadParameter(str(error)) from None
    if not os.path.isdir(text):
        state = "is a file" if os.path.isfile(text) else "does not exist"
        raise typer.BadParameter(f"Directory {brief(text, 120)!r} {state}.")
    return Path(text)


def _input(*names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=INPUT, help=help, **more)


Root = Annotated[
    Any,
    _input(
        "--image-root",
        help="Where the paths of pictures in a file of rows start, and what they may not leave; an "
        "address of a store, too.",
        show_default="the file's folder",
        parser=image_root,
        metavar="DIRECTORY",
    ),
]

Recursive = Annotated[bool, _input("--recursive", "-r", help="Search folders within folders.")]

TextOnly = Annotated[
    bool,
    _input("--allow-text-only", help="Ask rows without a picture, too; otherwise they fail."),
]

Outside = Annotated[
    bool,
    _input(
        "--allow-outside",
        help="Open pictures outside of --image-root, too, that absolute paths, .. or links of a "
        "question file lead to.",
    ),
]


@dataclass(frozen=True)
class SourceOptions:
    """The options of reading that are not settings, by the names of `Reading`."""

    recursive: Recursive = False
    image_root: Root = None
    allow_text_only: TextOnly = False
    allow_outside: Outside = False

    def reading(self, config: RunConfig) -> Reading:
        """How the sources of a run are read."""
        return Reading(
            **vars(self),
            limit=config.limit or None,
            format=config.input_format,
            allow_urls=config.allow_urls,
            settings=vars(config),
        )
