"""Files of rows in an object store: copied once into a temporary file, and read as any other.

The names of pictures start from the address of the file's folder. Knows no format.
"""

import os
import posixpath
import tempfile
from functools import cache
from pathlib import Path

from trimtok_cli import stores
from trimtok_cli.errors import UsageError

# Stands for the root of names that start in a store: nothing lies in it.
NOWHERE = Path(os.devnull)


@cache
def copied(address: str) -> str:
    """The path of a copy of the object, which is there until this process ends.

    Raises UsageError for a folder, and for what cannot be had.
    """
    shown = stores.shown_address(address)
    try:
        if stores.is_folder(address):
            raise UsageError(
                f"{shown} cannot be read as questions: it is a folder; use `trimtok caption`"
            )
        path = _folder() / f"{_count()}-{posixpath.basename(address)}"
        stores.fetch(address, path)
    except OSError as error:
        raise UsageError(
            f"{shown} cannot be read ({error.strerror}); check its name, the network and your "
            "credentials"
        ) from None
    return str(path)


def folder_of(address: str) -> tuple[Path, str]:
    """(root, store) of the names in a file of that address, for `MediaNames`.

    A file:// address is a name of this machine, with the rules of one.
    """
    return root_at(posixpath.dirname(address))


def root_at(address: str) -> tuple[Path, str]:
    """(root, store) of names that start from that folder."""
    if address.startswith("file://"):
        return Path("/" + address.removeprefix("file://").lstrip("/")), ""
    return NOWHERE, address


@cache
def _holder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="trimtok-")


def _folder() -> Path:
    return Path(_holder().name)


def _count() -> int:
    return len(os.listdir(_folder()))
