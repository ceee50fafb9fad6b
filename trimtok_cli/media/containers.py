"""What a video file's own boxes say of its length, so that one that is cut short need not be decoded to be refused."""

from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

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
        lacks = max((at + length - size for box, at, length in boxes if box in (b"mdat", b"moov", b"moof")), default=0)
        if lacks <= 0 and b"moov" not in names:
            return "its index is missing" if len(boxes) < MOST_BOXES else f"no index among its first {MOST_BOXES} boxes"
    return f"its last {lacks} bytes are missing" if lacks > 0 else ""


def told_size(kind: str, head: bytes) -> int:
    """How many bytes the header says the file has; 0 where it does not say."""
    if kind == "avi":
        return 8 + int.from_bytes(head[4:8], "little")
    if kind == "mkv":
        header, at = _vint(head, 4)
        length, start = _vint(head, at + header + 4)  # past the segment's own four-byte mark
        return 0 if length == (1 << 7 * (start - at - header - 4)) - 1 else start + length  # all ones: a live recording
    return 0


def _vint(data: bytes, at: int) -> tuple[int, int]:
    """A Matroska number and the offset behind it."""
    length = 9 - (data[at] if at < len(data) else 128).bit_length()
    return int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1), at + length
