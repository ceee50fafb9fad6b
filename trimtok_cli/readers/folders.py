"""The media files of a folder: in natural order, each folder once, whatever links and file systems
do.

A name with a known ending is not opened; of other files the first bytes are looked at. An entry
that cannot be read is noted and ends nothing.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from trimtok_cli import stores
from trimtok_cli.blobs import Blob, Medium, Stored
from trimtok_cli.data import Sample
from trimtok_cli.media.images import IMAGE_SUFFIXES
from trimtok_cli.media.kinds import media_kind, stored_kind
from trimtok_cli.media.video import VIDEO_SUFFIXES
from trimtok_cli.wording import shortened

# Endings of files that lie beside pictures and are none: a search does not open them.
NO_MEDIA_SUFFIXES = frozenset(
    {".txt", ".md", ".html", ".htm", ".pdf", ".log", ".ini", ".db", ".py", ".sh"}
    | {".json", ".jsonl", ".ndjson", ".xml", ".xmp", ".csv", ".tsv", ".yaml", ".yml", ".aae"}
    | {".npy", ".npz", ".pt", ".pth", ".bin", ".safetensors", ".parquet"}
    | {".zip", ".gz", ".tar", ".part", ".crdownload"}
    | {".mp3", ".wav", ".flac", ".ogg", ".opus", ".m4a", ".aac", ".srt", ".vtt", ".ass"}
)

# Folders that a NAS or a system keeps for itself, in lower case; hidden ones need no name here.
_SYSTEM_FOLDERS = frozenset(
    {"@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot"}
    | {"$recycle.bin", "recycler", "recycled", "system volume information"}
    | {"lost+found", "found.000", "__macosx"}
)

# Entries and endings that a note lists one by one.
_MOST_TROUBLES = 5
_MOST_ENDINGS = 6


@dataclass(frozen=True, slots=True)
class Found:
    """An entry of a search: its `name` relative to the folder, with slashes, and its `kind`.

    kind: `image` or `video`. A subfolder that cannot be searched has no kind and a `problem`.
    """

    name: str
    kind: str = ""
    problem: str = ""


class Passed:
    """The files that were passed over: how many of each ending, and what could not be read."""

    def __init__(self) -> None:
        self.endings: Counter[str] = Counter()
        self.troubles: list[str] = []

    def add(self, name: str) -> None:
        """Counts a file that is no media."""
        self.endings[shortened(os.path.splitext(name)[1].lower(), 12) or "without ending"] += 1

    def trouble(self, name: str, error: OSError) -> None:
        """Notes an entry that cannot be read."""
        self.troubles.append(f"{name} was passed over ({error.strerror})")

    def shown_endings(self) -> str:
        """The commonest endings with their counts: `12 .txt, 3 .xml`."""
        shown = [f"{count} {ending}" for ending, count in self.endings.most_common(_MOST_ENDINGS)]
        if len(self.endings) > _MOST_ENDINGS:
            shown.append("...")
        return ", ".join(shown)

    def notes(self) -> tuple[str, ...]:
        """Sentences for the user; none where nothing was passed over."""
        notes = []
        if count := sum(self.endings.values()):
            files = "files" if count > 1 else "file"
            notes.append(
                f"{count} {files} passed over, no picture or video that can be read: "
                f"{self.shown_endings()}"
            )
        notes += self.troubles[:_MOST_TROUBLES]
        if len(self.troubles) > _MOST_TROUBLES:
            notes.append(f"and {len(self.troubles) - _MOST_TROUBLES} more")
        return tuple(notes)


def media_sample(name: str, path: Medium, kind: str = "") -> Sample:
    """A sample of one video, or else of one image. A `kind` that is not given is looked up."""
    if (kind or likely_kind(path)) == "video":
        return Sample(id=name, video=path, names=(name,))
    return Sample(id=name, images=(path,), names=(name,))


def natural_key(name: str) -> tuple[tuple[int | str, ...], str]:
    """A key for sorting that puts img2 before img10, and upper beside lower case."""
    parts = re.split(r"(\d+)", name)
    return tuple(int(part) if i % 2 else part.lower() for i, part in enumerate(parts)), name


def known_kind(name: str) -> str:
    """`image` or `video` by the ending alone; "" for any other ending."""
    ending = os.path.splitext(name)[1].lower()
    if ending in IMAGE_SUFFIXES:
        return "image"
    return "video" if ending in VIDEO_SUFFIXES else ""


def likely_kind(path: Medium) -> str:
    """`image`, `video`, "" or `unknown`: by the ending where it is known, else by content."""
    if isinstance(path, Blob):
        return known_kind(path.name) or stored_kind(path.name)
    return known_kind(path.name) or media_kind(path)


def walk(
    folder: Path | Stored,
    *,
    depth: int | None = None,
    wanted: Callable[[str], bool] = lambda name: True,
    passed: Passed | None = None,
    most: int | None = None,
) -> Iterator[Found]:
    """The media in `folder`, then those in its subfolders, down to `depth` levels (None: all).

    wanted: which names are looked at; passed: counts what is passed over; most: how many folders
    are searched at most. folder: one of a store, too. OSError where `folder` itself cannot be read.
    """
    passed = passed or Passed()
    visited: set[tuple[int, int]] = set()
    waiting = [("", 0)]
    while waiting and (most is None or len(visited) < most):
        name, level = waiting.pop()
        try:
            inner = os.path.join(str(folder), name) if name else str(folder)
            entries = _listed(inner) if isinstance(folder, Stored) else _entries(inner, visited)
        except OSError as error:
            if not name:
                raise
            if wanted(name):
                problem = (
                    f"{name} cannot be searched ({error.strerror}); change its permissions, or "
                    "move it away"
                )
                yield Found(name, problem=problem)
            continue
        subfolders = []
        for entry in entries:
            inner = f"{name}/{entry.name}" if name else entry.name
            try:
                is_folder = entry.is_dir()
            except OSError as error:  # a link to itself
                passed.trouble(inner, error)
                continue
            if is_folder:
                if entry.name.lower() not in _SYSTEM_FOLDERS:
                    subfolders.append((inner, level + 1))
            elif wanted(inner):
                kind = known_kind(entry.name) or _kind_inside(entry)
                if kind:
                    yield Found(inner, kind)
                else:
                    passed.add(entry.name)
        if depth is None or level < depth:
            waiting += reversed(subfolders)


def _listed(address: str) -> list[stores.Entry]:
    """The visible entries of a folder of a store in natural order."""
    return sorted(stores.entries(address), key=lambda entry: natural_key(entry.name))


def _entries(path: str, visited: set[tuple[int, int]]) -> list[os.DirEntry]:
    """The visible entries of a folder in natural order.

    A folder that was visited before has none, nor has a file system that the kernel makes up.
    """
    status = os.stat(path)
    key = (status.st_dev, status.st_ino)
    if key in visited or status.st_dev in _pseudo_devices():
        return []
    visited.add(key)
    with os.scandir(path) as scanned:
        visible = [entry for entry in scanned if entry.name[0] != "."]
    return sorted(visible, key=lambda entry: natural_key(entry.name))


def _kind_inside(entry: "os.DirEntry | stores.Entry") -> str:
    """`image` or `video` by content; "" for anything else, and for endings that are never media."""
    if os.path.splitext(entry.name)[1].lower() in NO_MEDIA_SUFFIXES:
        return ""
    stored = isinstance(entry, stores.Entry)
    kind = stored_kind(entry.path) if stored else media_kind(entry.path)
    return kind if kind in ("image", "video") else ""


@cache
def _pseudo_devices() -> frozenset[int]:
    """The file systems that the kernel makes up: they have no pictures and no end."""
    return frozenset(os.stat(path).st_dev for path in ("/proc", "/sys") if os.path.ismount(path))
