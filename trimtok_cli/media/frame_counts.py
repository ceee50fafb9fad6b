"""How many frames or pages an image file has, by the file's own lists: Pillow would take minutes
over a million of them. Decodes nothing.
"""

import struct
from contextlib import suppress
from typing import BinaryIO

from PIL import Image

# Frames or pages of a file; further ones are not counted.
MOST_FRAMES = 10_000

# Photos of phones: their further images are previews and depth maps, not frames.
_SEVERAL_BUT_STILL = ("MPO", "HEIF")


def count_frames(image: Image.Image, file: BinaryIO) -> int:
    """Frames or pages of an opened image, 1 to MOST_FRAMES; 1 where the lists are damaged."""
    if image.format in _SEVERAL_BUT_STILL:
        return 1
    with suppress(Exception):
        if image.format == "TIFF":
            return max(_tiff_pages(file), 1)
        if image.format == "GIF":
            return max(_gif_frames(file), 1)
        return max(getattr(image, "n_frames", 1), 1)
    return 1


def _tiff_pages(file: BinaryIO) -> int:
    """Pages in the chain of a TIFF's directories, up to where the chain ends, breaks or closes."""
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:1] == b"I" else ">"
    is_big = 43 in head[2:4]
    count_type, entry_size, offset_type = ("Q", 20, "Q") if is_big else ("H", 12, "I")
    (offset,) = struct.unpack_from(order + offset_type, head, 8 if is_big else 4)
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) < MOST_FRAMES:
        file.seek(offset)
        num_entries = _number(file, order + count_type)
        if num_entries is None:
            break
        seen.add(offset)
        file.seek(num_entries * entry_size, 1)
        offset = _number(file, order + offset_type)
    return len(seen)


def _number(file: BinaryIO, format: str) -> int | None:
    """The next number of a file, in a format of `struct`; None at the end of the file."""
    size = struct.calcsize(format)
    data = file.read(size)
    return struct.unpack(format, data)[0] if len(data) == size else None


def _gif_frames(file: BinaryIO) -> int:
    file.seek(10)
    flags, _, _ = file.read(3)
    file.seek(_palette_size(flags), 1)
    num_frames = 0
    while num_frames < MOST_FRAMES:
        mark = file.read(1)
        if mark == b"!":  # an extension
            file.seek(1, 1)
        elif mark == b",":  # a frame
            descriptor = file.read(9)
            file.seek(_palette_size(descriptor[8]) + 1, 1)
            num_frames += 1
        else:
            break
        while size := file.read(1)[0]:
            file.seek(size, 1)
    return num_frames


def _palette_size(flags: int) -> int:
    """Bytes of the colour table that a GIF's flags announce; 0 for none."""
    return 3 << (flags & 7) + 1 if flags & 128 else 0
