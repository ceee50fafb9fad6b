"""One row of a question file -> a Sample: which column is the id, the question, the picture; and
where the picture lies.

A row never ends a run and is never answered without a picture that it names: what is not understood
is a Sample that carries its problem. Opens no picture.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trimtok_cli.data import Sample
from trimtok_cli.media.images import IMAGE_SUFFIXES
from trimtok_cli.media.video import VIDEO_SUFFIXES
from trimtok_cli.readers.folders import likely_kind
from trimtok_cli.readers.shapes import WANTED, foreign, media_like, plain
from trimtok_cli.wording import shortened, shown_name

_REFERENCES = (
    "answers",
    "answer",
    "gt_answer",
    "label",
)  # the first that holds anything is used; all ride along in extra

_LOOKS = (
    IMAGE_SUFFIXES
    | VIDEO_SUFFIXES
    | {".svg", ".tga", ".psd", ".jxl", ".pcx", ".m2ts", ".mts", ".npy"}
)

_DEEPEST = 100  # levels of lists within lists that a row may have

# Columns by their plain names (no case, no punctuation). A file of the second kind may also be of
# something else.
_PICTURES = frozenset(
    f"{what}{which}{plural}"
    for what in ("image", "img", "picture", "photo", "pic")
    for which in ("", "path", "file", "name")
    for plural in ("", "s")
) | {"imagefilename", "imagefilepath", "imgfilename"}

_FILES = frozenset(
    ("filename", "filenames", "filepath", "filepaths", "file", "files", "path", "paths")
)

_ADDRESSES = frozenset(
    ("imageurl", "imageurls", "imgurl", "imguri", "imageuri", "pictureurl", "photourl")
)

_ONLY_IDS = frozenset(
    ("imageid", "imgid", "imagebytes", "imagebase64", "imageb64", "imagedata", "videoid")
)

_MAYBE = frozenset(("url", "imageid", "imgid", "uri", "src", "media"))

_VIDEOS = frozenset(
    f"{what}{which}"
    for what in ("video", "clip")
    for which in ("", "s", "path", "file", "name", "filename", "url")
)

_LIKE_QUESTIONS = frozenset(
    ("prompt", "query", "instruction", "questions", "input", "ask", "q", "caption", "sentence")
)

_NUMBERED = re.compile(r"(image|img|picture|photo|pic|video|clip)s?\d+")  # image2, video_2

_FURTHER = re.compile(  # image_b, image_right, second_image
    r"(image|img|picture|photo|pic|video|clip)s?([a-z]|left|right|before|after|first|second|third)"
    r"|(left|right|before|after|first|second|third|other|reference|ref)(image|img|picture|photo|pic|video|clip)s?"
)

_HINTS = re.compile(r"image|img|pic|photo|video|clip|file|path|url|media|pixel")

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class _Problem(Exception):
    """Why a row cannot be answered."""


@dataclass(frozen=True)
class Rules:
    """How rows become samples. `root` is the folder that their pictures' names start from and may
    not leave, but for `outside`.

    text_only: a row without a picture and without a video is asked as it is.
    """

    root: Path
    text_only: bool = False
    outside: bool = False

    @cached_property
    def allowed(self) -> tuple[str, ...]:
        """The folders that pictures may lie in, as links lead to them."""
        real = os.path.realpath(self.root)
        snapshot = re.match(
            r"(.+)/snapshots/[^/]+(/|$)", real
        )  # the hub's cache: links to the blobs beside it
        return (real, snapshot[1] + "/blobs") if snapshot else (real,)

    @cached_property
    def _folders(self) -> dict[str, str]:
        return {}

    def sample(self, row: Any, name: str, place: str, otherwise: str | int) -> Sample:
        """The sample of the row at `place` (line 4) of file `name`. A row without an id gets
        `otherwise`, if broken `place`.
        """
        if not isinstance(row, dict):
            return broken(name, place, f" is not a JSON object; {WANTED}")
        columns, found = _Columns(row), {"id": place, "question": ""}
        try:
            columns.check_shape()
            own = columns.identity()
            found["id"] = place if own is None else own
            text = columns.question_column()
            names, video = columns.pictures(), columns.video()
            if not names and not video:
                names, video = columns.files(self.root, text)
            found["names"] = tuple(
                shown_name(each) for each in (*names, *([video] if video else []))
            )
            found["question"] = columns.question(text)
            if not names and not video:
                columns.without_picture(text, self.text_only)
            found |= {
                "images": tuple(map(self._located, names)),
                "video": self._located(video) if video else None,
            }
        except _Problem as problem:
            return Sample(
                **found | {"images": (), "video": None}, problem=f"{name} {place}: {problem}"
            )
        found["id"] = otherwise if own is None else own
        used = {
            "question_id",
            "image",
            "video",
            text,
            "video_name" if "video" not in columns.full else "",
        }
        return Sample(
            **found,
            answers=references(row),
            extra={column: row[column] for column in row if column not in used},
        )

    def _located(self, name: str) -> Path:
        """Where the picture lies. A name that no file of this folder can have is a problem."""
        shown = shown_name(name)
        if name[:5].lower() == "data:":
            raise _Problem(
                "the row holds the picture itself (a data: URI), which is not read; save it "
                "as a file and name that"
            )
        if _ADDRESS.match(name):
            raise _Problem(
                f"{shown} is an address, and nothing is fetched; download it and name the file"
            )
        path = self.root / name
        try:
            os.fsencode(name)
            real = self._real(path)
        except ValueError:
            raise _Problem(f"{shown!r} is no name that a file can have") from None
        if "\0" in name:
            raise _Problem("a file's name holds a NUL character, which none can have")
        if self.outside or any(
            real == folder or real.startswith(folder.rstrip(os.sep) + os.sep)
            for folder in self.allowed
        ):
            return path
        raise _Problem(
            f"{shown} lies outside of {self.root}; name its folder with --image-root, or add "
            "--allow-outside"
        )

    def _real(self, path: Path) -> str:
        """Where a path leads. A folder's own way is looked up once, as most rows name files of the
        same one.
        """
        folder, name = os.path.split(path)
        if len(self._folders) > 10_000:
            self._folders.clear()
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        real = os.path.join(self._folders[folder], name)
        return os.path.realpath(real) if name in ("", ".", "..") or os.path.islink(real) else real


def broken(name: str, place: str, problem: str) -> Sample:
    """A row that cannot be read at all. Its id is its place, which is no other row's number."""
    return Sample(id=place, question="", problem=f"{name} {place}{problem}")


class _Columns:
    """The columns of one row, by their exact and by their plain names."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.row = row
        self.full = {
            name: value
            for name, value in row.items()
            if not (value is None or value == "" or value == [])
        }
        self.plain = {plain(name): name for name in reversed(self.full)}

    def check_shape(self) -> None:
        has_question = any(name in self.plain for name in ("text", "question"))
        if what := foreign({plain(name) for name in self.row}, has_question):
            raise _Problem(f"this looks like {what}; {WANTED}")
        captioned = (
            "file_name" in self.full and "text" in self.plain and "question" not in self.plain
        )
        if captioned and "questionid" not in self.plain:
            raise _Problem(
                '"text" beside "file_name" is a caption, as in an image folder\'s '
                'metadata.jsonl; put a question under "question"'
            )
        if _too_deep(self.row):
            raise _Problem(f"lists lie in lists more than {_DEEPEST} levels deep")

    def identity(self) -> str | int | float | None:
        """question_id, else id, else None."""
        column = (
            "question_id"
            if self.row.get("question_id") is not None
            else self.plain.get("questionid")
        )
        own = self.row[column] if column else self.full.get(self.plain.get("id", ""))
        if (isinstance(own, str | int) and not isinstance(own, bool)) or (
            isinstance(own, float) and math.isfinite(own)
        ):
            return own
        if column:
            raise _Problem(f"{column} is neither a number nor a string")
        return None

    def question_column(self) -> str:
        order = (
            ("question", "text")
            if "file_name" in self.full and "question_id" not in self.full
            else ("text", "question")
        )
        return next((name for name in order if name in self.full), "") or next(
            (self.plain[name] for name in order if name in self.plain), ""
        )

    def question(self, column: str) -> str:
        text = self.row.get(column)
        if isinstance(text, str) and (other := self._other_question(column, text)):
            raise _Problem(
                f'"{column}" and "{other}" may each be the question; keep the one that is meant'
            )
        if not column or (isinstance(text, str) and not text.strip()):
            near = next((name for name in self.full if plain(name) in _LIKE_QUESTIONS), "")
            raise _Problem(
                'there is no question; put it under "text"'
                + f' ("{near}" is not read as one)' * bool(near)
            )
        if not isinstance(text, str):
            raise _Problem(f"{column} is not a string")
        if not _is_unicode(text):
            raise _Problem(
                f"{column} holds half a character (a lone surrogate), which no model can "
                "read; write it whole"
            )
        return text

    def _other_question(self, column: str, text: str) -> str:
        """A column that asks something else; beside file_name, text is a caption."""
        captioned = "file_name" in self.full and "question_id" not in self.full
        names = [self.plain.get(name, "") for name in ("question", *(("text",) * (not captioned)))]
        said = {
            name: self.full[name].strip()
            for name in names
            if name and isinstance(self.full[name], str)
        }
        return next(
            (
                name
                for name, other in said.items()
                if name != column and other and other != text.strip()
            ),
            "",
        )

    def pictures(self) -> Sequence[str]:
        """The names under the column that is surely of pictures; empty where there is none."""
        column = (
            "image"
            if "image" in self.full
            else self._only([name for key, name in self.plain.items() if key in _PICTURES])
        )
        if not column:
            return ()
        names = _as_list(self.full[column])
        if not all(isinstance(name, str) and name for name in names):
            raise _Problem(f"{column} is neither a file name nor a list of file names")
        for key, name in self.plain.items():
            if name != column and self._is_further(key, self.full[name], names):
                raise _Problem(
                    f'"{name}" seems to name one more picture; put all of them under '
                    '"image", as a list'
                )
        return names

    def _is_further(self, key: str, value: Any, names: Sequence[str]) -> bool:
        """Whether a column names a picture beside those in `names`, in whatever form; the same file
        in another folder is none.
        """
        if _NUMBERED.fullmatch(key) and isinstance(value, str):
            return True
        named = key in _PICTURES or _NUMBERED.fullmatch(key) or _FURTHER.fullmatch(key)
        known = {os.path.basename(each) for each in names}
        return bool(named) and any(
            media_like(text, _LOOKS) and "://" not in text and os.path.basename(text) not in known
            for text in _texts(value)
        )

    def video(self) -> str | None:
        column = next((name for name in ("video", "video_name") if name in self.full), None)
        column = column or self._only([name for key, name in self.plain.items() if key in _VIDEOS])
        if column is None:
            return None
        names = _as_list(self.full[column])
        if len(names) != 1 or not isinstance(names[0], str) or not names[0]:
            raise _Problem(f"{column} is not a file name")
        return names[0]

    def files(self, root: Path, text: str) -> tuple[Sequence[str], str | None]:
        """The pictures, or the video, under a column such as file_name or path, or under one that
        holds an address.
        """
        others = [(key, name) for key, name in self.plain.items() if name != text]
        surely = [name for key, name in others if key in ("filename", "filenames")]
        likely = [
            name for key, name in others if key in _FILES and media_like(self.full[name], _LOOKS)
        ]
        linked = [
            name
            for key, name in others
            if key in _ADDRESSES or (key in _MAYBE and media_like(self.full[name], _LOOKS))
        ]
        column = self._only(surely or likely or linked)
        if column is None:
            return (), None
        names = _as_list(self.full[column])
        if not all(isinstance(name, str) and name for name in names):
            raise _Problem(
                f'"{column}" names a picture in a form that is not read; put the file\'s '
                'name under "image"'
            )
        if len(names) == 1 and likely_kind(root / names[0]) == "video":
            return (), names[0]
        return names, None

    def without_picture(self, text: str, allowed: bool) -> None:
        """Fails, but for a row that names nothing that might be one, where that is allowed."""
        others = [
            name for name in self.full if name not in (text, "question_id", "id", *_REFERENCES)
        ]
        looks = [
            name
            for name in others
            if plain(name) in _ONLY_IDS or media_like(self.full[name], _LOOKS)
        ]
        if looks or not allowed:
            near = (looks or [name for name in others if _HINTS.search(plain(name))])[:1]
            named = f'"{shortened(near[0], 40)}" is not read as one; ' if near else ""
            remedy = "" if looks else ", or add --allow-text-only"
            raise _Problem(
                f'there is no picture and no video; {named}put its file name under "image" '
                f'or "video"{remedy}'
            )

    def _only(self, columns: Sequence[str]) -> str | None:
        if len({str(self.full[name]) for name in columns}) > 1:
            raise _Problem(
                f"{' and '.join(columns[:3])} may each name the picture; put the one that is "
                'meant under "image"'
            )
        return columns[0] if columns else None


def references(row: dict[str, Any]) -> tuple[str, ...]:
    """References as strings; entries may be VQAv2's {"answer": ...}. What holds none is left to
    `extra`.
    """
    for column in _REFERENCES:
        value = row.get(column)
        entries = value if isinstance(value, list) else [value]
        bare = [entry.get("answer") if isinstance(entry, dict) else entry for entry in entries]
        answers = tuple(
            str(entry) for entry in bare if isinstance(entry, str | int | float) and entry != ""
        )
        if answers:
            return answers
    return ()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(value: Any, depth: int = 3) -> list[str]:
    """The strings in a value, in lists and objects too."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inner for text in _texts(each, depth - 1)] if depth else []


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _too_deep(row: dict[str, Any]) -> bool:
    """Whether writing the row out would go too deep for Python. Level by level, without
    recursion.
    """
    level: list[Any] = [each for each in row.values() if isinstance(each, (dict, list))]
    for _ in range(_DEEPEST):
        if not level:
            return False
        inner = (
            value for each in level for value in (each.values() if isinstance(each, dict) else each)
        )
        level = [value for value in inner if isinstance(value, (dict, list))]
    return True
