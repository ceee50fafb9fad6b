"""A CSV table of the records, failed ones among them: UTF-8, commas, a header, `\\n` line ends."""

import csv
from io import StringIO
from pathlib import Path
from typing import Any

from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.exports.columns import columns
from trimtok_cli.outputs.exports.form import Made, Wanted, write_rows


def write_csv(answers: Answers, target: Path, wanted: Wanted) -> Made:
    table = columns(answers)
    head = _line([column.name for column in table])

    def row(record: Record) -> str:
        return _line([column.value(record) for column in table])

    return write_rows(answers, target, row, head=head)


def _line(cells: list[Any]) -> str:
    """One row; a missing value and an empty text are both an empty cell."""
    text = StringIO()
    # The end of a line says which characters need quotes: both kinds do.
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"
