"""Broken: what is wrong with a checkpoint's folder, and the checks that every file in it must pass.

Knows no file by name. Imports no torch.
"""

from pathlib import Path

AGAIN = "copy or download it again"

# Names that programs give to a download in progress.
UNFINISHED = ("*.incomplete", "*.part", "*.crdownload", "*.aria2", "*.download", "*.tmp")


class Broken(Exception):
    """A fault of a folder and its remedy: the second half of a sentence, without its full stop."""


def check_whole(path: Path) -> None:
    """Raises Broken for a file that is unreadable, empty, or only a git-lfs pointer."""
    try:
        size, head = path.stat().st_size, first_bytes(path, 40)
    except OSError as error:
        raise Broken(f"its {path.name} cannot be read ({error.strerror}); {AGAIN}") from error
    if not size:
        raise Broken(f"its {path.name} is empty; {AGAIN}")
    if head.startswith(b"version https://git-lfs"):
        raise Broken(
            f"its {path.name} is only a pointer of git-lfs; run `git lfs pull` there, or "
            "download it again"
        )


def first_bytes(path: Path, count: int) -> bytes:
    """The first `count` bytes of a file."""
    with path.open("rb") as file:
        return file.read(count)


def unfinished(folder: Path) -> str:
    """Half a sentence that names a download in progress in the folder; "" without any."""
    names = [
        path.name
        for pattern in UNFINISHED
        for path in [*folder.glob(pattern), *folder.glob(f".cache/**/{pattern}")]
    ]
    return f" and a download that did not end ({names[0]})" if names else ""
