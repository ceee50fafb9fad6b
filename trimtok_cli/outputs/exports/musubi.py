"""musubi-tuner's JSON lines: {"image_path", "caption"}, or {"video_path", "caption"} for videos.

Paths are absolute. A data set there is of pictures or of videos, so the first answer decides.
"""

from pathlib import Path

from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.exports.form import LeftOut, Made, OneEach, Wanted, write_rows
from trimtok_cli.outputs.exports.pictures import is_video, picture_file
from trimtok_cli.outputs.jsonl import to_line


def write_musubi(answers: Answers, target: Path, wanted: Wanted) -> Made:
    """Raises UsageError if the pictures have no folder, or one has two different answers."""
    each = OneEach("musubi", "musubi's file")
    column = ""

    def row(record: Record) -> str:
        nonlocal column
        text = wanted.caption(record)
        path = str(picture_file(record, answers, "musubi"))
        own = "video_path" if is_video(record) else "image_path"
        column = column or own
        if own != column:
            raise LeftOut("of the other kind, as pictures and videos are data sets of their own")
        each.check(path, text, path)
        return to_line({column: path, "caption": text}) + "\n"

    return write_rows(answers, target, row)
