"""The picture of a record: its name within the folder of the pictures, and where it lies.

Names come from files that somebody else may have written: no name leads out of the folder. Opens no
picture.
"""

import os
from pathlib import Path

from trimtok_cli.errors import UsageError
from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.exports.form import LeftOut


def own_name(record: Record) -> str:
    """The name of a record's one picture or video. LeftOut if it has none, or several."""
    name = record["image"]
    if isinstance(name, list):
        raise LeftOut("with several pictures")
    if not name or "://" in name or name[:5].lower() == "data:" or "\0" in name:
        raise LeftOut("without a picture that is a file")
    return str(name)


def inner_name(name: str, root: Path | None) -> str:
    """The name relative to `root`, the folder of the pictures, with neither `.` nor `..` in it.

    LeftOut if it leads out of that folder; None, of an archive, is a folder of its own.
    """
    if root is not None:
        name = os.path.relpath(os.path.join(root, name), root)
    name = os.path.normpath(name)
    if os.path.isabs(name) or name.split(os.sep)[0] in ("..", "."):
        raise LeftOut("whose names lead out of the folder of the pictures")
    return name


def picture_file(record: Record, answers: Answers, format: str) -> Path:
    """The full path of a record's one picture or video.

    LeftOut if it is not there any more. UsageError if the run's pictures lie in no one folder.
    """
    root = answers.root
    if root is None:
        raise UsageError(
            f"--format {format}: the pictures of this run lie in no one folder, and its rows hold "
            "their paths; name the folder with `trimtok export --image-root`."
        )
    name = own_name(record)
    path = root / (name if answers.opened else inner_name(name, root))
    if not path.is_file():
        raise LeftOut("whose picture is not there any more")
    return Path(os.path.abspath(path))


def is_video(record: Record) -> bool:
    return bool(record["metadata"]["video"]["frames"])
