"""Files, folders, patterns, @lists and stdin -> samples of one image or video each, in natural
order.

Knows names and endings. A file is opened only where its ending says nothing, for its first bytes.
The source's notes tell what was passed over.
"""

import glob
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from trimtok_cli.blobs import Stored
from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.readers.apart import name_apart
from trimtok_cli.readers.folders import (
    NO_MEDIA_SUFFIXES,
    Found,
    Passed,
    known_kind,
    likely_kind,
    media_sample,
    walk,
)
from trimtok_cli.readers.lists import (
    address_sample,
    is_address,
    read_list_file,
    read_stdin,
    read_stdin_late,
)
from trimtok_cli.readers.patterns import Pattern
from trimtok_cli.readers.roots import root_of
from trimtok_cli.readers.source import Source
from trimtok_cli.stores import checked, is_folder, is_stored, shown_address
from trimtok_cli.wording import brief, shown_name

_LOOKED_FOR = "looked for .jpg, .png, .webp, .mp4 and other image and video suffixes"

# Folders that are searched for the hint that -r would find images.
_MOST_SEARCHED_FOR_HINT = 1000


def read_images(
    sources: Sequence[str],
    *,
    recursive: bool = False,
    limit: int | None = None,
    stdin: Iterable[str] | None = None,
    allow_urls: bool = False,
) -> Source:
    """The samples of all sources in the order given; `recursive` searches subfolders too.

    allow_urls: addresses are sources, too, and are fetched as they are asked for.

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
    stdin = stdin if stdin is not None else sys.stdin
    if "-" in sources and stdin is None:
        raise UsageError("standard input is closed; name image files or folders")
    if list(sources) == ["-"]:
        names = read_stdin(stdin, allow_urls)
        return Source(names, total=None, files=(0,), root=Path()).first(limit)
    passed = Passed()
    alone = len(sources) == 1
    parts = [
        [] if source == "-" else _expand(source, recursive, alone, passed, allow_urls)
        for source in sources
    ]
    if not any(parts) and "-" not in sources:
        endings = f"; they are {passed.shown_endings()}" if passed.endings else ""
        raise UsageError(
            f"none of the {len(sources)} names that were given is a picture, a video or a "
            f"folder with any{endings}"
        )
    num_groups = sum(map(_holds_several, sources))
    parts, notes = name_apart(parts, by_path=num_groups > 1)
    files = (*_named_files(sources), *_files_of(chain.from_iterable(parts)))
    notes = passed.notes() + notes
    if "-" not in sources:
        samples = list(chain.from_iterable(parts))
        root = root_of(samples, sources)
        return Source(samples, len(samples), files, notes, root=root).first(limit)
    streamed = (
        read_stdin_late(stdin, allow_urls) if source == "-" else part
        for source, part in zip(sources, parts, strict=True)
    )
    root = root_of([*chain.from_iterable(parts)], ())
    samples = chain.from_iterable(streamed)
    return Source(samples, None, files, notes, root=root).first(limit)


def is_question_file(source: str) -> bool:
    """Whether a name is that of a question file, by its ending."""
    return source.lower().endswith((".jsonl", ".json")) and not os.path.isdir(source)


def _holds_several(source: str) -> bool:
    if is_stored(source):
        return not known_kind(source)
    return source == "-" or source[:1] == "@" or os.path.isdir(source)


def _named_files(sources: Sequence[str]) -> list[Path | int]:
    named = (source for source in sources if not is_stored(source))
    return [0 if source == "-" else Path(source.removeprefix("@")) for source in named]


def _files_of(samples: Iterable[Sample]) -> Iterator[Path]:
    for sample in samples:
        yield from (path for path in (*sample.images, sample.video) if isinstance(path, Path))


# One source


def _expand(source: str, recursive: bool, alone: bool, passed: Passed, urls: bool) -> list[Sample]:
    """The samples of one source: a file or folder of this name, else a list, else a pattern.

    alone: nothing else was named. Among many names, as a shell's * gives them, a file that is no
    picture is passed over. UsageError where the source is nothing of the kind.
    """
    if not source:
        raise UsageError("an empty name was given as an image; name an image file or a folder")
    name = brief(source, 200)
    if is_stored(source):
        return _stored(source, recursive, alone, passed)
    if is_address(source) and (urls or source[:5].lower() == "data:"):
        sample = address_sample(source, urls)
        if sample.problem:
            raise UsageError(sample.problem)
        return [sample]
    if alone and is_question_file(source):
        raise UsageError(f"{name} holds questions, not images; use `trimtok vqa {name}`")
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
            return read_list_file(source[1:], urls)
        if glob.has_magic(source):
            return _pattern(source, passed)
        if not alone and os.path.lexists(source):  # a link that leads nowhere
            return [media_sample(source, Path(source))]
    except (OSError, ValueError) as error:
        if not alone and isinstance(error, OSError) and os.path.lexists(source):
            problem = f"{source} cannot be read ({error.strerror})"
            return [Sample(id=source, names=(source,), problem=problem)]
        at = brief(str(getattr(error, "filename", None) or source), 200)
        raise UsageError(
            f"{at} cannot be read ({getattr(error, 'strerror', error)}); check its name and "
            "permissions"
        ) from error
    if is_address(source):
        raise UsageError(
            f"{shown_name(source)} is an address, and nothing is fetched unless --allow-urls "
            "says so; add it, or save the picture and name its file"
        )
    raise UsageError(
        f"{name} does not exist; name an image file, a folder or a quoted pattern such as '*.jpg'"
    )


def _named(source: str, alone: bool, passed: Passed) -> list[Sample]:
    """The sample of a file that was named, with any ending.

    Its content must be a picture's or a video's, or not to be looked at.
    """
    kind = likely_kind(Path(source))
    name = brief(source, 200)
    sidecar = kind == "unknown" and os.path.splitext(source)[1].lower() in NO_MEDIA_SUFFIXES
    if kind and not (sidecar and not alone):
        return [media_sample(source, Path(source), kind)]
    if not alone:
        passed.add(source)
        return []
    if not os.path.isfile(source):
        raise UsageError(
            f"{name} is a pipe or a device, not a file; a list of paths is read with "
            f"@{name}, or - for stdin"
        )
    raise UsageError(
        f"{name} is no image and no video that can be read; a list of paths is read with @{name}"
    )


def _stored(source: str, recursive: bool, alone: bool, passed: Passed) -> list[Sample]:
    """The samples of an object of a store, or of a folder of objects."""
    place = Stored(checked(source))
    shown = shown_address(source)
    try:
        if is_folder(place.name):
            return _folder(place.name, recursive, alone, passed, place)
        if kind := likely_kind(place):
            return [media_sample(place.name, place, kind)]
    except FileNotFoundError:
        problem = "does not exist; name an object or a folder of the store (no pattern)"
        raise UsageError(f"{shown} {problem}") from None
    except OSError as error:
        raise UsageError(
            f"{shown} cannot be read ({error.strerror}); check its name, the network and your "
            "credentials"
        ) from None
    if alone:
        raise UsageError(f"{shown} is no image and no video that can be read")
    passed.add(source)
    return []


def _folder(
    source: str, recursive: bool, alone: bool, passed: Passed, store: Stored | None = None
) -> list[Sample]:
    """The samples of a folder. One without any is an error if it was named alone, else a note."""
    folder = store or Path(source)
    samples = [
        _found_sample(found.name, folder, found)
        for found in walk(folder, depth=None if recursive else 0, passed=passed)
    ]
    if not samples and alone:
        deeper = any(True for _ in walk(folder, most=_MOST_SEARCHED_FOR_HINT))
        hint = "; add -r to search its subfolders" if deeper and not recursive else ""
        other = f"; it has {passed.shown_endings()}" if passed.endings else ""
        raise UsageError(f"no images in {brief(source, 200)} ({_LOOKED_FOR}{hint}{other})")
    if not samples:
        passed.troubles.append(f"no images in {source}")
    return samples


def _pattern(source: str, passed: Passed) -> list[Sample]:
    pattern = Pattern.of(source)
    samples = []
    if pattern.folder.is_dir():
        samples = [
            _found_sample((pattern.folder / found.name).as_posix(), pattern.folder, found)
            for found in walk(
                pattern.folder, depth=pattern.depth, wanted=pattern.matches, passed=passed
            )
        ]
    if not samples:
        name = brief(source, 200)
        raise UsageError(f"no images match {name} ({_LOOKED_FOR}); check the pattern")
    return samples


def _found_sample(name: str, folder: Path | Stored, found: Found) -> Sample:
    """The sample `name` of an entry of `folder`."""
    if found.problem:
        return Sample(id=name, names=(name,), problem=found.problem)
    if isinstance(folder, Stored):
        return media_sample(name, Stored(f"{folder.name}/{found.name}"), found.kind)
    return media_sample(name, folder / found.name, found.kind)
