"""Pictures and videos that are no file of their own: in memory, within another file, at an address.

A Blob stands wherever a path of a picture may. Reads nothing; `media/blob_files.py` does.
"""

from dataclasses import dataclass, field
from pathlib import Path


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
class Within(Blob):
    """`size` bytes of a file from `offset` on, such as a member of a tar."""

    file: Path
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Address(Blob):
    """What an http or https address gives; `name` is the address."""


Medium = Path | Blob
