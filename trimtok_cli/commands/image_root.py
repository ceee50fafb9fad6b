"""The option --image-root: a folder of this machine, or of an object store."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtok_cli.blobs import Stored
from trimtok_cli.config import INPUT
from trimtok_cli.errors import UsageError
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


Root = Annotated[
    Any,
    typer.Option(
        "--image-root",
        help="Where the paths of pictures in a file of rows start, and what they may not leave; an "
        "address of a store, too.",
        rich_help_panel=INPUT,
        show_default="the file's folder",
        parser=image_root,
        metavar="DIRECTORY",
    ),
]
