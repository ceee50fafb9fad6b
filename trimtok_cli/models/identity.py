"""The identity of a checkpoint's files: a hash that a copy shares and another training does not.

A night's run is gone on with only if the model is still the same. Weights are too large to be read
whole for that, so of a large file its size and 64 blocks are read, spread evenly over it: training
changes weights everywhere. Loads nothing.
"""

import hashlib
import os
from pathlib import Path

from trimtok_cli.errors import ModelError
from trimtok_cli.models.hub import wanted

WHOLE = 1 << 20  # bytes of a file that is read whole
BLOCKS, BLOCK = 64, 4096  # of a larger one


def identity(folder: Path) -> str:
    """A hash of the files of a folder that are loaded, by their names and contents.

    Raises ModelError for a file that cannot be read.
    """
    total = hashlib.sha256()
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
        for name in wanted(names, code=True):
            total.update(f"{name}\0".encode("utf-8", "surrogateescape"))
            total.update(_digest(folder / name))
    except OSError as error:
        raise ModelError(
            f"{error.filename or folder} cannot be read ({error.strerror}): check its permissions."
        ) from error
    return total.hexdigest()[:32]


def _digest(path: Path) -> bytes:
    """The size of a file and a hash of its bytes, or of blocks of them."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        found = hashlib.sha256(size.to_bytes(8))
        if size <= WHOLE:
            found.update(file.read())
            return found.digest()
        for number in range(BLOCKS):
            file.seek(number * (size - BLOCK) // (BLOCKS - 1))
            found.update(file.read(BLOCK))
    return found.digest()
