"""How large an image may be: in pixels by its header, and in memory while it is decoded.

Both are known before anything is decoded. Knows no file and no decoder beyond what each one holds.
"""

from PIL import Image

from trimtok_cli.errors import MediaError
from trimtok_cli.media import jpeg_marks, mend, pixels

# Bytes of memory for one picture at its peak, copies included: 179 million pixels of plain RGB.
MOST_BYTES = 1_500_000_000

# Pixels of an image, and of all frames that are taken of a video.
MOST_PIXELS = 179_000_000

# Pixels of an icon, which Pillow decodes while it opens the file.
MOST_ICON = 8_000_000

# Bytes a pixel that a decoder holds beside the picture itself.
_DECODER = {"WEBP": 12, "JPEG2000": 16, "AVIF": 12, "HEIF": 12, "TIFF": 1}

# TIFF tags.
_TILE_WIDTH = 322
_TILE_LENGTH = 323


def refuse_large(width: int, height: int, name: str, max_pixels: int) -> None:
    """Raises MediaError where the header tells of more than `max_pixels` pixels."""
    if width * height > max_pixels:
        size = f"{width} x {height}"
        raise MediaError(
            f"{name} has {size} pixels, more than the limit of {max_pixels}; make it smaller"
        )


def refuse_costly(image: Image.Image, mended: mend.Mended, name: str) -> None:
    """Raises MediaError for a picture, not decoded yet, that would take too much memory or time.

    A pixel of 16 bits, of floats or with transparency takes more memory than one of plain RGB, so
    fewer of them are allowed.
    """
    area = image.width * image.height
    size = f"{image.width} x {image.height}"
    if mended.jpeg and mended.jpeg.scans * area > jpeg_marks.MOST_SCANNED:
        raise MediaError(
            f"{name} is a JPEG of {mended.jpeg.scans} scans of {size} pixels, which takes "
            "too long; save it again"
        )
    if image.format == "TIFF":
        _refuse_large_tiles(image, name)
    bytes_a_pixel = _bytes_a_pixel(image, mended)
    if area * bytes_a_pixel > MOST_BYTES:
        limit = MOST_BYTES // bytes_a_pixel
        kind = f"{image.format}, {image.mode}"
        raise MediaError(
            f"{name} has {size} pixels, more than the limit of {limit} for its kind ({kind}); "
            "make it smaller"
        )


def _refuse_large_tiles(image: Image.Image, name: str) -> None:
    """Raises MediaError for a TIFF of tiles larger than itself: each tile is decoded whole."""
    width, length = (image.tag_v2.get(tag) for tag in (_TILE_WIDTH, _TILE_LENGTH))
    if not (isinstance(width, int) and isinstance(length, int)):
        return
    if width * length > max(4 * image.width * image.height, 1 << 24):
        raise MediaError(
            f"{name} holds tiles of {width} x {length} pixels, larger than itself; save it again"
        )


def _bytes_a_pixel(image: Image.Image, mended: mend.Mended) -> int:
    """Memory for each pixel at the peak: the decoder, the decoded picture and its copies."""
    total = _DECODER.get(image.format, 0)
    if mended.jpeg and mended.jpeg.progressive:
        total += 6
    if pixels.is_wide(image):
        return total + (2 if image.mode.startswith("I;") else 4) + 8
    if image.has_transparency_data:
        return total + 4 + 4 + 1 + 4 + 4
    return total + (1 if image.mode in ("1", "L", "P") else 4) + 4
