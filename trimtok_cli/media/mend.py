"""Sound pictures in damaged files: what any browser shows whole is made readable, and what was
wrong is noted.

A PNG is handed on without the text that Pillow refuses when it is long. A WebP is given its true
length, a JPEG the end mark that it lacks. Knows bytes only: pixels are the business of pixels.py,
and whether a JPEG's pixels are all there that of jpeg_marks.py.
"""

import struct
import zlib
from dataclasses import dataclass, replace
from io import BytesIO
from typing import BinaryIO

from trimtok_cli.errors import MediaError
from trimtok_cli.media import jpeg_marks

# Bytes of a file that is read at once.
MOST_FILE = 500_000_000

# Bytes of a PNG's text, and of its profile or any other chunk that is no picture.
_MOST_TEXT = 1 << 20
_MOST_PROFILE = 16 << 20

# Chunks of a PNG that are handed on.
_PNG_KEPT = (
    *(b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf", b"gAMA", b"cHRM", b"sRGB"),
    *(b"acTL", b"fcTL", b"fdAT"),
)

# Chunks of a PNG that are read and not handed on.
_PNG_READ = (b"iCCP", b"sBIT")

_PNG_TEXT = (b"iTXt", b"tEXt", b"zTXt")

# Text that tells which way is up.
_PNG_TEXT_KEPT = (
    b"XML:com.adobe.xmp\0",
    b"Raw profile type exif\0",
    b"Raw profile type APP1\0",
)

TOO_SHORT = "the picture ends too soon"


@dataclass
class Mended:
    """A file that Pillow can read, and what it says beside its pixels.

    profile: a PNG's colour profile; bits: how many bits of a grey sample are used (0: not said);
    deep: a colour has 16 bits; size: (width, height) known before the file is opened, else (0, 0);
    jpeg: the marks of a JPEG.
    """

    file: BinaryIO
    notes: tuple[str, ...] = ()
    profile: bytes | None = None
    bits: int = 0
    deep: bool = False
    size: tuple[int, int] = (0, 0)
    jpeg: jpeg_marks.Marks | None = None


def mend(file: BinaryIO, format: str, start: int, name: str) -> Mended:
    """The file from the offset `start` on, made readable.

    ValueError where the file is certainly damaged, MediaError where it would take too much.
    """
    if format in ("PNG", "JPEG", "WEBP") or start:
        read = {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp}.get(format, _whole)
        mended = read(file, start, name)
    else:
        file.seek(0)
        mended = Mended(file)
    if start == 1:
        mended.notes += ("the byte in front of the picture was passed over",)
    elif start:
        mended.notes += (f"the {start} bytes in front of the picture were passed over",)
    return mended


def _read(file: BinaryIO, start: int, name: str) -> bytes:
    file.seek(start)
    data = file.read(MOST_FILE + 1)
    if len(data) > MOST_FILE:
        raise _too_long(name)
    return data


def _too_long(name: str) -> MediaError:
    return MediaError(f"{name} has more bytes than the limit of {MOST_FILE}; save it again")


def _whole(file: BinaryIO, start: int, name: str) -> Mended:
    return Mended(BytesIO(_read(file, start, name)))


# PNG


def _png(file: BinaryIO, start: int, name: str) -> Mended:
    """Only the chunks that make the picture. Text and unknown chunks are passed over unread."""
    mended = Mended(file)
    kept = [b"\x89PNG\r\n\x1a\n"]
    num_kept_bytes = 0
    damaged = False
    at = start + 8
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            break
        length, kind = struct.unpack(">I4s", head)
        at += 12 + length
        if not _is_wanted(file, kind, length):
            continue
        body = file.read(length)
        checksum = file.read(4)
        if kind[:1].islower() and kind not in (b"fcTL", b"fdAT"):
            if struct.pack(">I", zlib.crc32(kind + body)) != checksum:
                damaged = True
                continue
            if not _is_handed_on(mended, kind, body):
                continue
        if kind == b"IHDR" and length == 13:
            mended.deep = body[8] == 16
        num_kept_bytes += length
        if num_kept_bytes > MOST_FILE:
            raise _too_long(name)
        kept += [head, body, checksum]
        if kind == b"IEND":
            break
    mended.file = BytesIO(b"".join(kept))
    if damaged:
        mended.notes += ("a damaged note in the file was left out",)
    return mended


def _is_wanted(file: BinaryIO, kind: bytes, length: int) -> bool:
    """Whether a chunk of a PNG is read, by its kind, its length and a text's keyword.

    The file stands at the chunk's body, before and after.
    """
    known = kind in _PNG_KEPT or kind in _PNG_READ or kind in _PNG_TEXT
    if not (known or kind[:1].isupper()):
        return False
    if kind[:1].islower() and length > _MOST_PROFILE and kind != b"fdAT":
        return False
    if kind.endswith((b"TXt", b"EXt")):
        body = file.tell()
        keyword = file.read(min(length, 25))
        file.seek(body)
        return length <= _MOST_TEXT and keyword.startswith(_PNG_TEXT_KEPT)
    return True


def _is_handed_on(mended: Mended, kind: bytes, body: bytes) -> bool:
    """Whether Pillow is given a sound chunk beside the pixels. Profile and bits go to `mended`."""
    if kind == b"iCCP":
        mended.profile = _inflated(body.partition(b"\0")[2][1:], _MOST_PROFILE) or b"broken"
        return False
    if kind == b"sBIT":
        mended.bits = body[0] if len(body) in (1, 2) else 0
        return False
    if kind == b"zTXt":
        return bool(_inflated(body.partition(b"\0")[2][1:], _MOST_TEXT))
    return kind != b"eXIf" or len(body) <= _MOST_TEXT


def _inflated(packed: bytes, most: int) -> bytes:
    """The bytes that zlib packed; nothing where they are broken or more than `most`."""
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(packed, most)
    except zlib.error:
        return b""
    return b"" if inflater.unconsumed_tail else text


# WebP


def _webp(file: BinaryIO, start: int, name: str) -> Mended:
    """The chunks under a header that tells their true length, without a note that was cut off."""
    data = _read(file, start, name)
    mended = Mended(BytesIO(data), size=_webp_size(data))
    told_length = int.from_bytes(data[4:8], "little")
    chunks: list[bytes] = []
    notes: list[str] = []
    has_picture = False
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + length]
        padding = length % 2
        at += 8 + length + padding
        if len(body) < length:
            if kind in (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANMF"):
                raise ValueError(TOO_SHORT)
            notes.append("a note that was cut off was left out")
            break
        chunks.append(struct.pack("<4sI", kind, length) + body + b"\0" * padding)
        has_picture = has_picture or kind in (b"VP8 ", b"VP8L", b"ANMF")
        if has_picture and at >= 8 + told_length:
            break
    content = b"WEBP" + b"".join(chunks)
    if len(content) != told_length and chunks:
        notes = notes or ["it tells a wrong length"]
    if notes:
        mended.file = BytesIO(b"RIFF" + struct.pack("<I", len(content)) + content)
        mended.notes = tuple(notes)
    return mended


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) by the first chunk."""
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        packed = int.from_bytes(body[1:5], "little")
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    width = int.from_bytes(body[6:8], "little") & 0x3FFF
    height = int.from_bytes(body[8:10], "little") & 0x3FFF
    return width, height


# JPEG


def _jpeg(file: BinaryIO, start: int, name: str) -> Mended:
    data = _read(file, start, name)
    marks = jpeg_marks.read_marks(data)
    if marks.scans > jpeg_marks.MOST_SCANS:
        raise MediaError(
            f"{name} is a JPEG of more than {jpeg_marks.MOST_SCANS} scans; save it again"
        )
    if marks.ended:
        return Mended(BytesIO(data), jpeg=marks)
    if not marks.whole:
        raise ValueError(TOO_SHORT)
    file = BytesIO(data + jpeg_marks.END_MARK)
    return Mended(file, notes=("its end mark is missing",), jpeg=marks)


def without_jpeg_notes(mended: Mended) -> Mended:
    """A JPEG without its application data, for one that Pillow cannot open with them."""
    end = b"" if mended.jpeg.ended else jpeg_marks.END_MARK
    return replace(
        mended,
        file=BytesIO(jpeg_marks.without_notes(mended.jpeg.data) + end),
        notes=(*mended.notes, "its notes (EXIF, profile) are damaged and were left out"),
    )
