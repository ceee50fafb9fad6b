"""MM-Vet's results: one JSON object {"v1_0": str}, an entry for each question.

Its grader looks up every question, so a sample that failed has an empty text.
"""

import json
from pathlib import Path

from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.exports.form import Made, OneEach, Wanted, succeeded, write_rows


def write_mmvet(answers: Answers, target: Path, wanted: Wanted) -> Made:
    """Raises UsageError if one question has two different answers."""
    each = OneEach("mmvet", "MM-Vet's file")

    def row(record: Record) -> str:
        text = str(record["text"]).strip() if succeeded(record) else ""
        name = f"v1_{str(record['question_id']).removeprefix('v1_')}"
        each.check(name, text, name)
        return f"{json.dumps(name)}: {json.dumps(text, ensure_ascii=False)}"

    made = write_rows(answers, target, row, head="{", between=",\n", tail="}\n")
    if answers.failed:
        made.notes.append(f"{answers.failed} failed, whose text is empty")
    return made
