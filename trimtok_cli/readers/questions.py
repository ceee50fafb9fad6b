"""LLaVA question rows -> samples: JSONL, or one JSON array, of {"question_id", "image", "text", ...}.

Knows no image: names are joined to a folder and not looked at. A broken row becomes a sample that carries its problem, so
that the rows after it are still answered.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.readers.source import Source

_REFERENCES = ("answers", "answer", "gt_answer", "label")  # the first that holds anything is used; all ride along in extra


def read_questions(path: str, *, image_root: Path | None = None, limit: int | None = None) -> Source:
    """Rows of the file `path`, or of stdin for "-". Image names are relative to `image_root`, else to the file's folder."""
    if path == "-":
        return Source(_samples(sys.stdin, "stdin", image_root or Path()), None, (0,)).first(limit)
    file, root = Path(path), image_root or Path(path).parent
    try:
        with file.open(encoding="utf-8-sig", newline="\n") as lines:  # "\n" alone ends a row: U+2028 may stand inside one
            filled = filter(_content, lines)
            first = next(filled, "")
            if _content(first).startswith("["):
                samples = list(_samples(chain([first], filled), path, root))
                total = len(samples)
            else:
                samples, total = _stream(file, root), bool(first) + sum(1 for _ in filled)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text; save it as UTF-8, one JSON object a line") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); check the question file's name") from error
    if not total:
        raise UsageError(f"{path} holds no questions; write one JSON object a line")
    return Source(samples, total, (file,)).first(limit)


def _stream(file: Path, root: Path) -> Iterator[Sample]:
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        yield from _samples(lines, str(file), root)


def _samples(lines: Iterable[str], name: str, root: Path) -> Iterator[Sample]:
    """One sample a row; `number` counts rows from 0 and is the id of a row that has none, the line counts from 1."""
    lines = iter(lines)
    number = 0
    for line_number, line in enumerate(lines, start=1):
        text = _content(line)
        if not number and text.startswith("["):
            yield from _array(text + "".join(lines), name, root)
            return
        if text:
            yield _parsed(text, number, f"{name} line {line_number}", root)
            number += 1


def _content(line: str) -> str:
    """The line without the blanks around it and the byte order mark that a file, or a file joined to another, begins with."""
    return line.strip().removeprefix("\ufeff").strip()


def _array(text: str, name: str, root: Path) -> Iterator[Sample]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} starts like a JSON array but is not one ({error}); repair it or write JSONL") from error
    for number, row in enumerate(rows):
        yield _sample(row, number, f"{name} row {number + 1}", root)


def _parsed(text: str, number: int, where: str, root: Path) -> Sample:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Sample(id=number, problem=f"{where} is not valid JSON ({getattr(error, 'msg', error)})")
    return _sample(row, number, where, root)


def _sample(row: Any, number: int, where: str, root: Path) -> Sample:
    if not isinstance(row, dict):
        return Sample(id=number, problem=f'{where} is not a JSON object; write {{"question_id": ..., "image": ..., "text": ...}}')
    key = row.get("question_id")
    named = isinstance(key, str | int) and not isinstance(key, bool)
    sample_id = key if named else number
    text_column = next((name for name in ("text", "question") if row.get(name) not in (None, "")), "")
    video_column = "video" if row.get("video") else "video_name"
    text, image, video = row.get(text_column), row.get("image"), row.get(video_column)
    used = {"question_id", "image", "video", text_column, video_column}
    names = image if isinstance(image, list) else [image] if image not in (None, "") else []
    if not named and key is not None:
        problem = "question_id is neither a number nor a string"
    elif not all(isinstance(name, str) and name for name in names):
        problem = "image is neither a file name nor a list of file names"
    elif not isinstance(video, str | None):
        problem = "video is not a file name"
    elif not text_column or (isinstance(text, str) and not text.strip()):
        problem = 'there is no question; put it under "text"'
    elif not isinstance(text, str):
        problem = f"{text_column} is not a string"
    else:
        return Sample(
            id=sample_id,
            images=tuple(root / name for name in names),
            names=(*names, *([video] if video else [])),
            video=root / video if video else None,
            question=text,
            answers=_answers(row),
            extra={name: value for name, value in row.items() if name not in used},
        )
    return Sample(id=sample_id, problem=f"{where}: {problem}")


def _answers(row: dict[str, Any]) -> tuple[str, ...]:
    """References as strings; entries may be VQAv2's {"answer": ...}. What holds none is left to `extra`."""
    for column in _REFERENCES:
        value = row.get(column)
        entries = value if isinstance(value, list) else [value]
        plain = [entry.get("answer") if isinstance(entry, dict) else entry for entry in entries]
        answers = tuple(str(entry) for entry in plain if isinstance(entry, str | int | float) and entry != "")
        if answers:
            return answers
    return ()
