"""CSV and TSV files: a header, then one row a line. UTF-8, with or without a byte order mark.

The mark between cells is the one that divides the header into the most known columns. Empty
cells are missing, and whole numbers are ids as numbers. Knows no column but to tell a mark, and
those of MMBench's tables.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from string import ascii_uppercase
from typing import Any

from trimtok_cli.errors import UsageError
from trimtok_cli.readers.columns import Problem
from trimtok_cli.readers.foreign_formats import TABLE_COLUMNS, plain_name
from trimtok_cli.readers.media_names import held
from trimtok_cli.readers.table import Table
from trimtok_cli.readers.text import LONGEST
from trimtok_cli.wording import shortened

_NOT_UTF8 = re.compile("[\udc80-\udcff]")

_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")

# The first characters of a picture in base64: PNG, JPEG, GIF, WebP.
_BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")


def delimited_table(path: str, name: str, marks: str = "\t,;") -> Table:
    """The rows of the file. UsageError where it is no table.

    marks: the characters that may stand between cells.
    """
    csv.field_size_limit(LONGEST)
    with (
        _errors(name),
        open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
    ):
        head = file.readline(LONGEST)
    header, mark = _header(head, marks, name)
    what = "a TSV table" if mark == "\t" else "a CSV table"
    indexed = {"index", "question"} <= {*header} and not {"id", "question_id"} & {*header}
    if indexed:
        what += " as MMBench's"

    def rows() -> Iterator[tuple[str, Any]]:
        for place, row in _rows(path, name, header, mark):
            yield place, _usual(row) if indexed and isinstance(row, dict) else row

    return Table(what, rows, sum(1 for _ in rows()))


def _header(line: str, marks: str, name: str) -> tuple[list[str], str]:
    """(columns, the mark between them)."""
    best: list[str] = []
    found, most = marks[0], -1
    for mark in marks:
        with _errors(name):
            cells = next(csv.reader([line], delimiter=mark), [])
        known = sum(plain_name(cell) in TABLE_COLUMNS for cell in cells)
        if (known, len(cells)) > (most, len(best)):
            best, found, most = cells, mark, known
    columns = [cell.strip() or f"column {number}" for number, cell in enumerate(best, start=1)]
    if twice := next((column for column in columns if columns.count(column) > 1), ""):
        raise UsageError(f"{name} names the column {shortened(twice, 40)!r} twice; rename one")
    if not line.strip():
        raise UsageError(f"{name} is empty; its first line names the columns")
    return columns, found


def _rows(path: str, name: str, header: Sequence[str], mark: str) -> Iterator[tuple[str, Any]]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=mark, strict=True)
        with _errors(name):
            next(reader, None)
        while True:
            place = f"line {reader.line_num + 1}"
            with _errors(f"{name} {place}"):
                cells = next(reader, None)
            if cells is None:
                return
            if cells:
                yield place, _row(header, cells)


def _row(header: Sequence[str], cells: Sequence[str]) -> Any:
    if any(map(_NOT_UTF8.search, cells)):
        return Problem("it is not UTF-8 text; save the file as UTF-8")
    if len(cells) != len(header):
        return Problem(f"it has {len(cells)} cells, and the header has {len(header)}")
    try:
        return {column: _value(column, cell) for column, cell in zip(header, cells, strict=True)}
    except Problem as problem:
        return problem


def _usual(row: dict[str, Any]) -> Any:
    """A row as MMBench and VLMEvalKit write it, asked as LLaVA asks it: hint, question, choices."""
    if isinstance(row.get("image"), str) and _WHOLE.fullmatch(row["image"]):
        return Problem(f"its picture is that of the row {row['image']}; put it into this row too")
    asked = [row[column] for column in ("hint", "question") if _given(row.get(column))]
    choices = []
    for letter in ascii_uppercase:
        if not _given(row.get(letter)):
            break
        choices.append(f"{letter}. {row[letter]}")
    if choices:
        choices.append("Answer with the option's letter from the given choices directly.")
    others = {column: value for column, value in row.items() if column != "index"}
    question = "\n".join(map(str, (*asked, *choices)))
    return {"question_id": row["index"], **others, "question": question}


def _given(cell: Any) -> bool:
    """Whether a cell holds anything; pandas writes a missing one as nan."""
    return cell is not None and str(cell).strip().lower() not in ("", "nan", "none")


def _value(column: str, cell: str) -> Any:
    if not cell:
        return None
    if plain_name(column) in ("questionid", "id", "imageid", "index") and _WHOLE.fullmatch(cell):
        return int(cell)
    if cell.startswith('["'):
        try:
            return json.loads(cell)
        except ValueError:
            return cell
    if len(cell) > 256 and cell.startswith(_BASE64):
        return held(f"data:;base64,{cell}")
    return cell


@contextmanager
def _errors(place: str) -> Iterator[None]:
    try:
        yield
    except csv.Error as error:
        raise UsageError(f"{place} is no row of a table ({error}); repair its quotes") from None
