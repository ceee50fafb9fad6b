"""An image file -> upright 8-bit RGB pixels, and what the file was before.

The file is told by its first bytes and read by that one plugin of Pillow; what it would take is
known before anything is decoded. Knows no model, no reader and no command line; whatever is wrong
with a file is a MediaError of one sentence.
"""

import ctypes
import logging
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, UnidentifiedImageError

from trimtok_cli.data import Media
from trimtok_cli.errors import MediaError
from trimtok_cli.media import kinds, mend, pixels
from trimtok_cli.media.files import blamed, refuse_irregular
from trimtok_cli.media.pixels import Color
from trimtok_cli.wording import shortened

# What a search of a folder takes for an image. A file that is named explicitly may have any suffix.
IMAGE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".avif",
        ".heic",
        ".heif",
    }
    | {".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".qoi", ".ico"}
)

# of memory for one picture at its peak, copies included: 179 million pixels of plain RGB
MOST_BYTES = 1_500_000_000

MOST_PIXELS = 179_000_000  # of an image, and of all frames that are taken of a video

_USUAL = 0.1  # seconds: for how long browsers show a frame that tells no time, or hardly any

MOST_FRAMES = 10_000  # further ones are not counted

_ICON = 8_000_000  # pixels: Pillow decodes an icon while it opens it

# Bytes a pixel that a decoder holds beside the picture itself.
_DECODER = {"WEBP": 12, "JPEG2000": 16, "AVIF": 12, "HEIF": 12, "TIFF": 1}

_SEVERAL_BUT_STILL = (
    "MPO",
    "HEIF",
)  # phone photos: their further images are previews and depth maps, not frames

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_OPENING = threading.Lock()  # Pillow's own pixel limit is one global number


def load_image(
    path: Path | str, *, background: Color = (255, 255, 255), max_pixels: int = MOST_PIXELS
) -> tuple[Image.Image, Media]:
    """The image as upright RGB, transparent pixels laid on `background`; of several frames or pages
    the first.
    """
    path, name = Path(path), shortened(str(path), 300)
    with blamed(name), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", module=r"PIL\."
        )  # of broken EXIF and the like; what matters raises
        refuse_irregular(path.stat(), name, "image")
        with path.open("rb") as file:
            return _load(file, name, background, max_pixels)


def animation(
    path: Path, name: str
) -> Iterator[tuple[float, Callable[[], tuple[Image.Image, tuple[str, ...]]]]]:
    """Of each frame how long it is shown, in seconds, and a function that gives it as upright RGB,
    with its warnings.

    Call it before the next frame is asked for. A picture that does not move has one frame. Errors
    are as in `load_image`.
    """
    with blamed(name), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        refuse_irregular(path.stat(), name, "image")
        with path.open("rb") as file:
            image, mended = open_picture(file, name, MOST_PIXELS)
            if (
                image.format not in ("GIF", "WEBP", "PNG", "AVIF")
                or getattr(image, "n_frames", 1) < 2
            ):
                yield _USUAL, lambda: _still(path)
                return
            turn = _TURNS.get(_orientation(image))
            for number in range(min(image.n_frames, MOST_FRAMES)):
                image.seek(number)
                if image.format in ("WEBP", "AVIF"):  # only then does Pillow know
                    image.load()
                if number == 0 and image.info.get(
                    "default_image"
                ):  # shown by those who cannot show the others
                    continue
                seconds = float(image.info.get("duration") or 0) / 1000
                yield seconds if seconds > 0.01 else _USUAL, lambda: _frame(image, mended, turn)


def _still(path: Path) -> tuple[Image.Image, tuple[str, ...]]:
    image, media = load_image(path)
    return image, media.warnings


def _frame(
    image: Image.Image, mended: mend.Mended, turn: Image.Transpose | None
) -> tuple[Image.Image, tuple[str, ...]]:
    image.load()
    rgb, notes = _to_rgb(image, mended, (255, 255, 255))
    return rgb if turn is None else rgb.transpose(turn), notes


def shrunk(image: Image.Image, max_pixels: int) -> Image.Image:
    """The image with at most `max_pixels` pixels and its own shape; as it is where it has no more,
    or for 0.
    """
    scale = (max_pixels / (image.width * image.height)) ** 0.5 if max_pixels else 1.0
    if scale >= 1:
        return image
    return image.resize(
        (max(int(image.width * scale), 1), max(int(image.height * scale), 1)),
        Image.Resampling.BICUBIC,
    )


def open_picture(file: BinaryIO, name: str, max_pixels: int) -> tuple[Image.Image, mend.Mended]:
    """The picture, not decoded yet, and what is known of its file. MediaError where it is none or
    would take too much.
    """
    head = file.read(kinds.HEAD)
    format, start = kinds.picture(head)
    if not format:
        what = f"it looks like {kinds.looks_like(head)}"
        raise MediaError(
            f"{name} is not an image that Pillow can read ({what}); save it as PNG or JPEG"
        )
    mended = mend.mend(file, format, start, name)
    _refuse_large(*mended.size, name, max_pixels)
    try:
        image = _open(mended.file, format, name, max_pixels)
    except (MediaError, MemoryError):
        raise
    except Exception:
        if not (mended.jpeg and mended.jpeg.scans):
            raise
        mended = _without_notes(mended)
        image = _open(mended.file, format, name, max_pixels)
    _refuse_large(image.width, image.height, name, max_pixels)
    _refuse_costly(image, mended, name)
    return image, mended


def _load(
    file: BinaryIO, name: str, background: Color, max_pixels: int
) -> tuple[Image.Image, Media]:
    image, mended = open_picture(file, name, max_pixels)
    with image:
        orientation, mode = _orientation(image), image.mode
        image.load()
        if (
            mended.jpeg
            and (not mended.jpeg.ended or mend.ends_in_grey(image))
            and not mend.all_there(mended.jpeg)
        ):
            raise ValueError("the picture ends too soon")
        rgb, notes = _to_rgb(image, mended, background)
        turn = _TURNS.get(_orientation(image))  # asked again: Pillow turns a TIFF while it decodes
        if turn is not None:
            rgb = rgb.transpose(turn)
        frames = _count_frames(image, mended.file)
        if frames > 1:
            of = f"0 of {'at least ' if frames == MOST_FRAMES else ''}{frames} was used"
            notes += (f"page {of}" if image.format == "TIFF" else f"animated: frame {of}",)
    # its orientation and transparency are done with, nobody shall apply them again
    rgb.info.clear()
    return rgb, Media(rgb.width, rgb.height, mode, orientation, frames, notes)


def _to_rgb(
    image: Image.Image, mended: mend.Mended, background: Color
) -> tuple[Image.Image, tuple[str, ...]]:
    """What is decoded of `image` now, as RGB, and all that is to be said of it."""
    bits, deep = pixels.tiff_bits(image) if image.format == "TIFF" else (mended.bits, mended.deep)
    profile = mended.profile or image.info.get("icc_profile")
    rgb, notes = pixels.to_rgb(image, background, profile=profile, bits=bits, deep=deep)
    return rgb, mended.notes + notes


def _without_notes(mended: mend.Mended) -> mend.Mended:
    data = mend.without_notes(mended.jpeg.data) + (b"" if mended.jpeg.ended else b"\xff\xd9")
    return replace(
        mended,
        file=BytesIO(data),
        notes=(*mended.notes, "its notes (EXIF, profile) are damaged and were left out"),
    )


def _open(file: BinaryIO, format: str, name: str, max_pixels: int) -> Image.Image:
    """The file's header, read by the plugin for its kind; no limit on pixels yet, but for icons."""
    if format == "HEIF":
        with suppress(ImportError):
            import pillow_heif

            pillow_heif.register_heif_opener()
    Image.init()
    if format == "TIFF":
        _silence_libtiff()
        _silence_pillow()
    if format not in Image.OPEN:
        if format == "HEIF":
            raise MediaError(
                f"{name} is HEIC, which needs one more package; run: pip install pillow-heif"
            )
        raise MediaError(
            f"{name} is {format}, which this Pillow cannot read; install a newer Pillow or "
            "save it as PNG or JPEG"
        )
    file.seek(0)
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = (
            Image.MAX_IMAGE_PIXELS,
            min(_ICON, max_pixels) // 2 if format == "ICO" else None,
        )
        try:
            return Image.open(file, formats=[format])
        except UnidentifiedImageError:
            raise ValueError("its header is broken or of a rare kind") from None
        except Image.DecompressionBombError:
            most = min(_ICON, max_pixels)
            raise MediaError(
                f"{name} is an icon of more pixels than the limit of {most}; make it smaller"
            ) from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _refuse_large(width: int, height: int, name: str, max_pixels: int) -> None:
    """By the header's word, before anything is decoded."""
    if width * height > max_pixels:
        size = f"{width} x {height}"
        raise MediaError(
            f"{name} has {size} pixels, more than the limit of {max_pixels}; make it smaller "
            "or raise the limit"
        )


def _refuse_costly(image: Image.Image, mended: mend.Mended, name: str) -> None:
    """A pixel of 16 bits, of floats or with transparency takes more memory than one of plain RGB,
    and so may be fewer.
    """
    area, size = image.width * image.height, f"{image.width} x {image.height}"
    if mended.jpeg and mended.jpeg.scans * area > mend.MOST_SCANNED:
        raise MediaError(
            f"{name} is a JPEG of {mended.jpeg.scans} scans of {size} pixels, which takes "
            "too long; save it again"
        )
    if image.format == "TIFF":
        tags = image.tag_v2
        tile = [tags.get(number) for number in (322, 323)]
        if all(isinstance(side, int) for side in tile) and tile[0] * tile[1] > max(
            4 * area, 1 << 24
        ):
            raise MediaError(
                f"{name} holds tiles of {tile[0]} x {tile[1]} pixels, larger than itself; "
                "save it again"
            )
    each = _DECODER.get(image.format, 0) + (6 if mended.jpeg and mended.jpeg.progressive else 0)
    if pixels.is_wide(image):
        each += (2 if image.mode.startswith("I;") else 4) + 8
    elif image.has_transparency_data:
        each += 4 + 4 + 1 + 4 + 4
    else:
        each += (1 if image.mode in ("1", "L", "P") else 4) + 4
    if area * each > MOST_BYTES:
        most = MOST_BYTES // each
        kind = f"{image.format}, {image.mode}"
        raise MediaError(
            f"{name} has {size} pixels, more than the limit of {most} for its kind ({kind}); "
            "make it smaller"
        )


@cache
def _silence_pillow() -> None:
    """Keeps what Pillow logs from standard error where nobody has asked for logs: it raises what
    matters.
    """
    logging.getLogger("PIL").addHandler(logging.NullHandler())


@cache
def _silence_libtiff() -> None:
    """Keeps libtiff from printing to standard error; Pillow raises what matters. Where it is built
    in, it prints.
    """
    with suppress(Exception):
        library = ctypes.CDLL(Image.core.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            function = getattr(library, name)
            function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
            function(None)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where the EXIF is missing, broken or says anything else."""
    with suppress(Exception):
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value if value in _TURNS else 1
    return 1


def _count_frames(image: Image.Image, file: BinaryIO) -> int:
    """From the file's own lists, up to MOST_FRAMES: Pillow would take minutes over a million.
    Damage further on is no matter.
    """
    if image.format in _SEVERAL_BUT_STILL:
        return 1
    with suppress(Exception):
        if image.format == "TIFF":
            return max(_tiff_pages(file), 1)
        return max(_gif_frames(file) if image.format == "GIF" else getattr(image, "n_frames", 1), 1)
    return 1


def _tiff_pages(file: BinaryIO) -> int:
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:1] == b"I" else ">"
    big = 43 in head[2:4]
    offset, seen = (
        struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)[0],
        set(),
    )
    count, entry, after = ("Q", 20, "Q") if big else ("H", 12, "I")
    while offset and offset not in seen and len(seen) < MOST_FRAMES:
        file.seek(offset)
        tags = file.read(struct.calcsize(order + count))
        if len(tags) < struct.calcsize(order + count):
            break
        seen.add(offset)
        file.seek(struct.unpack(order + count, tags)[0] * entry, 1)
        link = file.read(struct.calcsize(order + after))
        offset = (
            struct.unpack(order + after, link)[0]
            if len(link) == struct.calcsize(order + after)
            else 0
        )
    return len(seen)


def _gif_frames(file: BinaryIO) -> int:
    file.seek(10)
    flags, _, _ = file.read(3)
    file.seek(3 << (flags & 7) + 1 if flags & 128 else 0, 1)
    frames = 0
    while frames < MOST_FRAMES:
        mark = file.read(1)
        if mark == b"!":
            file.seek(1, 1)
        elif mark == b",":
            place = file.read(9)
            file.seek((3 << (place[8] & 7) + 1 if place[8] & 128 else 0) + 1, 1)
            frames += 1
        else:
            break
        while size := file.read(1)[0]:
            file.seek(size, 1)
    return frames
