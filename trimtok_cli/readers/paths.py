"""Files, folders, patterns, @lists and stdin -> samples of one image or video each, in natural
order.

Knows names and endings; a file is opened only where its ending says nothing, for its first bytes.
One that is missing from a list fails alone, later, when it is loaded. Of what was passed over the
source's notes tell.
"""

import glob
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any

from trimtok_cli.data import Sample
from trimtok_cli.errors import TrimtokError, UsageError
from trimtok_cli.readers import shapes
from trimtok_cli.readers.folders import NO_MEDIA_SUFFIXES, Passed, likely_kind, natural_key, walk
from trimtok_cli.readers.source import Source
from trimtok_cli.readers.text import names, open_bytes
from trimtok_cli.wording import shortened, shown_name

__all__ = ["is_question_file", "natural_key", "read_images"]

_LOOKED_FOR = "looked for .jpg, .png, .webp, .mp4 and other image and video suffixes"

_NOTHING_ON_STDIN = "standard input names no images; write one path a line"


def read_images(
    sources: Sequence[str],
    *,
    recursive: bool = False,
    limit: int | None = None,
    stdin: Iterable[str] | None = None,
) -> Source:
    """Samples of all sources in the order given; `recursive` searches the folders' subfolders too.

    UsageError where nothing is found. Standard input is read as samples are asked for; where it is
    the only source, its first name is read at once.
    """
    if not sources:
        raise UsageError(
            "no images were named; give image files, folders, patterns, @list.txt or - for "
            "paths on stdin"
        )
    if sources.count("-") > 1:
        raise UsageError("standard input can be read only once; give - once")
    stdin, passed = stdin if stdin is not None else sys.stdin, Passed()
    if "-" in sources and stdin is None:
        raise UsageError("standard input is closed; name image files or folders")
    if list(sources) == ["-"]:
        return Source(_first_at_once(_listed(stdin, Path(), "standard input")), None, (0,)).first(
            limit
        )
    parts = [
        [] if source == "-" else _expand(source, recursive, len(sources) == 1, passed)
        for source in sources
    ]
    if not any(parts) and "-" not in sources:
        told = f"; they are {passed.endings_told()}" if passed.endings else ""
        raise UsageError(
            f"none of the {len(sources)} names that were given is a picture, a video or a "
            f"folder with any{told}"
        )
    many_folders = (
        sum(os.path.isdir(source) or source[:1] == "@" for source in sources) + ("-" in sources) > 1
    )
    parts, notes = _told_apart(parts, many_folders)
    found = list(chain.from_iterable(parts))
    named = [0 if source == "-" else Path(source.removeprefix("@")) for source in sources]
    files = (*named, *(path for sample in found for path in (*sample.images, sample.video) if path))
    if "-" not in sources:
        return Source(found, len(found), files, passed.notes() + notes).first(limit)
    streamed = [
        _late(stdin) if source == "-" else part for source, part in zip(sources, parts, strict=True)
    ]
    return Source(chain.from_iterable(streamed), None, files, passed.notes() + notes).first(limit)


def is_question_file(source: str) -> bool:
    return source.lower().endswith((".jsonl", ".json")) and not os.path.isdir(source)


def _expand(source: str, recursive: bool, alone: bool, passed: Passed) -> list[Sample]:
    """What exists is meant literally, whatever characters it is written with; only then a list,
    then a pattern.

    alone: nothing else was named. Among many names, as a shell's * gives them, what is no picture
    is passed over.
    """
    if not source:
        raise UsageError("an empty name was given as an image; name an image file or a folder")
    if alone and is_question_file(source):
        raise UsageError(f"{source} holds questions, not images; use `trimtok vqa {source}`")
    try:
        try:
            mode = os.stat(source).st_mode
        except FileNotFoundError:
            mode = 0
        if stat.S_ISDIR(mode):
            return _folder(source, recursive, alone, passed)
        if mode:
            return _named(source, alone, passed)
        if source.startswith("@"):
            return _list_file(source[1:])
        if glob.has_magic(source):
            return _pattern(source, passed)
        if not alone and os.path.lexists(source):  # a link that leads nowhere
            return [_sample(source, Path(source))]
    except (OSError, ValueError) as error:
        if not alone and isinstance(error, OSError) and os.path.lexists(source):
            return [
                Sample(
                    id=source,
                    names=(source,),
                    problem=f"{source} cannot be read ({error.strerror})",
                )
            ]
        at = shortened(str(getattr(error, "filename", None) or source))
        raise UsageError(
            f"{at} cannot be read ({getattr(error, 'strerror', error)}); check its name and "
            "permissions"
        ) from error
    if "://" in source or source[:5].lower() == "data:":
        raise UsageError(
            f"{shown_name(source)} is no file, and nothing is fetched; save the picture and "
            "name its file"
        )
    raise UsageError(
        f"{shortened(source)} does not exist; name an image file, a folder or a quoted "
        "pattern such as '*.jpg'"
    )


def _named(source: str, alone: bool, passed: Passed) -> list[Sample]:
    """A file that was named. Any ending will do, if the content is a picture's or a video's, or
    cannot be looked at.
    """
    kind = likely_kind(Path(source))
    sidecar = kind == "unknown" and os.path.splitext(source)[1].lower() in NO_MEDIA_SUFFIXES
    if kind and not (sidecar and not alone):
        return [_sample(source, Path(source), kind)]
    if not alone:
        passed.add(source)
        return []
    if not os.path.isfile(source):
        raise UsageError(
            f"{source} is a pipe or a device, not a file; a list of paths is read with "
            f"@{source}, or - for stdin"
        )
    raise UsageError(
        f"{source} is no image and no video that can be read; a list of paths is read with "
        f"@{source}"
    )


def _sample(name: str, path: Path, kind: str = "") -> Sample:
    kind = kind or likely_kind(path)
    if kind == "video":
        return Sample(id=name, video=path, names=(name,))
    return Sample(id=name, images=(path,), names=(name,))


def _folder(source: str, recursive: bool, alone: bool, passed: Passed) -> list[Sample]:
    folder = Path(source)
    found = walk(folder, depth=None if recursive else 0, passed=passed)
    samples = [_found(name, folder / name, kind, problem) for name, kind, problem in found]
    if not samples and alone:
        deeper = any(True for _ in walk(folder, most=1000))
        hint = "; add -r to search its subfolders" if deeper and not recursive else ""
        other = f"; it has {passed.endings_told()}" if passed.endings else ""
        raise UsageError(f"no images in {source} ({_LOOKED_FOR}{hint}{other})")
    if not samples:
        passed.troubles.append(f"no images in {source}")
    return samples


def _found(name: str, path: Path, kind: str, problem: str) -> Sample:
    return Sample(id=name, names=(name,), problem=problem) if problem else _sample(name, path, kind)


def _told_apart(
    parts: list[list[Sample]], many_folders: bool
) -> tuple[list[list[Sample]], tuple[str, ...]]:
    """The samples under names that tell any two files apart (their paths, where those as given do
    not), and what came twice.
    """
    if len(parts) < 2:
        return parts, ()
    places: dict[str, Path] = {}
    clash = many_folders
    for sample in chain.from_iterable(parts):
        path = _path(sample)
        clash = clash or (path is not None and places.setdefault(sample.names[0], path) != path)
    if clash:
        parts = [[_by_path(sample) for sample in part] for part in parts]
    twice = [
        name
        for name, count in Counter(sample.id for sample in chain.from_iterable(parts)).items()
        if count > 1
    ]
    if not twice:
        return parts, ()
    told = ", ".join([shortened(name) for name in twice[:3]] + ["..."] * (len(twice) > 3))
    return parts, (f"named more than once, and answered as often: {told}",)


def _path(sample: Sample) -> Path | None:
    return sample.video or next(iter(sample.images), None)


def _by_path(sample: Sample) -> Sample:
    path = _path(sample)
    name = sample.names[0] if path is None else path.as_posix()
    return replace(sample, id=name, names=(name,))


def _pattern(source: str, passed: Passed) -> list[Sample]:
    """Images that match a pattern the shell left alone; `**` stands for any number of folders."""
    path = Path(source)
    base, wanted = Path(path.anchor), list(path.parts[1 if path.anchor else 0 :])
    while len(wanted) > 1 and os.path.exists(
        base / wanted[0]
    ):  # where the pattern starts, even if that is called [x]
        base /= wanted.pop(0)
    depth = None if "**" in wanted else len(wanted) - 1
    found = (
        walk(
            base, depth=depth, wanted=lambda name: _matches(name.split("/"), wanted), passed=passed
        )
        if base.is_dir()
        else ()
    )
    samples = [
        _found((base / name).as_posix(), base / name, kind, problem)
        for name, kind, problem in found
    ]
    if not samples:
        raise UsageError(f"no images match {source} ({_LOOKED_FOR}); check the pattern")
    return samples


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether a path's parts match the pattern's, `**` any number of them. Keeps every place of the
    pattern that may be next.
    """
    places = _past_stars({0}, wanted)
    for part in parts:
        stay = {place for place in places if place < len(wanted) and wanted[place] == "**"}
        step = {
            place + 1
            for place in places - stay
            if place < len(wanted) and fnmatchcase(part, wanted[place])
        }
        places = _past_stars(stay | step, wanted)
    return len(wanted) in places


def _past_stars(places: set[int], wanted: Sequence[str]) -> set[int]:
    found = set(places)
    for place in sorted(places):
        while place < len(wanted) and wanted[place] == "**":
            place += 1
            found.add(place)
    return found


def _list_file(path: str) -> list[Sample]:
    try:
        with open_bytes(path) as file:
            samples = list(_listed(file, Path(path).parent, f"the list {path}"))
    except FileNotFoundError as error:
        raise UsageError(
            f"the list {shortened(path)} does not exist; check its name after the @"
        ) from error
    if not samples:
        raise UsageError(f"the list {path} names no images; write one path a line")
    return samples


def _first_at_once(samples: Iterator[Sample]) -> Iterator[Sample]:
    try:
        first = next(samples, None)
    except OSError as error:
        raise UsageError(f"standard input cannot be read ({error.strerror or error})") from error
    if first is None:
        raise UsageError(_NOTHING_ON_STDIN)
    return chain([first], samples)


def _late(stdin: Any) -> Iterator[Sample]:
    """Standard input behind other sources: what is wrong with it is found out during the run, and
    fails one row.
    """
    empty = True
    try:
        for sample in _listed(stdin, Path(), "standard input"):
            empty = False
            yield sample
        problem = _NOTHING_ON_STDIN if empty else ""
    except (TrimtokError, OSError) as error:
        problem = str(error)
    if problem:
        yield Sample(id="-", names=("-",), problem=problem)


def _listed(stream: Any, folder: Path, what: str) -> Iterator[Sample]:
    """One path a line, or NULs between them; from `folder` if it lies there, else from the current
    folder.
    """

    def look(head: bytes) -> None:
        if kind := shapes.binary(head, list_of_names=True):
            raise UsageError(f"{what} is no list of paths: it looks like {kind}")

    for entry, exact in names(stream, look):
        if entry and (sample := _entry(entry, exact, folder)) is not None:
            yield sample


def _entry(entry: str, exact: bool, folder: Path) -> Sample | None:
    """A line is a file's name as it stands, if there is such a file. Else blanks around it, and
    lines with #, say nothing.
    """
    name = entry
    path = _placed(name, folder)
    if not exact and path is None:
        name = entry.removeprefix("\ufeff").strip()
        if not name or (name.startswith("#") and _placed(name, folder) is None):
            return None
        path = _placed(name, folder)
    if path is not None:
        return _sample(name, path)
    shown = shown_name(name)
    problem = ""
    if "\0" in name:
        problem = f"{shown!r} holds a NUL character, which no file's name can have"
    elif "://" in name or name[:5].lower() == "data:":
        problem = f"{shown} is no file, and nothing is fetched; save the picture and name its file"
    elif name.encode("utf-8", "replace") != name.encode("utf-8", "surrogateescape"):
        problem = (
            f"{shown!r} does not exist; it is not UTF-8, so if it was written as text, save "
            "the list as UTF-8"
        )
    if problem:
        return Sample(id=shown, names=(shown,), problem=problem)
    return _sample(shown, Path(name))


def _placed(name: str, folder: Path) -> Path | None:
    """Where the file of that name lies: from `folder`, else from the current folder; None where
    there is none.
    """
    for path in (folder / name, Path(name)):
        try:
            if name and os.path.lexists(path):
                return path
        except ValueError:  # a NUL, or a character that no name can have
            return None
    return None
