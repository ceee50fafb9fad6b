"""JSON lines of the records themselves, one for each sample, wherever the user wants them."""

from pathlib import Path

from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.exports.form import Made, Wanted, write_rows
from trimtok_cli.outputs.jsonl import to_line


def write_records(answers: Answers, target: Path, wanted: Wanted) -> Made:
    return write_rows(answers, target, _row)


def _row(record: Record) -> str:
    return to_line(dict(record)) + "\n"
