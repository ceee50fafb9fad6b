"""What a video file's own boxes say: its length, so that a cut one need not be decoded to be
refused, and its turn.
"""

import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import BinaryIO

from trimtok_cli.media.kinds import HEAD, container

_MOST_INDEX = 100_000_000  # bytes

MOST_BOXES = 1000  # an hour in fragments has more, but the index stands before them


def mp4_boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, offset, length in bytes) of an MP4's outermost boxes, of the first 1,000."""
    return islice(_boxes(file, size), MOST_BOXES)


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        length = {0: size - at, 1: int.from_bytes(head[8:], "big")}.get(length, length)
        if length < 8:
            return
        yield head[4:8], at, length
        at += length


def missing(file: BinaryIO, head: bytes, kind: str, size: int) -> str:
    """Why the file cannot be whole, by its own word; empty where nothing is said against it."""
    lacks = told_size(kind, head) - size
    if kind == "mp4":
        boxes = list(mp4_boxes(file, size))
        names = {box for box, _, _ in boxes}
        lacks = max(
            (at + length - size for box, at, length in boxes if box in (b"mdat", b"moov", b"moof")),
            default=0,
        )
        if lacks <= 0 and b"moov" not in names:
            return (
                "its index is missing"
                if len(boxes) < MOST_BOXES
                else f"no index among its first {MOST_BOXES} boxes"
            )
    return f"its last {lacks} bytes are missing" if lacks > 0 else ""


def told_size(kind: str, head: bytes) -> int:
    """How many bytes the header says the file has; 0 where it does not say."""
    if kind == "avi":
        return 8 + int.from_bytes(head[4:8], "little")
    if kind == "mkv":
        header, at = _vint(head, 4)
        length, start = _vint(head, at + header + 4)  # past the segment's own four-byte mark
        return (
            0 if length == (1 << 7 * (start - at - header - 4)) - 1 else start + length
        )  # all ones: a live recording
    return 0


def _vint(data: bytes, at: int) -> tuple[int, int]:
    """A Matroska number and the offset behind it."""
    length = 9 - (data[at] if at < len(data) else 128).bit_length()
    return int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1), at + length


def rotation_of(path: str) -> int:
    """Degrees clockwise by which an MP4's display matrix turns its first picture track; 0 for other
    files.
    """
    with open(path, "rb") as file:
        if container(file.read(HEAD)) != "mp4":
            return 0
        size = os.fstat(file.fileno()).st_size
        at, length = next(
            ((at, length) for kind, at, length in mp4_boxes(file, size) if kind == b"moov"), (0, 0)
        )
        if length > _MOST_INDEX:
            raise ValueError("its index is very long")
        file.seek(at)
        moov = file.read(length)
    for found in re.finditer(b"tkhd", moov):
        matrix = found.end() + (52 if moov[found.end()] == 1 else 40)
        with suppress(struct.error):
            cos, sin, width = (
                struct.unpack_from(">i", moov, matrix + place)[0] for place in (0, 4, 36)
            )
            if width:  # a sound track has none
                return round(math.degrees(math.atan2(sin, cos)) / 90) * 90 % 360
    return 0
