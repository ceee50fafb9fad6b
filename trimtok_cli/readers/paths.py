"""Files, folders, patterns, @lists and stdin -> samples of one image or video each, in natural order.

Knows names only: no file is opened here, and one that is missing from a list fails alone, later, when it is loaded.
"""

import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import TextIO

from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.media.images import IMAGE_SUFFIXES
from trimtok_cli.media.video import VIDEO_SUFFIXES
from trimtok_cli.readers.source import Source

_LOOKED_FOR = "looked for .jpg, .png, .webp, .mp4 and other image and video suffixes"


def read_images(
    sources: Sequence[str], *, recursive: bool = False, limit: int | None = None, stdin: TextIO | None = None
) -> Source:
    """Samples of all sources in the order given; `recursive` searches the folders' subfolders too."""
    if not sources:
        raise UsageError("no images were named; give image files, folders, patterns, @list.txt or - for paths on stdin")
    parts: list[Iterable[Sample]] = []
    files: list[Path | int] = []
    total: int | None = 0
    for source in sources:
        if source == "-":
            parts.append(_listed(stdin or sys.stdin, Path()))
            files.append(0)
            total = None
        else:
            found = _expand(source, recursive)
            parts.append(found)
            files += [Path(source.removeprefix("@")), *(path for each in found for path in (*each.images, each.video) if path)]
            total = None if total is None else total + len(found)
    return Source(chain.from_iterable(parts), total, tuple(files)).first(limit)


def is_question_file(source: str) -> bool:
    return source.lower().endswith((".jsonl", ".json")) and not Path(source).is_dir()


def natural_key(name: str) -> tuple[tuple[int | str, ...], str]:
    """Sorts img2 before img10; upper and lower case side by side."""
    return tuple(int(part) if i % 2 else part.lower() for i, part in enumerate(re.split(r"(\d+)", name))), name


def _expand(source: str, recursive: bool) -> list[Sample]:
    """What exists is meant literally, whatever characters it is written with; only then a list, then a pattern."""
    path = Path(source)
    try:
        if not source:
            raise UsageError("an empty name was given as an image; name an image file or a folder")
        if is_question_file(source):
            raise UsageError(f"{source} holds questions, not images; use `trimtok vqa {source}`")
        if path.is_dir():
            return _folder(path, source, recursive)
        if path.exists():
            return [_sample(source, path)]
        if source.startswith("@"):
            return _list_file(Path(source[1:]))
        if glob.has_magic(source):
            return _pattern(path, source)
    except OSError as error:
        raise UsageError(
            f"{error.filename or source} cannot be read ({error.strerror}); check its name and permissions"
        ) from error
    raise UsageError(f"{source} does not exist; name an image file, a folder or a quoted pattern such as '*.jpg'")


def _sample(name: str, path: Path) -> Sample:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return Sample(id=name, video=path, names=(name,))
    return Sample(id=name, images=(path,), names=(name,))


def _folder(folder: Path, source: str, recursive: bool) -> list[Sample]:
    samples = [_sample(path.relative_to(folder).as_posix(), path) for path in _walk(folder, recursive)]
    if not samples:
        deeper = any(True for _ in _walk(folder, recursive=True))
        hint = "; add -r to search its subfolders" if deeper else ""
        raise UsageError(f"no images in {source} ({_LOOKED_FOR}{hint})")
    return samples


def _walk(folder: Path, recursive: bool, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Images of `folder`, then those of its subfolders; hidden names and links back into a folder above are passed over."""
    above = above | {folder.resolve()}
    with os.scandir(folder) as scanned:
        entries = sorted((entry for entry in scanned if entry.name[0] != "."), key=lambda entry: natural_key(entry.name))
    for entry in entries:
        if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and not entry.is_dir():
            yield folder / entry.name
    for entry in entries if recursive else ():
        if entry.is_dir() and (folder / entry.name).resolve() not in above:
            yield from _walk(folder / entry.name, recursive, above)


def _pattern(path: Path, source: str) -> list[Sample]:
    """Images that match a pattern the shell left alone; `**` stands for any number of folders."""
    base, wanted = Path(path.anchor), list(path.parts[1 if path.anchor else 0 :])
    while (base / wanted[0]).exists():  # the folder that the pattern starts from, even if it is called [x]
        base /= wanted.pop(0)
    found = _walk(base, recursive=len(wanted) > 1 or wanted[0] == "**") if base.is_dir() else ()
    samples = [_sample(path.as_posix(), path) for path in found if _matches(path.relative_to(base).parts, wanted)]
    if not samples:
        raise UsageError(f"no images match {source} ({_LOOKED_FOR}); check the pattern")
    return samples


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    if not wanted or not parts:
        return not parts and all(part == "**" for part in wanted)
    if wanted[0] == "**":
        return _matches(parts, wanted[1:]) or _matches(parts[1:], wanted)
    return fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


def _list_file(path: Path) -> list[Sample]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            samples = list(_listed(lines, path.parent))
    except FileNotFoundError as error:
        raise UsageError(f"the list {path} does not exist; check its name after the @") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the list {path} is not UTF-8 text; save it as UTF-8, one path a line") from error
    if not samples:
        raise UsageError(f"the list {path} names no images; write one path a line")
    return samples


def _listed(lines: Iterable[str], folder: Path) -> Iterator[Sample]:
    """One path a line, from `folder` if it lies there, else from the current folder; blank and # lines say nothing."""
    for line in lines:
        name = line.removeprefix("\ufeff").strip()
        if name and not name.startswith("#"):
            yield _sample(name, folder / name if _exists(folder / name) else Path(name))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a line too long to be a name
        return False
