"""metadata.jsonl, as `datasets` reads it from an imagefolder: in the pictures' folder, a line each.

Names are relative to that folder. All lines have the same columns, and none is null throughout: the
types of a dataset's columns are taken from its lines. Samples that failed have no line.
"""

import json
import os
from pathlib import Path

from trimtok_cli.errors import UsageError
from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.exports.form import LeftOut, Made, OneEach, Wanted, write_rows
from trimtok_cli.outputs.exports.pictures import inner_name, is_video, own_name
from trimtok_cli.outputs.jsonl import to_line

_COLUMNS = ("file_name", "text", "visual_tokens", "visual_tokens_kept")


def write_imagefolder(answers: Answers, target: Path, wanted: Wanted) -> Made:
    """Raises UsageError if the pictures have no folder, or it has such a file of somebody else."""
    root = answers.root
    if root is None:
        raise UsageError(
            "--format imagefolder: the pictures of this run lie in no one folder, in which its "
            "metadata.jsonl would stand; name it with `trimtok export --image-root`."
        )
    path = root / "metadata.jsonl"
    if os.path.lexists(path) and not wanted.replace and not _is_ours(path):
        raise UsageError(
            f"--format imagefolder: {path} is there and not of trimtok; add --overwrite-sidecars "
            "to replace it."
        )
    each = OneEach("imagefolder", "metadata.jsonl")

    def row(record: Record) -> str:
        text = wanted.caption(record)
        if is_video(record):
            raise LeftOut("that are videos")
        name = inner_name(own_name(record), root)
        if not (root / name).is_file():
            raise LeftOut("whose picture is not there any more")
        each.check(name, text, name)
        tokens = record["metadata"]["visual"]
        values = (Path(name).as_posix(), text, tokens["tokens"], tokens["kept"])
        return to_line(dict(zip(_COLUMNS, values, strict=True))) + "\n"

    return write_rows(answers, path, row)


def _is_ours(path: Path) -> bool:
    """Whether the first line has the columns that are written here, and no other."""
    try:
        with path.open("rb") as file:
            row = json.loads(file.readline(1 << 20))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(row, dict) and tuple(row) == _COLUMNS
