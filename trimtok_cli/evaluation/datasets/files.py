"""The files of a data set: found in its folder, read as rows, refused in one sentence.

Knows no data set. Opens no picture.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.readers.questions import read_questions
from trimtok_cli.readers.reading import Reading
from trimtok_cli.wording import shortened


def found(folder: Path, patterns: Sequence[str]) -> Path | None:
    """The first file in the folder that one of the patterns names; None where there is none."""
    for pattern in patterns:
        match = next((path for path in sorted(folder.glob(pattern)) if path.is_file()), None)
        if match:
            return match
    return None


def required(folder: Path, patterns: Sequence[str], what: str) -> Path:
    """The file of a data set; the folder itself may be that file. UsageError names what is missing.

    what: what the file holds, in a word or two.
    """
    if folder.is_file():
        return folder
    if match := found(folder, patterns):
        return match
    if not folder.is_dir():
        raise UsageError(f"--data: there is no folder {shortened(str(folder))}.")
    raise UsageError(
        f"--data: {shortened(str(folder))} holds no {what}; looked for {' or '.join(patterns)}."
    )


def image_root(folder: Path, images: Path | None, *usual: str) -> Path:
    """The folder of the pictures: the one that was named, else the first usual one that exists."""
    base = folder.parent if folder.is_file() else folder
    return images or next((base / name for name in usual if (base / name).is_dir()), base)


def read_rows(
    path: Path, root: Path, *, command: str = "vqa", text_only: bool = False
) -> Iterator[Sample]:
    """The samples of a file of rows, as that command reads it. UsageError for a broken row.

    text_only: rows without a picture are in place.
    """
    reading = Reading(
        image_root=root, allow_text_only=text_only, allow_outside=True, allow_urls=True
    )
    source = read_questions(str(path), reading, command=command)
    for sample in source.samples:
        if sample.problem:
            raise UsageError(f"--data: {sample.problem}.")
        yield sample


def read_text(path: Path) -> str:
    """The whole file as text. UsageError if it cannot be read."""
    name = shortened(str(path))
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not UTF-8 text; save the file as UTF-8.") from None
    except OSError as error:
        raise UsageError(f"{name} cannot be read ({error.strerror or error}).") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds, at once; a file of JSON lines gives a list. UsageError if broken."""
    name, text = shortened(str(path)), read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as whole:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) < 2 or not _is_object(lines[0][1]):
            reason = getattr(whole, "msg", whole)
            raise UsageError(f"{name} is no JSON ({reason}).") from None
    rows = []
    for number, line in lines:
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)
            raise UsageError(f"{name} line {number} is no JSON ({reason}).") from None
    return rows


def records(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(id, record) of each entry of a JSON file: a list, JSON lines, or an object by ids.

    The id of an entry of a list is its `id`, else "". UsageError where an entry lacks one of the
    `needed` names.
    """
    content = read_json(path)
    if isinstance(content, dict):
        entries = [(str(key), value) for key, value in content.items()]
    elif isinstance(content, list):
        entries = [(_own_id(value), value) for value in content]
    else:
        entries = [("", content)]
    for number, (key, value) in enumerate(entries, start=1):
        lacking = [name for name in needed if not isinstance(value, dict) or name not in value]
        if lacking:
            raise UsageError(
                f"--data: entry {number} of {shortened(str(path))} has no {lacking[0]!r}; is it a "
                "file of another data set?"
            )
        yield key, value


def _own_id(value: Any) -> str:
    return str(value.get("id", "")) if isinstance(value, dict) else ""


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
