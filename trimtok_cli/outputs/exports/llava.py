"""LLaVA's answers: the keys that its own `model_vqa.py` writes, a line for every input.

Its POPE scorer pairs answers and questions line by line, so a sample that failed keeps its line,
with an empty text.
"""

from pathlib import Path

from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.exports.form import Made, Wanted, write_rows
from trimtok_cli.outputs.jsonl import to_line

_KEYS = ("question_id", "prompt", "text", "answer_id", "model_id")


def write_llava(answers: Answers, target: Path, wanted: Wanted) -> Made:
    made = write_rows(answers, target, _row)
    if answers.failed:
        made.notes.append(
            f"{answers.failed} failed, whose text is empty: LLaVA's POPE scorer counts that as yes"
        )
    return made


def _row(record: Record) -> str:
    row = {key: record[key] for key in _KEYS}
    return to_line({**row, "metadata": {"status": record["metadata"]["status"]}}) + "\n"
