"""What a file is by its first bytes: an image, a video, or neither. Reads 4 kB at most, decodes nothing and never raises.

A search of folders asks this of names whose ending says nothing (`d`, `b.jpg_large`, `c.jpg?width=1200`), so it names only
what the loaders read. Whether the file is sound is the loaders' business.
"""

import os
import stat

UNKNOWN = "unknown"  # empty, missing, or not to be opened by this user: nothing can be said of its content

_SNIFFED = 4096
_IMAGES = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"qoif",
    b"\0\0\0\x0cjP  \r\n", b"\xff\x4f\xff\x51",
)  # fmt: skip
_IMAGE_BRANDS = frozenset(
    (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
)
_NO_PICTURE_BRANDS = frozenset((b"M4A ", b"M4B ", b"M4P ", b"crx "))  # songs, audio books, raw photographs
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_VIDEOS = (b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"0&\xb2u", b"FLV\1")
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)


def media_kind(path: str | os.PathLike[str]) -> str:
    """`image`, `video`, "" for neither, or `unknown` where there is nothing to look at. A pipe or a device is never opened."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ""
        with open(path, "rb") as file:
            head = file.read(_SNIFFED)
    except (OSError, ValueError):
        return UNKNOWN
    return head_kind(head) if head else UNKNOWN


def looks_like_media(path: str | os.PathLike[str]) -> bool:
    return media_kind(path) in ("image", "video")


def head_kind(head: bytes) -> str:
    """`image`, `video` or "", of a file that begins with these bytes."""
    if head.startswith(_IMAGES) or _is_bitmap(head) or _is_pixmap(head) or _is_icon(head):
        return "image"
    if head[:4] == b"RIFF":
        return {b"WEBP": "image", b"AVI ": "video"}.get(head[8:12], "")
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return "image" if brand in _IMAGE_BRANDS else "" if brand in _NO_PICTURE_BRANDS else "video"
    if head[4:8] in _MP4_BOXES or head.startswith(_VIDEOS) or _is_transport_stream(head):
        return "video"
    return "video" if head[:4] == b"OggS" and b"\x80theora" in head else ""


def _is_bitmap(head: bytes) -> bool:
    return head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS


def _is_pixmap(head: bytes) -> bool:
    return head[:1] == b"P" and head[1:2] in b"123456fF" and head[2:3].isspace() and head[3:4] in b"#0123456789 \t\r\n"


def _is_icon(head: bytes) -> bool:
    return head[:4] == b"\0\0\1\0" and 0 < int.from_bytes(head[4:6], "little") < 256 and len(head) >= 22


def _is_transport_stream(head: bytes) -> bool:
    """A sync mark every 188 bytes, or every 192 behind a time stamp of four (.m2ts)."""
    return any(head[start : start + 2 * step + 1 : step] == b"GGG" for start, step in ((0, 188), (4, 192)))
