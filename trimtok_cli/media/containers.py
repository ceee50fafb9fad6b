"""A video file by its own boxes: whether its end is missing, and how its picture is turned.

A file that was cut short is known without decoding. Knows no decoder.
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

# Bytes of an MP4's index that are read.
_MOST_INDEX = 100_000_000

# Boxes that are looked at. An hour in fragments has more, but its index stands before them.
MOST_BOXES = 1000


def mp4_boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, offset, length in bytes) of an MP4's outermost boxes, the first 1,000 of them."""
    return islice(_boxes(file, size), MOST_BOXES)


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 0:  # to the end of the file
            length = size - at
        elif length == 1:  # the length follows, in 8 bytes
            length = int.from_bytes(head[8:], "big")
        if length < 8:
            return
        yield head[4:8], at, length
        at += length


def missing_part(file: BinaryIO, head: bytes, kind: str, size: int) -> str:
    """Why the file cannot be whole, by its own word; "" where it may be. `size` in bytes."""
    num_missing = told_size(kind, head) - size
    if kind == "mp4":
        boxes = list(mp4_boxes(file, size))
        ends = [at + length for box, at, length in boxes if box in (b"mdat", b"moov", b"moof")]
        num_missing = max(ends, default=size) - size
        if num_missing <= 0 and not any(box == b"moov" for box, _, _ in boxes):
            if len(boxes) < MOST_BOXES:
                return "its index is missing"
            return f"no index among its first {MOST_BOXES} boxes"
    return f"its last {num_missing} bytes are missing" if num_missing > 0 else ""


def told_size(kind: str, head: bytes) -> int:
    """The size of the file in bytes by its header; 0 where the header does not say."""
    if kind == "avi":
        return 8 + int.from_bytes(head[4:8], "little")
    if kind == "mkv":
        header_length, header_start = _vint(head, 4)
        segment = header_start + header_length + 4  # past the segment's own four-byte mark
        length, start = _vint(head, segment)
        # All ones: the length of a live recording is not known.
        unknown = (1 << 7 * (start - segment)) - 1
        return 0 if length == unknown else start + length
    return 0


def _vint(data: bytes, at: int) -> tuple[int, int]:
    """A Matroska number and the offset behind it."""
    length = 9 - (data[at] if at < len(data) else 128).bit_length()
    return int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1), at + length


def rotation_of(path: str) -> int:
    """Degrees clockwise by which an MP4's display matrix turns its first picture track.

    0 for other files. ValueError for an index of more than 100 MB.
    """
    with open(path, "rb") as file:
        if container(file.read(HEAD)) != "mp4":
            return 0
        size = os.fstat(file.fileno()).st_size
        boxes = mp4_boxes(file, size)
        at, length = next(((at, length) for box, at, length in boxes if box == b"moov"), (0, 0))
        if length > _MOST_INDEX:
            raise ValueError("its index is very long")
        file.seek(at)
        moov = file.read(length)
    for header in re.finditer(b"tkhd", moov):
        body = header.end()
        matrix = body + (52 if moov[body] == 1 else 40)
        with suppress(struct.error):
            cos, sin, width = (
                struct.unpack_from(">i", moov, matrix + offset)[0] for offset in (0, 4, 36)
            )
            if width:  # a sound track has none
                return degrees_of_turn(sin, cos)
    return 0


def degrees_of_turn(sin: float, cos: float) -> int:
    """The angle of a display matrix in degrees, 0 to 270, to the nearest quarter turn."""
    return round(math.degrees(math.atan2(sin, cos)) / 90) * 90 % 360
