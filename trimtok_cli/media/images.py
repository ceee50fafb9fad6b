"""An image file -> upright 8-bit RGB pixels, and what the file was before.

The first bytes tell the format, and only Pillow's plugin for that format reads the file. Pixels and
memory are known before anything is decoded. Whatever is wrong with a file is a MediaError of one
sentence. Knows no model, no reader and no command line.
"""

import ctypes
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, UnidentifiedImageError

from trimtok_cli.blobs import Medium
from trimtok_cli.data import Media
from trimtok_cli.errors import MediaError
from trimtok_cli.media import jpeg_marks, kinds, mend, pixels
from trimtok_cli.media.blob_files import medium_of, opened
from trimtok_cli.media.files import as_media_error
from trimtok_cli.media.frame_counts import MOST_FRAMES, count_frames
from trimtok_cli.media.image_limits import MOST_ICON, MOST_PIXELS, refuse_costly, refuse_large
from trimtok_cli.media.pixels import Color

# Suffixes that a search of a folder takes for images. A file that is named may have any suffix.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
    | {".avif", ".heic", ".heif", ".jp2", ".j2k", ".jpx", ".qoi", ".ico"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".pfm"}
)

# Seconds for which browsers show a frame that tells no time, or hardly any.
_USUAL_SECONDS = 0.1

_ANIMATED_FORMATS = ("GIF", "WEBP", "PNG", "AVIF")

# EXIF orientation -> what turns the picture upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Held while Pillow's own pixel limit, a global number, is changed.
_OPENING = threading.Lock()


def load_image(
    path: Medium | str, *, background: Color = (255, 255, 255), max_pixels: int = MOST_PIXELS
) -> tuple[Image.Image, Media]:
    """The image as upright 8-bit RGB, and what the file was before; the first of several frames.

    Transparent pixels are laid on `background`. MediaError for any file that cannot be read, or
    whose picture has more than `max_pixels` pixels or takes too much memory.
    """
    medium, name = medium_of(path)
    with _opened(medium, name) as file:
        return _load(file, name, background, max_pixels)


def animation(
    path: Path, name: str
) -> Iterator[tuple[float, Callable[[], tuple[Image.Image, tuple[str, ...]]]]]:
    """For each frame the seconds it is shown, and a function that returns (upright RGB, warnings).

    The function must be called before the next frame is asked for. A picture that does not move has
    one frame. Errors are as in `load_image`.
    """
    with _opened(path, name) as file:
        image, mended = open_picture(file, name, MOST_PIXELS)
        if image.format not in _ANIMATED_FORMATS or getattr(image, "n_frames", 1) < 2:
            yield _USUAL_SECONDS, lambda: _still(path)
            return
        turn = _TURNS.get(_orientation(image))
        for number in range(min(image.n_frames, MOST_FRAMES)):
            image.seek(number)
            if image.format in ("WEBP", "AVIF"):  # Pillow knows their times only after decoding
                image.load()
            # The default image of a PNG stands in for viewers that cannot show the frames.
            if number == 0 and image.info.get("default_image"):
                continue
            seconds = float(image.info.get("duration") or 0) / 1000
            yield (
                seconds if seconds > 0.01 else _USUAL_SECONDS,
                lambda: _frame(image, mended, turn),
            )


@contextmanager
def _opened(medium: Medium, name: str) -> Iterator[BinaryIO]:
    """The image file, open; whatever goes wrong with it is a MediaError."""
    with as_media_error(name), warnings.catch_warnings():
        # Pillow warns of broken EXIF and the like; it raises what matters.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        with opened(medium, name, "image") as file:
            yield file


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
    """The image, with at most `max_pixels` pixels, its shape kept; 0 stands for no limit."""
    scale = (max_pixels / (image.width * image.height)) ** 0.5 if max_pixels else 1.0
    if scale >= 1:
        return image
    return image.resize(
        (max(int(image.width * scale), 1), max(int(image.height * scale), 1)),
        Image.Resampling.BICUBIC,
    )


def open_picture(file: BinaryIO, name: str, max_pixels: int) -> tuple[Image.Image, mend.Mended]:
    """The picture, not decoded yet, and what is known of its file.

    MediaError where the file is no picture, or one that would take too much.
    """
    head = file.read(kinds.HEAD)
    format, start = kinds.picture(head)
    if not format:
        looks = f"it looks like {kinds.looks_like(head)}"
        raise MediaError(
            f"{name} is not an image that Pillow can read ({looks}); save it as PNG or JPEG"
        )
    mended = mend.mend(file, format, start, name)
    refuse_large(*mended.size, name, max_pixels)
    try:
        image = _open(mended.file, format, name, max_pixels)
    except (MediaError, MemoryError):
        raise
    except Exception:
        if not (mended.jpeg and mended.jpeg.scans):
            raise
        mended = mend.without_jpeg_notes(mended)
        image = _open(mended.file, format, name, max_pixels)
    refuse_large(image.width, image.height, name, max_pixels)
    refuse_costly(image, mended, name)
    return image, mended


def _load(
    file: BinaryIO, name: str, background: Color, max_pixels: int
) -> tuple[Image.Image, Media]:
    image, mended = open_picture(file, name, max_pixels)
    with image:
        orientation, mode = _orientation(image), image.mode
        image.load()
        if mended.jpeg and _is_cut_short(image, mended.jpeg):
            raise ValueError(mend.TOO_SHORT)
        rgb, notes = _to_rgb(image, mended, background)
        turn = _TURNS.get(_orientation(image))  # asked again: Pillow turns a TIFF while it decodes
        if turn is not None:
            rgb = rgb.transpose(turn)
        num_frames = count_frames(image, mended.file)
        if num_frames > 1:
            at_least = "at least " if num_frames == MOST_FRAMES else ""
            first = "page 0" if image.format == "TIFF" else "animated: frame 0"
            notes += (f"{first} of {at_least}{num_frames} was used",)
    # Orientation and transparency were applied; nobody may apply them again.
    rgb.info.clear()
    return rgb, Media(
        width=rgb.width,
        height=rgb.height,
        mode=mode,
        exif_orientation=orientation,
        frames=num_frames,
        warnings=notes,
    )


def _is_cut_short(image: Image.Image, marks: jpeg_marks.Marks) -> bool:
    """Whether pixels of a decoded JPEG are not from the file. Decodes suspicious files again."""
    suspicious = not marks.ended or jpeg_marks.ends_in_grey(image)
    return suspicious and not jpeg_marks.all_there(marks)


def _to_rgb(
    image: Image.Image, mended: mend.Mended, background: Color
) -> tuple[Image.Image, tuple[str, ...]]:
    """The frame of `image` that is decoded now, as RGB, and the warnings about it."""
    bits, deep = mended.bits, mended.deep
    if image.format == "TIFF":
        bits, deep = pixels.tiff_bits(image)
    profile = mended.profile or image.info.get("icc_profile")
    rgb, notes = pixels.to_rgb(image, background, profile=profile, bits=bits, deep=deep)
    return rgb, mended.notes + notes


def _open(file: BinaryIO, format: str, name: str, max_pixels: int) -> Image.Image:
    """The picture by its header alone, read by the one plugin for its format.

    Pixels are limited here only for icons, which Pillow decodes while it opens them.
    """
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
    most_icon = min(MOST_ICON, max_pixels)
    with _OPENING:
        limit = Image.MAX_IMAGE_PIXELS
        # Pillow raises at twice its limit.
        Image.MAX_IMAGE_PIXELS = most_icon // 2 if format == "ICO" else None
        try:
            return Image.open(file, formats=[format])
        except UnidentifiedImageError:
            raise ValueError("its header is broken or of a rare kind") from None
        except Image.DecompressionBombError:
            raise MediaError(
                f"{name} is an icon of more pixels than the limit of {most_icon}; make it smaller"
            ) from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@cache
def _silence_pillow() -> None:
    """Keeps Pillow's log off standard error unless asked for; Pillow raises what matters."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())


@cache
def _silence_libtiff() -> None:
    """Keeps libtiff from printing to standard error; Pillow raises what matters.

    A libtiff whose functions cannot be reached, being built in, still prints.
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
