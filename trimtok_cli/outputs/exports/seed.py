"""SEED-Bench's results: a line {"question_id", "prediction"} for each question."""

from pathlib import Path

from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.exports.form import Made, Wanted, succeeded, write_rows
from trimtok_cli.outputs.jsonl import to_line


def write_seed(answers: Answers, target: Path, wanted: Wanted) -> Made:
    made = write_rows(answers, target, _row)
    if answers.failed:
        made.notes.append(f"{answers.failed} failed, whose prediction is empty")
    return made


def _row(record: Record) -> str:
    answer = str(record["text"]).strip() if succeeded(record) else ""
    return to_line({"question_id": record["question_id"], "prediction": answer}) + "\n"
