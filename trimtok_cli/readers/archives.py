"""A tar of pictures, as WebDataset and img2dataset write them: one row for all members of a key.

The key is a member's path up to the first dot of its name; members of one key follow each other.
Pictures and videos stay in the tar: a row says where. The columns of a `.json` member, and the text
of a `.txt` or `.caption` member as `caption`, ride along. No member is taken out to the disk.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimtok_cli.blobs import Blob, Stored, Within
from trimtok_cli.errors import UsageError
from trimtok_cli.readers.columns import Problem
from trimtok_cli.readers.folders import known_kind
from trimtok_cli.readers.table import Table

# Bytes of a member that is text.
_MOST_TEXT = 1 << 24

_TEXTS = (".txt", ".caption")


def archive_table(path: str, name: str, origin: Stored | None = None) -> Table:
    """The rows of the tar. UsageError where it is none, or is cut short.

    origin: the object that `path` is a copy of; the pictures are read from there.
    """

    def rows() -> Iterator[tuple[str, Any]]:
        return _rows(path, name, origin or Path(path))

    return Table("a tar of pictures", rows, sum(1 for _ in rows()), packed=True)


def _rows(path: str, name: str, place: Path | Stored) -> Iterator[tuple[str, Any]]:
    """(key, row) for each key; keys without a picture are passed over."""
    size = os.path.getsize(path)
    row: dict[str, Any] = {}
    problem = ""
    last = ""
    with open(path, "rb") as content:
        for member in _members(path, name):
            key, ending = _parts(member.name)
            if key != last:
                yield from _whole(last, row, problem)
                row, problem, last = {}, "", key
            if member.offset_data + member.size > size:
                raise UsageError(f"{name} is cut short within {member.name}; fetch it again")
            if kind := known_kind(member.name):
                medium = Within(member.name, place, member.offset_data, member.size)
                row.setdefault(kind, []).append(medium)
            elif ending in (".json", *_TEXTS):
                problem = problem or _add_text(row, member, ending, content)
    yield from _whole(last, row, problem)


def _members(path: str, name: str) -> Iterator[tarfile.TarInfo]:
    """The regular files of the tar; none is kept in memory."""
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()
                if member.isreg() and not member.issparse():
                    yield member
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise UsageError(f"{name} is no tar, or a damaged one ({error}); fetch it again") from None


def _parts(member: str) -> tuple[str, str]:
    """(key, ending in lower case) of a member."""
    folder, slash, file = member.removeprefix("./").rpartition("/")
    stem = file.split(".", 1)[0]
    return f"{folder}{slash}{stem}", os.path.splitext(file)[1].lower()


def _add_text(row: dict[str, Any], member: tarfile.TarInfo, ending: str, content: Any) -> str:
    """Adds the columns of a text member to the row; returns what is wrong with the member."""
    if member.size > _MOST_TEXT:
        return f"{member.name} is too long for a text"
    content.seek(member.offset_data)
    try:
        text = content.read(member.size).decode("utf-8-sig")
        if ending in _TEXTS:
            row.setdefault("caption", text.strip())
            return ""
        columns = json.loads(text)
    except UnicodeDecodeError:
        return f"{member.name} is not UTF-8 text"
    except (ValueError, RecursionError):
        return f"{member.name} is not valid JSON"
    if not isinstance(columns, dict):
        return f"{member.name} is not a JSON object"
    for column, value in columns.items():
        if not any(isinstance(part, Blob) for part in row.get(column) or ()):
            row[column] = value
    return ""


def _whole(key: str, row: dict[str, Any], problem: str) -> Iterator[tuple[str, Any]]:
    media = {
        column: row[column]
        for column in ("image", "video")
        if isinstance(row.get(column), list) and isinstance(row[column][0], Blob)
    }
    if media:
        # A column of the JSON names the file that the picture once was.
        others = {column: row[column] for column in row if column not in ("image", "video")}
        usual = {"id": key} if row.get("question_id") is None and row.get("id") is None else {}
        yield key, Problem(problem) if problem else {**others, **media, **usual}
