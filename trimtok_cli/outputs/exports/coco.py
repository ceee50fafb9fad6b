"""COCO's results: a JSON array of {"image_id": int, "caption": str}, one entry for each picture.

COCO's own loader asserts that all ids are those of annotations, so an id is never made up.
"""

import json
import re
from pathlib import Path

from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.exports.form import (
    LeftOut,
    Made,
    OneEach,
    Wanted,
    answered,
    whole_number,
    write_rows,
)

# COCO_val2014_000000391895.jpg, 000000391895.jpg, 391895.jpg
_NUMBERED = re.compile(r"(?:.*[_/])?(\d{1,18})\.\w+", re.DOTALL)


def write_coco(answers: Answers, target: Path, wanted: Wanted) -> Made:
    """Raises UsageError if no picture has an id, or one has two different answers."""
    captions = answers.manifest.get("command") == "caption"
    each = OneEach("coco", "COCO's results")

    def row(record: Record) -> str:
        caption = answered(record)
        number = _image_id(record, captions)
        each.check(number, caption, f"image {number}")
        return json.dumps({"image_id": number, "caption": caption}, ensure_ascii=False)

    return write_rows(answers, target, row, head="[", between=",\n", tail="]\n")


def _image_id(record: Record, captions: bool) -> int:
    """The column image_id, else the id of a picture that was captioned, else its name's number."""
    asked = [record.get("image_id"), *([record["question_id"]] if captions else [])]
    for value in asked:
        if (number := whole_number(value)) is not None:
            return number
    name = record["image"]
    if isinstance(name, str) and (match := _NUMBERED.fullmatch(name)):
        return int(match[1])
    raise LeftOut("without a number for an image_id")
