"""Pictures and videos that are no file of their own: in memory, within another file, at an address.

A Blob stands wherever a path of a picture may. Reads no file; `media/blob_files.py` does.
"""

import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtok_cli.errors import UsageError


@dataclass(frozen=True, slots=True)
class Blob:
    """A picture or a video that has a name, as messages and files show it, and no path."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Held(Blob):
    """A file's content in memory, as a data: URI or a table has it."""

    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Stored(Blob):
    """An object of a store, such as s3; `name` is its address."""


@dataclass(frozen=True, slots=True)
class Within(Blob):
    """`size` bytes of a file from `offset` on, such as a member of a tar."""

    file: Path | Stored
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Address(Blob):
    """What an http or https address gives; `name` is the address."""


Medium = Path | Blob

# Pillow's modes that a PNG and a TIFF hold as they are; others become RGB, or RGBA.
_KINDS = dict.fromkeys(("1", "L", "LA", "I;16", "P", "RGB", "RGBA"), "PNG")
_KINDS |= dict.fromkeys(("CMYK", "F", "I", "LAB"), "TIFF")


def as_medium(given: Any) -> Medium:
    """The medium that a script's path, string or Pillow image means.

    An image is held as a file of the same pixels, so that it meets every check that files do, and
    can go to a worker process. Raises UsageError for anything else.
    """
    if isinstance(given, (Path, Blob)):
        return given
    if isinstance(given, (str, os.PathLike)):
        return Path(given)
    if not (hasattr(given, "getexif") and hasattr(given, "mode")):
        raise UsageError(
            "an image is a path or a Pillow image, and a video is a path; got a "
            f"{type(given).__name__}: give the file's path, or Image.fromarray(array)."
        )
    kind = _KINDS.get(given.mode)
    held = given if kind else given.convert("RGBA" if given.mode in ("PA", "RGBa") else "RGB")
    file = io.BytesIO()
    held.save(file, kind or "PNG", exif=given.getexif(), compress_level=1)
    name = os.path.basename(str(getattr(given, "filename", "")))
    return Held(name or "image in memory", file.getvalue())


def as_media(given: Any) -> tuple[Medium, ...]:
    """The media of a list, or of one that stands by itself."""
    if isinstance(given, (list, tuple)):
        return tuple(map(as_medium, given))
    return (as_medium(given),)
