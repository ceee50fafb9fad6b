"""One row of a question file -> a Sample; and where its pictures lie.

A row never ends a run, and is never answered without a picture that it names: a row that is not
understood is a Sample that carries its problem. Opens no picture. Knows no column: columns.py does.
"""

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trimtok_cli.data import Sample
from trimtok_cli.readers.columns import Columns, Problem, references
from trimtok_cli.readers.foreign_formats import WANTED
from trimtok_cli.wording import shown_name

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)

# The hub's cache: a snapshot is a folder of links to the blobs beside it.
_SNAPSHOT = re.compile(r"(.+)/snapshots/[^/]+(/|$)")

# Folders whose real paths are remembered.
_MOST_FOLDERS = 10_000


@dataclass(frozen=True)
class Rules:
    """How rows become samples.

    root: the folder that the names of pictures start from; outside: they may lead out of it;
    text_only: a row without a picture and without a video is asked as it is.
    """

    root: Path
    text_only: bool = False
    outside: bool = False

    @cached_property
    def allowed(self) -> tuple[str, ...]:
        """The real paths of the folders that pictures may lie in."""
        real = os.path.realpath(self.root)
        snapshot = _SNAPSHOT.match(real)
        return (real, snapshot[1] + "/blobs") if snapshot else (real,)

    @cached_property
    def _real_folders(self) -> dict[str, str]:
        """Folder -> its real path, for folders met so far."""
        return {}

    def sample(self, row: Any, name: str, place: str, otherwise: str | int) -> Sample:
        """The sample of the row at `place` (line 4) of the file `name`.

        A row without an id of its own gets `otherwise`, or `place` if it is broken.
        """
        if not isinstance(row, dict):
            return broken(name, place, f" is not a JSON object; {WANTED}")
        columns = Columns(row)
        fields: dict[str, Any] = {"id": place, "question": ""}
        try:
            columns.check_shape()
            own_id = columns.identity()
            if own_id is not None:
                fields["id"] = own_id
            text = columns.question_column()
            pictures, video = columns.pictures(), columns.video()
            if not pictures and not video:
                pictures, video = columns.files(self.root, text)
            media = (*pictures, video) if video else tuple(pictures)
            fields["names"] = tuple(map(shown_name, media))
            fields["question"] = columns.question(text)
            if not media:
                columns.refuse_without_picture(text, self.text_only)
            images = tuple(map(self._located, pictures))
            video_path = self._located(video) if video else None
        except Problem as problem:
            return Sample(**fields, problem=f"{name} {place}: {problem}")
        if own_id is None:
            fields["id"] = otherwise
        used = {"question_id", "image", "video", text}
        if "video" not in columns.full:
            used.add("video_name")
        return Sample(
            **fields,
            images=images,
            video=video_path,
            answers=references(row),
            extra={column: value for column, value in row.items() if column not in used},
        )

    def _located(self, name: str) -> Path:
        """The path of a picture. Problem for a name that no file of the folder can have."""
        shown = shown_name(name)
        if name[:5].lower() == "data:":
            raise Problem(
                "the row holds the picture itself (a data: URI), which is not read; save it "
                "as a file and name that"
            )
        if _ADDRESS.match(name):
            raise Problem(
                f"{shown} is an address, and nothing is fetched; download it and name the file"
            )
        path = self.root / name
        try:
            os.fsencode(name)
            real = self._real_path(path)
        except ValueError:
            raise Problem(f"{shown!r} is no name that a file can have") from None
        if "\0" in name:
            raise Problem("a file's name holds a NUL character, which none can have")
        if self.outside or self._is_inside(real):
            return path
        raise Problem(
            f"{shown} lies outside of {self.root}; name its folder with --image-root, or add "
            "--allow-outside"
        )

    def _is_inside(self, real: str) -> bool:
        return any(
            real == folder or real.startswith(folder.rstrip(os.sep) + os.sep)
            for folder in self.allowed
        )

    def _real_path(self, path: Path) -> str:
        """The path behind all links. Each folder is looked up once, as many rows share it."""
        folder, name = os.path.split(path)
        if len(self._real_folders) > _MOST_FOLDERS:
            self._real_folders.clear()
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        real = os.path.join(self._real_folders[folder], name)
        return os.path.realpath(real) if name in ("", ".", "..") or os.path.islink(real) else real


def broken(name: str, place: str, problem: str) -> Sample:
    """A row that cannot be read at all. Its id is its place, which is no other row's number."""
    return Sample(id=place, question="", problem=f"{name} {place}{problem}")
