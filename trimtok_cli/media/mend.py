"""Sound pictures in damaged files: what any browser shows whole is made readable, and what was
wrong is noted.

A PNG is handed on without the text that Pillow refuses when it is long; a JPEG is given the end
mark it lacks, a WebP its true length. Whether a JPEG's pixels are all there is found out by
decoding it twice. Pixels are the business of pixels.py.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from PIL import Image

from trimtok_cli.errors import MediaError

MOST_FILE = 500_000_000  # bytes of a file that is read at once

MOST_SCANS, MOST_SCANNED = (
    100,
    3_000_000_000,
)  # scans of a JPEG, and scans times pixels: a few seconds

_MOST_TEXT, _MOST_PROFILE = 1 << 20, 16 << 20

_FILLER = bytes(
    (170 + 73 * i) % 251 for i in range(64)
)  # pixels out of nothing; no 0xFF, which would be a mark

_END = b"\xff\xd9"

_PNG_KEPT = (
    b"IHDR",
    b"PLTE",
    b"IDAT",
    b"IEND",
    b"tRNS",
    b"eXIf",
    b"gAMA",
    b"cHRM",
    b"sRGB",
    b"acTL",
    b"fcTL",
    b"fdAT",
)

_PNG_TEXT = (
    b"XML:com.adobe.xmp\0",
    b"Raw profile type exif\0",
    b"Raw profile type APP1\0",
)  # which way is up


@dataclass
class Mended:
    """A file that Pillow can read, and what it says beside its pixels.

    profile: a PNG's colour profile; bits: how many bits of a grey sample are used (0: not said);
    deep: 16 bits a colour; size: known before it is opened, else (0, 0); jpeg: what was found in a
    JPEG's marks.
    """

    file: BinaryIO
    notes: tuple[str, ...] = ()
    profile: bytes | None = None
    bits: int = 0
    deep: bool = False
    size: tuple[int, int] = (0, 0)
    jpeg: "Marks | None" = None


def mend(file: BinaryIO, format: str, start: int, name: str) -> Mended:
    """The file from `start` on. ValueError where it is certainly damaged, MediaError where it would
    take too much.
    """
    if format in ("PNG", "JPEG", "WEBP") or start:
        read = {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp}.get(format, _whole)
        mended = read(file, start, name)
    else:
        file.seek(0)
        mended = Mended(file)
    if start:
        bytes_were = (
            f"{start} bytes in front of the picture were"
            if start > 1
            else "byte in front of the picture was"
        )
        mended.notes += (f"the {bytes_were} passed over",)
    return mended


def _read(file: BinaryIO, start: int, name: str) -> bytes:
    file.seek(start)
    data = file.read(MOST_FILE + 1)
    if len(data) > MOST_FILE:
        raise MediaError(f"{name} has more bytes than the limit of {MOST_FILE}; save it again")
    return data


def _whole(file: BinaryIO, start: int, name: str) -> Mended:
    return Mended(BytesIO(_read(file, start, name)))


# PNG


def _png(file: BinaryIO, start: int, name: str) -> Mended:
    """Only the chunks that make the picture. Text is passed over unread, as are chunks that nobody
    knows.
    """
    kept, mended, held, damaged = [b"\x89PNG\r\n\x1a\n"], Mended(file), 0, False
    at = start + 8
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            break
        length, kind = struct.unpack(">I4s", head)
        at += 12 + length
        wanted = (
            kind in _PNG_KEPT
            or kind[:1].isupper()
            or kind in (b"iCCP", b"sBIT")
            or (kind in (b"iTXt", b"tEXt", b"zTXt"))
        )
        if not wanted or (kind[:1].islower() and length > _MOST_PROFILE and kind != b"fdAT"):
            continue
        if kind.endswith((b"TXt", b"EXt")):
            text = file.read(min(length, 25))
            if length > _MOST_TEXT or not text.startswith(_PNG_TEXT):
                continue
            file.seek(at - 4 - length)
        body = file.read(length)
        check = file.read(4)
        if kind[:1].islower() and kind not in (b"fcTL", b"fdAT"):
            if struct.pack(">I", zlib.crc32(kind + body)) != check:
                damaged = True
                continue
            if kind == b"iCCP":
                mended.profile = _inflated(body.partition(b"\0")[2][1:], _MOST_PROFILE) or b"broken"
                continue
            if kind == b"zTXt" and not _inflated(body.partition(b"\0")[2][1:], _MOST_TEXT):
                continue
            if kind == b"sBIT":
                mended.bits = body[0] if len(body) in (1, 2) else 0
                continue
            if kind == b"eXIf" and length > _MOST_TEXT:
                continue
        if kind == b"IHDR" and length == 13:
            mended.deep = body[8] == 16
        held += length
        if held > MOST_FILE:
            raise MediaError(f"{name} has more bytes than the limit of {MOST_FILE}; save it again")
        kept += [head, body, check]
        if kind == b"IEND":
            break
    mended.file = BytesIO(b"".join(kept))
    if damaged:
        mended.notes += ("a damaged note in the file was left out",)
    return mended


def _inflated(packed: bytes, most: int) -> bytes:
    """What zlib packed, or nothing where it is broken or too long."""
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(packed, most)
    except zlib.error:
        return b""
    return b"" if inflater.unconsumed_tail else text


# WebP


def _webp(file: BinaryIO, start: int, name: str) -> Mended:
    """Its chunks under a header that tells their true length; what was cut off behind the picture
    is left out.
    """
    data = _read(file, start, name)
    mended = Mended(BytesIO(data), size=_webp_size(data))
    chunks, at, notes = [], 12, []
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
        if len(body) < length:
            if kind in (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANMF"):
                raise ValueError("the picture ends too soon")
            notes.append("a note that was cut off was left out")
            break
        chunks.append(struct.pack("<4sI", kind, length) + body + b"\0" * (length % 2))
        if at >= 8 + int.from_bytes(data[4:8], "little") and any(
            chunk[:4] in (b"VP8 ", b"VP8L", b"ANMF") for chunk in chunks
        ):
            break
    told, body = int.from_bytes(data[4:8], "little"), b"WEBP" + b"".join(chunks)
    if len(body) != told and chunks:
        notes = notes or ["it tells a wrong length"]
    if notes:
        mended.file = BytesIO(b"RIFF" + struct.pack("<I", len(body)) + body)
        mended.notes = tuple(notes)
    return mended


def _webp_size(data: bytes) -> tuple[int, int]:
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        packed = int.from_bytes(body[1:5], "little")
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(
        body[8:10], "little"
    ) & 0x3FFF


# JPEG


@dataclass
class Marks:
    """What a JPEG's marks tell: `end` is where its last scan stops; `whole`: every coefficient was
    sent to its last bit.
    """

    data: bytes
    scans: int
    end: int
    ended: bool
    whole: bool
    progressive: bool


def _jpeg(file: BinaryIO, start: int, name: str) -> Mended:
    data = _read(file, start, name)
    marks = _marks(data)
    if marks.scans > MOST_SCANS:
        raise MediaError(f"{name} is a JPEG of more than {MOST_SCANS} scans; save it again")
    if marks.ended:
        return Mended(BytesIO(data), jpeg=marks)
    if not marks.whole:
        raise ValueError("the picture ends too soon")
    return Mended(BytesIO(data + _END), ("its end mark is missing",), jpeg=marks)


def _marks(data: bytes) -> Marks:
    scans, end, ended, left, progressive = 0, len(data), False, {}, False
    for kind, at, body in _segments(data):
        if kind in (0xC0, 0xC1, 0xC2) and len(body) >= 6:
            progressive = kind == 0xC2
            left = {
                body[place]: [1] * 64 for place in range(6, len(body) - 2, 3)
            }  # component -> bits that are still to come
        if kind == 0xDA and len(body) >= 6:
            scans += 1
            if scans > MOST_SCANS:
                break
            first, last, low = body[-3], min(body[-2], 63), body[-1] & 15
            for component in body[1 : 1 + 2 * body[0] : 2]:
                if component in left:
                    count = last + 1 - first if progressive else 64
                    first = first if progressive else 0
                    left[component][first : first + count] = [low if progressive else 0] * count
        if kind == 0xD9:
            ended, end = True, at
    whole = bool(scans) and not any(map(any, left.values()))
    return Marks(data, scans, end, ended, whole, progressive)


def _segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(kind, offset, body) of each mark up to the end of the picture. The pixels behind a scan's
    mark are stepped over.
    """
    mark, at = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])"), 2
    while found := mark.search(data, at):
        kind, place = found.group(1)[0], found.start()
        if kind in (0xD8, 0x01):
            at = found.end()
            continue
        if kind == 0xD9:
            yield kind, place, b""
            return
        length = int.from_bytes(data[found.end() : found.end() + 2], "big")
        if found.end() + length > len(data):
            return
        yield kind, place, data[found.end() + 2 : found.end() + length]
        at = found.end() + max(length, 2)


def without_notes(data: bytes) -> bytes:
    """The JPEG without EXIF, profile and other application data, of which one may be broken;
    Adobe's tells its colours.
    """
    kept, at = [], 0
    for kind, place, body in _segments(data):
        if kind == 0xFE or (0xE0 <= kind <= 0xEF and kind != 0xEE):
            kept.append(data[at:place])
            at = place + 4 + len(body)
        if kind == 0xDA:
            break
    return b"".join([*kept, data[at:]])


def ends_in_grey(image: Image.Image) -> bool:
    """Whether the last pixels are what libjpeg, without a word, puts where data is missing: middle
    grey.
    """
    width, height = image.size
    corner = image.crop((max(width - 8, 0), max(height - 8, 0), width, height))
    spread = corner.getextrema()
    grey = 127 if image.mode == "CMYK" else 128  # ink is stored the other way round
    return all(
        low == high == grey for low, high in (spread if isinstance(spread[0], tuple) else (spread,))
    )


def all_there(marks: Marks) -> bool:
    """Whether a JPEG's pixels all come from the file: what lacks data changes when other data
    follows.
    """
    data, last = marks.data[: marks.end].rstrip(b"\xff"), 7
    if restarts := re.findall(rb"\xff([\xd0-\xd7])", data[-(1 << 20) :]):
        last = restarts[-1][0] & 7
    filler = (
        b"".join(_FILLER + bytes((0xFF, 0xD0 | (last + 1 + i) % 8)) for i in range(8))
        if restarts
        else _FILLER * 4
    )
    pixels = []
    for more in (b"", filler):
        with Image.open(BytesIO(data + more + _END), formats=["JPEG"]) as image:
            pixels.append(image.tobytes())
    return pixels[0] == pixels[1]
