"""POPE's own answers: a line {"question", "answer"} for each question, in the questions' order.

Its evaluation pairs lines by their place and takes whatever says neither no nor not for yes, so a
sample that failed keeps its line.
"""

from pathlib import Path

from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.exports.form import Made, Wanted, succeeded, write_rows
from trimtok_cli.outputs.jsonl import to_line


def write_pope(answers: Answers, target: Path, wanted: Wanted) -> Made:
    made = write_rows(answers, target, _row)
    if answers.failed:
        made.notes.append(
            f"{answers.failed} failed, whose answer is empty: POPE counts that as yes"
        )
    return made


def _row(record: Record) -> str:
    answer = " ".join(str(record["text"]).split()) if succeeded(record) else ""
    return to_line({"question": record["prompt"], "answer": answer}) + "\n"
