"""An image file -> upright 8-bit RGB pixels, and what the file was before.

Pillow alone would turn 16-bit grey white, show the colour hidden below transparent pixels and leave photos lying on their
side. Knows no model, no reader and no command line; whatever is wrong with a file is a MediaError of one sentence.
"""

import stat
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, UnidentifiedImageError

from trimtok_cli.data import Media
from trimtok_cli.errors import MediaError

# What a search of a folder takes for an image. A file that is named explicitly may have any suffix.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
    | {".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".qoi", ".ico"}
)

# An allow-list: Pillow would start Ghostscript for an EPS file, whatever its name.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM", "QOI", "ICO")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_SEVERAL_BUT_STILL = ("MPO", "HEIF")  # phone photos: their further images are previews and depth maps, not frames

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

Color = tuple[int, int, int]


def load_image(path: Path, *, background: Color = (255, 255, 255), max_pixels: int = 179_000_000) -> tuple[Image.Image, Media]:
    """The image as upright RGB, transparent pixels laid on `background`; of several frames or pages the first."""
    name = str(path) if len(str(path)) <= 300 else f"{str(path)[:300]}..."  # base64 data where a path should be
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # of broken EXIF and the like; what matters raises
            return _load(path, name, background, max_pixels)
    except MediaError:
        raise
    except FileNotFoundError as error:
        raise MediaError(f"{name} does not exist; check its name and folder") from error
    except PermissionError as error:
        raise MediaError(f"{name} may not be read by this user; change its permissions") from error
    except MemoryError as error:
        raise MediaError(f"{name} does not fit into memory; make it smaller") from error
    except Exception as error:  # a broken file makes Pillow raise anything: struct.error, SyntaxError, zlib.error ...
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        if isinstance(error, OSError) and error.errno:  # Pillow's own OSErrors carry no number
            raise MediaError(f"{name} cannot be read ({error.strerror}); check the path") from error
        raise MediaError(f"{name} is damaged or cut short ({reason}); fetch or save it again") from error


def shrunk(image: Image.Image, max_pixels: int) -> Image.Image:
    """The image with at most `max_pixels` pixels and its own shape; as it is where it has no more, or for 0."""
    scale = (max_pixels / (image.width * image.height)) ** 0.5 if max_pixels else 1.0
    if scale >= 1:
        return image
    return image.resize((max(int(image.width * scale), 1), max(int(image.height * scale), 1)), Image.Resampling.BICUBIC)


def _load(path: Path, name: str, background: Color, max_pixels: int) -> tuple[Image.Image, Media]:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(f"{name} is a folder, not an image; name the files in it")
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait forever
        raise MediaError(f"{name} is not a regular file; name an image file")
    if not status.st_size:
        raise MediaError(f"{name} is empty (0 bytes); fetch or save it again")
    with path.open("rb") as file, _open(file, name) as image:
        if image.width * image.height > max_pixels:  # the header's word, before anything is decoded
            size = f"{image.width} x {image.height}"
            raise MediaError(f"{name} has {size} pixels, more than the limit of {max_pixels}; make it smaller or raise the limit")
        orientation, mode = _orientation(image), image.mode
        image.load()
        rgb, notes = _to_rgb(image, background)
        turn = _TURNS.get(_orientation(image))  # asked again: Pillow turns a TIFF while it decodes
        if turn is not None:
            rgb = rgb.transpose(turn)
        frames = _count_frames(image)
        if frames > 1:
            notes += (f"page 0 of {frames} was used" if image.format == "TIFF" else f"animated: frame 0 of {frames} was used",)
    rgb.info.clear()  # its orientation and transparency are done with, nobody shall apply them again
    return rgb, Media(rgb.width, rgb.height, mode, orientation, frames, notes)


def _open(file: BinaryIO, name: str) -> Image.Image:
    """The file's header, read by one of the allowed plugins; no limit on pixels yet."""
    head = file.read(16)
    file.seek(0)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        with suppress(ImportError):
            import pillow_heif

            pillow_heif.register_heif_opener()
    Image.init()
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=[format for format in _FORMATS if format in Image.OPEN])
        except UnidentifiedImageError as error:
            if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and "HEIF" not in Image.OPEN:
                raise MediaError(f"{name} is HEIC, which needs one more package; run: pip install pillow-heif") from error
            start = f"it starts with {head!r}"
            raise MediaError(f"{name} is not an image that Pillow can read ({start}); save it as PNG or JPEG") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where the EXIF is missing, broken or says anything else."""
    with suppress(Exception):
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value if value in _TURNS else 1
    return 1


def _count_frames(image: Image.Image) -> int:
    """Counting walks through the file and forgets the pixels, so it comes last; damage further on is no matter for frame 0."""
    with suppress(Exception):
        return 1 if image.format in _SEVERAL_BUT_STILL else getattr(image, "n_frames", 1)
    return 1


def _to_rgb(image: Image.Image, background: Color) -> tuple[Image.Image, tuple[str, ...]]:
    """A new RGB image and the warnings about it."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _scaled(image, background)
    if not image.has_transparency_data:
        return image.convert("RGB"), ()
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:  # a 16-bit PNG: Pillow reduced the pixels, but not the colour that is clear
        image.info["transparency"] = tuple(value >> 8 for value in key)
    clear = image.convert("RGBA")
    rgb = Image.new("RGB", image.size, background)
    rgb.paste(clear, mask=clear.getchannel("A"))
    return rgb, ()


def _scaled(image: Image.Image, background: Color) -> tuple[Image.Image, tuple[str, ...]]:
    """Grey of 16 bits, 32 bits or floats. Only 16 bits have a known white; others are stretched, and that is said."""
    import numpy as np  # here, as few images need it

    values = np.asarray(image)
    notes: tuple[str, ...] = ()
    if image.mode != "F" and values.min() >= 0 and values.max() <= 65535:
        grey = (values.astype(np.uint32) + 128) // 257  # rounds to nearest: 65535 = 255 * 257
    else:
        finite = values[np.isfinite(values)]
        if not finite.size:
            raise ValueError("no pixel is a finite number")
        low, high = float(finite.min()), float(finite.max())
        if image.mode == "F" and low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        unit = (values.astype(np.float64) - low) / ((high - low) or 1.0)
        grey = np.rint(np.nan_to_num(unit).clip(0, 1) * 255)
        notes = (f"{'float' if image.mode == 'F' else '32-bit'} pixels rescaled from {low:g}..{high:g}",)
    rgb = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    key = image.info.get("transparency")
    if isinstance(key, int):
        rgb.paste(background, mask=Image.fromarray(np.where(values == key, 255, 0).astype(np.uint8)))
    return rgb, notes
