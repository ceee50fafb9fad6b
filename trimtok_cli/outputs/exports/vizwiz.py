"""VizWiz's results: a JSON array of {"image": str, "answer": str}, one for each picture.

The server wants all pictures of a split, so a sample that failed has an empty answer. Answers are
written as VQA's evaluation compares them.
"""

import json
from pathlib import Path

from trimtok_cli.evaluation.metrics.vqa import normalised
from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.exports.form import Made, OneEach, Wanted, succeeded, write_rows
from trimtok_cli.outputs.exports.pictures import own_name


def write_vizwiz(answers: Answers, target: Path, wanted: Wanted) -> Made:
    """Raises UsageError if one picture has two different answers."""
    each = OneEach("vizwiz", "VizWiz's results")

    def row(record: Record) -> str:
        answer = normalised(str(record["text"])) if succeeded(record) else ""
        name = Path(own_name(record)).name
        each.check(name, answer, name)
        return json.dumps({"image": name, "answer": answer}, ensure_ascii=False)

    made = write_rows(answers, target, row, head="[", between=",\n", tail="]\n")
    if answers.failed:
        made.notes.append(f"{answers.failed} failed, whose answer is empty")
    return made
