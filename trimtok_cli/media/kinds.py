"""The kind of a file by its first bytes, whatever its name ends with.

Knows no decoder, and does not say whether a file is sound.
"""

import os
import re
import stat
from contextlib import suppress
from dataclasses import replace
from typing import BinaryIO

from trimtok_cli import stores
from trimtok_cli.blobs import Blob, Medium
from trimtok_cli.data import Sample
from trimtok_cli.errors import MediaError
from trimtok_cli.media.blob_files import opened

# The kind of a file that is empty, missing, or not to be opened by this user.
UNKNOWN = "unknown"

# Bytes that are looked at.
HEAD = 4096

# Bytes that may stand before a picture: white space, or a header that a server let slip in.
_FRONT = 64

_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")

_AVIF = (b"avif", b"avis")

# Brands of MP4 files that are no video: songs, audio books, raw photographs.
_NO_VIDEO = (b"M4A ", b"M4B ", b"M4P ", b"crx ")

_STARTS = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP", re.DOTALL)

_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)

# Kind of video file -> the demuxer of FFmpeg that reads it; no other demuxer ever sees the file.
DEMUXERS = {
    "mp4": "mov",
    "ts": "mpegts",
    "mkv": "matroska",
    "avi": "avi",
    "mpg": "mpeg",
    "m2v": "mpegvideo",
    "wmv": "asf",
    "flv": "flv",
    "ogg": "ogg",
    "mxf": "mxf",
    "ivf": "ivf",
    "y4m": "yuv4mpegpipe",
    "rm": "rm",
    "h264": "h264",
    "hevc": "hevc",
}

_CONTAINERS = {
    b"\x1aE\xdf\xa3": "mkv",
    b"\0\0\1\xba": "mpg",
    b"\0\0\1\xb3": "m2v",
    b"0&\xb2u": "wmv",
    b"FLV\1": "flv",
    b"OggS": "ogg",
    b"\x06\x0e+4\x02\x05\x01\x01\r\x01\x02": "mxf",
    b"DKIF": "ivf",
    b"YUV4MPEG2 ": "y4m",
    b".RMF": "rm",
    b"\0\0\0\1g": "h264",
    b"\0\0\0\1'": "h264",
    b"\0\0\0\1\t": "h264",
    b"\0\0\0\1@\1": "hevc",
}

# Other kinds of files, for messages, which quote no byte of a file. The first that fits is taken.
_OTHERS = (
    (rb"\s*$", "nothing but white space"),
    (rb"\0+$", "nothing but zeros"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (rb"(?i)\W*<(!doctype html|html|head|body|script)", "an HTML page"),
    (rb"(?is)\W*(<\?xml.{0,2000}|<!--.{0,2000}|<!doctype )?<?svg\b", "an SVG drawing"),
    (rb"\W*<\?xml", "an XML file"),
    (rb"PK\x03\x04|PK\x05\x06", "a ZIP archive"),
    (rb"\x1f\x8b|BZh|7z\xbc\xaf|Rar!|\xfd7zXZ|\x28\xb5\x2f\xfd", "a packed archive"),
    (rb"%PDF", "a PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript file"),
    (rb"8BPS", "a Photoshop document"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (rb"ID3|fLaC|RIFF....WAVE|....ftypM4[ABP] |\xff[\xfb\xf3\xf1\xf9]", "a sound file"),
    (rb"#EXTM3U|ffconcat|v=0\r?\n", "a playlist, not a video"),
    (rb"MZ|\x7fELF", "a program"),
    (rb"PAR1|\x89HDF|SQLite format|\x93NUMPY", "a data file"),
    (rb"(?s).{128}DICM", "a DICOM file"),
    (rb"\s*[{\[]\s*[\"{\[\]}]", "a JSON file"),
)


def picture(head: bytes) -> tuple[str, int]:
    """(format, offset) of a picture: Pillow's name of the format, and where the picture begins.

    ("", 0) for a file that is no picture, or one of a format that is not read.
    """
    if head[4:8] == b"ftyp":
        return _heif_format(head), 0
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP", 0
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF", 0
    if head[:4] in (b"\0\0\0\x0c", b"\xff\x4f\xff\x51") and (head[0] or head[4:8] == b"jP  "):
        return "JPEG2000", 0
    if re.match(rb"P([1-6fF]|0CMYK|yCMYK|yRGBA|yP)\s[\d\s#]", head):
        return "PPM", 0
    if head[:4] == b"\0\0\1\0" and 0 < int.from_bytes(head[4:6], "little") < 256:
        return "ICO", 0
    if head[:4] == b"qoif":
        return "QOI", 0
    if start := _STARTS.search(head[: _FRONT + 16]):
        format = {b"\xff": "JPEG", b"\x89": "PNG", b"G": "GIF", b"R": "WEBP"}[start.group()[:1]]
        return format, start.start()
    return "", 0


def _heif_format(head: bytes) -> str:
    """HEIF, AVIF or "" for a file that begins with an `ftyp` box, by its brands."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    main, *others = (head[at : at + 4] for at in (8, *range(16, end, 4)))
    if main in _AVIF:
        return "AVIF"
    if main in (b"mif1", b"msf1") and any(brand in _AVIF for brand in others):
        return "AVIF"
    return "HEIF" if main in _HEIF else ""


def container(head: bytes) -> str:
    """The kind of video file, a key of DEMUXERS; "" for any other file.

    An allow-list, as FFmpeg would follow a playlist.
    """
    is_mp4 = head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
    if is_mp4 and not picture(head)[0]:
        return "" if head[4:8] == b"ftyp" and head[8:12] in _NO_VIDEO else "mp4"
    if head[:4] == b"RIFF":
        return "avi" if head[8:12] in (b"AVI ", b"AVIX") else ""
    # A text may have a G at all these offsets too, but neither of these bytes.
    if re.search(rb"[\0\xff]", head):
        for packet, first in ((188, 0), (192, 4)):
            marks = head[first::packet][:5]
            if len(marks) > 1 and set(marks) == {ord("G")}:
                return "ts"
    return next((kind for mark, kind in _CONTAINERS.items() if head.startswith(mark)), "")


def looks_like(head: bytes) -> str:
    """The look of a file in a few words for the user, without a byte of the file."""
    if container(head):
        return "a video"
    if format := picture(head)[0]:
        article = "an" if format in ("AVIF", "HEIF", "ICO") else "a"
        return f"{article} {format} picture"
    for pattern, words in _OTHERS:
        if re.match(pattern, head, re.DOTALL):
            return words
    has_controls = re.search(rb"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f]", head)
    return "nothing known" if has_controls else "a text file"


def head_kind(head: bytes) -> str:
    """`image`, `video` or "" for a file that begins with these bytes.

    A picture behind some other bytes is mended when it is loaded, but does not count here: a text
    may speak of GIF89a.
    """
    format, start = picture(head)
    if format:
        return "" if start else "image"
    kind = container(head)
    return "video" if kind and (kind != "ogg" or b"\x80theora" in head) else ""


def media_kind(path: str | os.PathLike[str]) -> str:
    """`image`, `video` or "" by content; `unknown` where there is nothing to look at.

    Never raises, and opens no pipe and no device. For names whose ending says nothing (`d`,
    `b.jpg_large`, `c.jpg?width=1200`).
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ""
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except (OSError, ValueError):
        return UNKNOWN
    return head_kind(head) if head else UNKNOWN


def stored_kind(address: str) -> str:
    """The same of an object of a store, of which a few kB are read."""
    try:
        head = stores.read(address, end=HEAD)
    except OSError:
        return UNKNOWN
    return head_kind(head) if head else UNKNOWN


def kind_of(path: Medium) -> str:
    """`image`, `video`, `animated` or `other`, by content.

    animated: a GIF that loops, or a WebP, PNG or AVIF of several frames. Reads a few kB at most.
    OSError, MediaError, or ValueError for a NUL in the path, where the file cannot be opened.
    """
    if not isinstance(path, Blob) and not stat.S_ISREG(path.stat().st_mode):
        return "other"
    with opened(path, str(path), "image") as file:
        head = file.read(HEAD)
        format, start = picture(head)
        if format:
            return "animated" if _moves(file, head, format, start) else "image"
    return "video" if container(head) else "other"


def by_content(sample: Sample) -> Sample:
    """The sample, with its only file as an image or as a video, whichever the content is."""
    question, video = sample.question, sample.video
    # A file that cannot be opened says so when it is loaded.
    with suppress(OSError, ValueError, MediaError):
        if video is not None and not sample.images and kind_of(video) == "image":
            question = question and question.replace("<video>", "<image>")
            return replace(sample, images=(video,), video=None, question=question)
        if video is None and len(sample.images) == 1 and kind_of(sample.images[0]) == "video":
            question = question and question.replace("<image>", "<video>")
            return replace(sample, images=(), video=sample.images[0], question=question)
    return sample


def _moves(file: BinaryIO, head: bytes, format: str, start: int) -> bool:
    """Whether a picture that begins at the offset `start` is animated, by its header."""
    if format == "GIF":
        return any(mark in head for mark in (b"NETSCAPE2.0", b"ANIMEXTS1.0"))
    if format == "WEBP":
        flags = head[start + 20 : start + 21]
        return head[start + 12 : start + 16] == b"VP8X" and bool(flags and flags[0] & 2)
    if format == "PNG":
        at = start + 8
        for _ in range(100):
            file.seek(at)
            chunk = file.read(8)
            if chunk[4:] in (b"acTL", b"IDAT", b""):
                return chunk[4:] == b"acTL"
            at += 12 + int.from_bytes(chunk[:4], "big")
    return format == "AVIF" and head[8:12] == b"avis"
