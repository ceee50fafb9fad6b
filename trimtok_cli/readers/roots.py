"""The folder in which the names of pictures start, for whoever writes files beside them.

Opens no picture.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from trimtok_cli.data import Sample


def root_of(samples: Sequence[Sample], sources: Sequence[str]) -> Path | None:
    """The folder under which each name is that of its picture; None if there is no such folder.

    It is the folder that was named, that of the @list, the current one, or, for full paths, the
    folder that they share.
    """
    placed = [
        (name, path)
        for sample in samples
        for name, path in zip(sample.names, (*sample.images, sample.video), strict=False)
        if isinstance(path, Path)
    ]
    if not placed:
        return None
    named = [Path(sources[0].removeprefix("@"))] if len(sources) == 1 else []
    folders = [path if path.is_dir() else path.parent for path in named]
    if all(os.path.isabs(name) for name, _ in placed):
        folders = [Path(os.path.commonpath([path.parent for _, path in placed]))]
    for folder in (*folders, Path()):
        if all(folder / name == path for name, path in placed):
            return folder
    return None
