"""The marks of a JPEG: how many scans it has, where the last one ends, and whether its pixels are
all there. Works on the bytes of a file that is a JPEG; knows no path.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

MOST_SCANS = 100

# Scans times pixels: a few seconds.
MOST_SCANNED = 3_000_000_000

END_MARK = b"\xff\xd9"

# Pixels out of nothing; no 0xFF, which would be a mark.
_FILLER = bytes((170 + 73 * i) % 251 for i in range(64))

# The second byte of each kind of mark.
_FRAME_KINDS = (0xC0, 0xC1, 0xC2)
_PROGRESSIVE = 0xC2
_START = 0xD8
_END = 0xD9
_SCAN = 0xDA
_ADOBE = 0xEE
_COMMENT = 0xFE
_APPLICATION = range(0xE0, 0xF0)

_MARK = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")


@dataclass
class Marks:
    """The marks of the JPEG `data`.

    scans: how many, MOST_SCANS + 1 for any more; end: the offset at which the last scan stops;
    ended: an end mark stands there; whole: every coefficient was sent to its last bit.
    """

    data: bytes
    scans: int
    end: int
    ended: bool
    whole: bool
    progressive: bool


def read_marks(data: bytes) -> Marks:
    """The marks of a JPEG. Decodes nothing, and never raises."""
    scans = 0
    end = len(data)
    ended = progressive = False
    # component -> for each of its 64 coefficients, the bits that are still to come
    bits_left: dict[int, list[int]] = {}
    for kind, offset, body in _segments(data):
        if kind in _FRAME_KINDS and len(body) >= 6:
            progressive = kind == _PROGRESSIVE
            bits_left = {body[at]: [1] * 64 for at in range(6, len(body) - 2, 3)}
        if kind == _SCAN and len(body) >= 6:
            scans += 1
            if scans > MOST_SCANS:
                break
            first, last, low = 0, 63, 0
            if progressive:
                first, last, low = body[-3], min(body[-2], 63), body[-1] & 15
            for component in body[1 : 1 + 2 * body[0] : 2]:
                if component in bits_left:
                    count = last + 1 - first
                    bits_left[component][first : first + count] = [low] * count
        if kind == _END:
            ended = True
            end = offset
    whole = scans > 0 and not any(map(any, bits_left.values()))
    return Marks(data=data, scans=scans, end=end, ended=ended, whole=whole, progressive=progressive)


def _segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(kind, offset, body) of each mark up to the end of the picture. Pixels are stepped over."""
    at = 2
    while mark := _MARK.search(data, at):
        kind, offset = mark.group(1)[0], mark.start()
        if kind in (_START, 0x01):
            at = mark.end()
            continue
        if kind == _END:
            yield kind, offset, b""
            return
        length = int.from_bytes(data[mark.end() : mark.end() + 2], "big")
        if mark.end() + length > len(data):
            return
        yield kind, offset, data[mark.end() + 2 : mark.end() + length]
        at = mark.end() + max(length, 2)


def without_notes(data: bytes) -> bytes:
    """The JPEG without EXIF, profile and other application data, of which one may be broken.

    Adobe's segment stays: it tells how the colours are stored.
    """
    kept: list[bytes] = []
    at = 0
    for kind, offset, body in _segments(data):
        if kind == _COMMENT or (kind in _APPLICATION and kind != _ADOBE):
            kept.append(data[at:offset])
            at = offset + 4 + len(body)
        if kind == _SCAN:
            break
    return b"".join([*kept, data[at:]])


def ends_in_grey(image: Image.Image) -> bool:
    """Whether the last pixels are all middle grey, which libjpeg puts silently for missing data."""
    width, height = image.size
    corner = image.crop((max(width - 8, 0), max(height - 8, 0), width, height))
    extrema = corner.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    grey = 127 if image.mode == "CMYK" else 128  # ink is stored the other way round
    return all(low == high == grey for low, high in bands)


def all_there(marks: Marks) -> bool:
    """Whether a JPEG's pixels all come from the file.

    The picture is decoded twice, with different data behind its last scan: pixels that lack data
    change.
    """
    data = marks.data[: marks.end].rstrip(b"\xff")
    filler = _FILLER * 4
    if restarts := re.findall(rb"\xff([\xd0-\xd7])", data[-(1 << 20) :]):
        last = restarts[-1][0] & 7
        filler = b"".join(_FILLER + bytes((0xFF, 0xD0 | (last + 1 + i) % 8)) for i in range(8))
    decoded = []
    for tail in (b"", filler):
        with Image.open(BytesIO(data + tail + END_MARK), formats=["JPEG"]) as image:
            decoded.append(image.tobytes())
    return decoded[0] == decoded[1]
