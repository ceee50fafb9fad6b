"""GQA's results: a JSON array of {"questionId": str, "prediction": str}, one for each question.

Its evaluation compares texts as they are, in lower case and without a full stop.
"""

import json
from pathlib import Path

from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.exports.form import Made, Wanted, succeeded, write_rows


def write_gqa(answers: Answers, target: Path, wanted: Wanted) -> Made:
    made = write_rows(answers, target, _row, head="[", between=",\n", tail="]\n")
    if answers.failed:
        made.notes.append(f"{answers.failed} failed, whose prediction is empty")
    return made


def _row(record: Record) -> str:
    answer = " ".join(str(record["text"]).split()) if succeeded(record) else ""
    row = {
        "questionId": str(record["question_id"]),
        "prediction": answer.rstrip(".").lower(),
    }
    return json.dumps(row, ensure_ascii=False)
