"""VQAv2's results: a JSON array of {"question_id": int, "answer": str}, one for each question.

The server wants all questions of a split, so a sample that failed has an empty answer. Answers are
written as VQA's evaluation compares them: it spells both sides alike only where people disagreed.
"""

import json
from pathlib import Path

from trimtok_cli.evaluation.metrics.vqa import normalised
from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.exports.form import (
    LeftOut,
    Made,
    Wanted,
    succeeded,
    whole_number,
    write_rows,
)


def write_vqav2(answers: Answers, target: Path, wanted: Wanted) -> Made:
    made = write_rows(answers, target, _row, head="[", between=",\n", tail="]\n")
    if answers.failed:
        made.notes.append(f"{answers.failed} failed, whose answer is empty")
    return made


def _row(record: Record) -> str:
    number = whole_number(record["question_id"])
    if number is None:
        raise LeftOut("without a number for a question_id")
    answer = normalised(str(record["text"])) if succeeded(record) else ""
    return json.dumps({"question_id": number, "answer": answer}, ensure_ascii=False)
