"""Lists of paths, from an @file or from standard input -> samples, one path an entry.

An entry whose file is missing becomes a sample that fails alone, when it is loaded. Opens no
picture but for the first bytes of one whose ending says nothing.
"""

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from trimtok_cli.blobs import Stored
from trimtok_cli.data import Sample
from trimtok_cli.errors import TrimtokError, UsageError
from trimtok_cli.readers.columns import Problem
from trimtok_cli.readers.folders import media_sample
from trimtok_cli.readers.foreign_formats import binary_format
from trimtok_cli.readers.media_names import MediaNames
from trimtok_cli.readers.text import names, open_bytes
from trimtok_cli.wording import brief, shown_name

_NOTHING_ON_STDIN = "standard input names no images; write one path a line"


def read_list_file(path: str, urls: bool = False) -> list[Sample]:
    """The samples of a list file; `urls`: entries may be addresses.

    UsageError where it does not exist or names no images.
    """
    try:
        with open_bytes(path) as file:
            samples = list(_samples(file, Path(path).parent, f"the list {brief(path, 200)}", urls))
    except FileNotFoundError as error:
        raise UsageError(
            f"the list {brief(path, 200)} does not exist; check its name after the @"
        ) from error
    if not samples:
        raise UsageError(f"the list {brief(path, 200)} names no images; write one path a line")
    return samples


def read_stdin(stdin: Any, urls: bool = False) -> Iterator[Sample]:
    """The samples of standard input, the first of which is read at once.

    UsageError where there is none.
    """
    samples = _samples(stdin, Path(), "standard input", urls)
    try:
        first = next(samples, None)
    except OSError as error:
        raise UsageError(f"standard input cannot be read ({error.strerror or error})") from error
    if first is None:
        raise UsageError(_NOTHING_ON_STDIN)
    return chain([first], samples)


def read_stdin_late(stdin: Any, urls: bool = False) -> Iterator[Sample]:
    """The samples of standard input, read after those of other sources.

    An error shows only during the run, so it becomes one sample that fails.
    """
    empty = True
    try:
        for sample in _samples(stdin, Path(), "standard input", urls):
            empty = False
            yield sample
        problem = _NOTHING_ON_STDIN if empty else ""
    except (TrimtokError, OSError) as error:
        problem = str(error)
    if problem:
        yield Sample(id="-", names=("-",), problem=problem)


def _samples(stream: Any, folder: Path, source: str, urls: bool) -> Iterator[Sample]:
    """One sample for each path of a stream: one a line, or NULs between them.

    Paths are relative to `folder` if the file lies there, else to the current folder. `source`
    names the stream in messages.
    """

    def look(head: bytes) -> None:
        if kind := binary_format(head, list_of_names=True):
            raise UsageError(f"{source} is no list of paths: it looks like {kind}")

    for entry, exact in names(stream, look):
        if entry and (sample := _sample_of(entry, exact, folder, urls)) is not None:
            yield sample


def _sample_of(entry: str, exact: bool, folder: Path, urls: bool) -> Sample | None:
    """The sample of an entry; None for a blank line or a comment.

    An entry is taken as it stands if there is such a file. Only then are blanks around it dropped,
    and lines with # passed over, but for exact entries.
    """
    name = entry
    path = _find(name, folder)
    if not exact and path is None:
        name = entry.removeprefix("\ufeff").strip()
        if not name or (name.startswith("#") and _find(name, folder) is None):
            return None
        path = _find(name, folder)
    if path is not None:
        return media_sample(name, path)
    shown = shown_name(name)
    problem = ""
    if "\0" in name:
        problem = f"{shown!r} holds a NUL character, which no file's name can have"
    elif is_address(name):
        return address_sample(name, urls)
    elif name.encode("utf-8", "replace") != name.encode("utf-8", "surrogateescape"):
        problem = (
            f"{shown!r} does not exist; it is not UTF-8, so if it was written as text, save "
            "the list as UTF-8"
        )
    if problem:
        return Sample(id=shown, names=(shown,), problem=problem)
    return media_sample(shown, Path(name))


def address_sample(name: str, urls: bool) -> Sample:
    """The sample of an address, or of a picture that the name itself holds (`data:`)."""
    shown = shown_name(name)
    try:
        medium = MediaNames(Path(), outside=True, urls=urls).find(name)
    except Problem as problem:
        return Sample(id=shown, names=(shown,), problem=str(problem))
    if isinstance(medium, Stored):
        return media_sample(shown, medium)
    return Sample(id=shown, images=(medium,), names=(shown,))


def is_address(name: str) -> bool:
    """Whether a name is a URL or holds the picture itself (`data:`)."""
    return "://" in name or name[:5].lower() == "data:"


def _find(name: str, folder: Path) -> Path | None:
    """The file of that name, in `folder`, else in the current folder; None where there is none."""
    for path in (folder / name, Path(name)):
        try:
            if name and os.path.lexists(path):
                return path
        except ValueError:  # a NUL, or a character that no name can have
            return None
    return None
