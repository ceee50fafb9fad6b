"""A census of media files: how many of each format, and which have the same content.

Reads the first bytes of each file, and whole only those that share their size with another one.
Decodes nothing: whether a file is sound, `images.py` and `video.py` say.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress

from trimtok_cli.blobs import Address, Held, Medium, Stored, Within
from trimtok_cli.errors import MediaError
from trimtok_cli.media.blob_files import opened
from trimtok_cli.media.kinds import HEAD, container, looks_like, picture

# Formats of what has no first bytes to be looked at.
UNREADABLE, AT_AN_ADDRESS = "unreadable", "at an address"

# Bytes that are read at once for a hash.
_BLOCK = 1 << 20


class Census:
    """Media by their formats and sizes; each counts once, however many samples show it.

    formats: Pillow's name of a picture's format, the kind of a video, or what else a file looks
    like, with how many there are. num_bytes: of all files together.
    """

    def __init__(self) -> None:
        self.formats: Counter[str] = Counter()
        self.num_bytes = 0
        self.met: set[tuple[str, ...]] = set()
        # Size -> the media of that size; of one in memory its digest, as it may be large.
        self.of_size: defaultdict[int, list[tuple[str, Medium | bytes]]] = defaultdict(list)

    def add(self, medium: Medium) -> tuple[str, ...]:
        """Counts a medium that was not met before; returns what tells it from any other."""
        digest = hashlib.blake2b(medium.content).digest() if isinstance(medium, Held) else b""
        place = _place(medium, digest)
        if place in self.met:
            return place
        self.met.add(place)
        if isinstance(medium, (Address, Stored)):  # fetched once, when it is decoded
            self.formats[AT_AN_ADDRESS] += 1
            return place
        self.formats[_format(medium)] += 1
        with suppress(OSError, ValueError):
            size = _size(medium)
            self.num_bytes += size
            if size:
                self.of_size[size].append((str(medium), digest or medium))
        return place

    def same_content(self) -> Iterator[list[str]]:
        """The names of media that hold the same bytes, at least two each time."""
        for alike in self.of_size.values():
            by_digest: defaultdict[bytes, list[str]] = defaultdict(list)
            for name, medium in alike if len(alike) > 1 else ():
                with suppress(OSError, MediaError):
                    found = medium if isinstance(medium, bytes) else _digest(medium)
                    by_digest[found].append(name)
            yield from (names for names in by_digest.values() if len(names) > 1)


def _place(medium: Medium, digest: bytes) -> tuple[str, ...]:
    if isinstance(medium, Within):
        return str(medium.file), str(medium.offset), str(medium.size)
    return ("held", digest.hex()) if digest else (str(medium),)


def _size(medium: Medium) -> int:
    if isinstance(medium, Held):
        return len(medium.content)
    if isinstance(medium, Within):
        return medium.size
    return 0 if isinstance(medium, (Address, Stored)) else medium.stat().st_size  # type: ignore[union-attr]


def _format(medium: Medium) -> str:
    try:
        with opened(medium, str(medium), "image") as file:
            head = file.read(HEAD)
    except (OSError, ValueError, MediaError):
        return UNREADABLE
    return picture(head)[0] or container(head) or looks_like(head)


def _digest(medium: Medium) -> bytes:
    found = hashlib.blake2b()
    with opened(medium, str(medium), "image") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.digest()
