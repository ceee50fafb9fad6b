"""kohya's metadata (`in_json` of its finetuning): {path: {"caption": str}} in one JSON object.

Paths are absolute, so that pictures of several folders have entries of their own. Trainers assert
that no caption is empty.
"""

import json
from pathlib import Path

from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.exports.form import LeftOut, Made, OneEach, Wanted, write_rows
from trimtok_cli.outputs.exports.pictures import is_video, picture_file


def write_kohya(answers: Answers, target: Path, wanted: Wanted) -> Made:
    """Raises UsageError if the pictures have no folder, or one has two different answers."""
    each = OneEach("kohya", "kohya's metadata")

    def row(record: Record) -> str:
        text = wanted.caption(record)
        if is_video(record):
            raise LeftOut("that are videos")
        path = str(picture_file(record, answers, "kohya"))
        each.check(path, text, path)
        return f"{json.dumps(path)}: {json.dumps({'caption': text}, ensure_ascii=False)}"

    return write_rows(answers, target, row, head="{", between=",\n", tail="}\n")
