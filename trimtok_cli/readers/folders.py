"""What lies in a folder: media files in natural order, each folder visited once, whatever links and
file systems do.

A name with a known ending is not opened. Of others the first bytes are looked at. One bad entry is
said, and ends nothing.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from trimtok_cli.media.images import IMAGE_SUFFIXES
from trimtok_cli.media.kinds import media_kind
from trimtok_cli.media.video import VIDEO_SUFFIXES
from trimtok_cli.wording import shortened

# Endings of files that lie beside pictures and are none: they are not opened in a search.
NO_MEDIA_SUFFIXES = frozenset(
    {
        ".txt",
        ".json",
        ".jsonl",
        ".ndjson",
        ".xml",
        ".xmp",
        ".csv",
        ".tsv",
        ".md",
        ".html",
        ".htm",
        ".yaml",
        ".yml",
        ".ini",
        ".db",
        ".log",
        ".srt",
        ".vtt",
        ".ass",
        ".pdf",
        ".zip",
        ".gz",
        ".tar",
        ".py",
        ".sh",
        ".npy",
        ".npz",
        ".pt",
        ".pth",
        ".bin",
        ".safetensors",
        ".parquet",
        ".mp3",
        ".wav",
        ".flac",
        ".ogg",
        ".opus",
        ".m4a",
        ".aac",
        ".aae",
        ".part",
        ".crdownload",
    }
)

# Folders that a NAS or a system keeps for itself, in lower case; hidden ones are passed over
# anyway.
_SYSTEM_FOLDERS = frozenset(
    {
        "@eadir",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
        "@tmp",
        "$recycle.bin",
        "recycler",
        "recycled",
        "system volume information",
        "lost+found",
        "found.000",
        "__macosx",
    }
)


class Passed:
    """Files that were passed over, as they are no media: how many of which ending."""

    def __init__(self) -> None:
        self.endings: Counter[str] = Counter()
        self.troubles: list[str] = []

    def add(self, name: str) -> None:
        self.endings[shortened(os.path.splitext(name)[1].lower(), 12) or "without ending"] += 1

    def trouble(self, name: str, error: OSError) -> None:
        self.troubles.append(f"{name} was passed over ({error.strerror})")

    def endings_told(self) -> str:
        told = [f"{count} {ending}" for ending, count in self.endings.most_common(6)]
        return ", ".join(told + ["..."] * (len(self.endings) > 6))

    def notes(self) -> tuple[str, ...]:
        count = sum(self.endings.values())
        files = (
            f"{count} file{'s' if count > 1 else ''} passed over, no picture or video that "
            f"can be read: {self.endings_told()}"
        )
        more = [f"and {len(self.troubles) - 5} more"] if len(self.troubles) > 5 else []
        return tuple([files] * bool(count) + self.troubles[:5] + more)


def natural_key(name: str) -> tuple[tuple[int | str, ...], str]:
    """Sorts img2 before img10; upper and lower case side by side."""
    return tuple(
        int(part) if i % 2 else part.lower() for i, part in enumerate(re.split(r"(\d+)", name))
    ), name


def known_kind(name: str) -> str:
    """`image` or `video`, by the ending alone."""
    ending = os.path.splitext(name)[1].lower()
    return "image" if ending in IMAGE_SUFFIXES else "video" if ending in VIDEO_SUFFIXES else ""


def likely_kind(path: Path) -> str:
    """By the ending where it is known, and only else by content: `image`, `video`, "" or
    `unknown`.
    """
    return known_kind(path.name) or media_kind(path)


def walk(
    folder: Path,
    *,
    depth: int | None = None,
    wanted: Callable[[str], bool] = lambda name: True,
    passed: Passed | None = None,
    most: int | None = None,
) -> Iterator[tuple[str, str, str]]:
    """(name, kind, problem) of the media in `folder`, then of those in its subfolders, down to
    `depth` (None: all).

    Names are relative, with slashes. Of a subfolder that cannot be searched there is one entry with
    a problem. wanted: which names are looked at. most: so many folders are searched at most.
    OSError where `folder` itself cannot be read.
    """
    passed, visited, left = passed or Passed(), set(), [("", 0)]
    while left and (most is None or len(visited) < most):
        name, level = left.pop()
        path = os.path.join(folder, name) if name else str(folder)
        try:
            entries = _entries(path, visited)
        except OSError as error:
            if not name:
                raise
            if wanted(name):
                yield (
                    name,
                    "",
                    f"{name} cannot be searched ({error.strerror}); change its permissions, "
                    "or move it away",
                )
            continue
        below = []
        for entry in entries:
            inner = f"{name}/{entry.name}" if name else entry.name
            try:
                is_folder = entry.is_dir()
            except OSError as error:  # a link to itself
                passed.trouble(inner, error)
                continue
            if is_folder:
                below.append((inner, level + 1))
            elif wanted(inner):
                kind = known_kind(entry.name) or _kind_inside(entry)
                if kind:
                    yield inner, kind, ""
                else:
                    passed.add(entry.name)
        if depth is None or level < depth:
            left += [
                each
                for each in reversed(below)
                if each[0].rpartition("/")[2].lower() not in _SYSTEM_FOLDERS
            ]


def _entries(path: str, visited: set[tuple[int, int]]) -> list[os.DirEntry]:
    """What is to be looked at in a folder, in natural order; nothing where it was visited before,
    or is no folder of files.
    """
    status = os.stat(path)
    key = (status.st_dev, status.st_ino)
    if key in visited or status.st_dev in _pseudo_devices():
        return []
    visited.add(key)
    with os.scandir(path) as scanned:
        return sorted(
            (entry for entry in scanned if entry.name[0] != "."),
            key=lambda entry: natural_key(entry.name),
        )


def _kind_inside(entry: os.DirEntry) -> str:
    if os.path.splitext(entry.name)[1].lower() in NO_MEDIA_SUFFIXES:
        return ""
    kind = media_kind(entry.path)
    return kind if kind in ("image", "video") else ""


@cache
def _pseudo_devices() -> frozenset[int]:
    """File systems that the kernel makes up: they have no pictures and no end."""
    return frozenset(os.stat(path).st_dev for path in ("/proc", "/sys") if os.path.ismount(path))
