"""A decoded picture of any mode -> 8-bit RGB as a browser shows it, and notes about the way there.

Colour profiles are applied (PNG's gAMA and cHRM chunks are not), transparent pixels laid on a
background, grey of more than 8 bits brought to 8. Wide pixels are converted band by band, so that
no whole picture is copied in wide numbers. Knows no file.
"""

from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from itertools import product
from typing import Any

from PIL import Image

Color = tuple[int, int, int]

_Notes = tuple[str, ...]

# Pixels of a band.
_BAND = 4_000_000

# Bits that cameras, scanners and X-ray machines put into 16.
_DEPTHS = (8, 10, 12, 14)

_GREY = ("1", "L", "LA", "La")

# TIFF tags.
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_MAX_SAMPLE_VALUE = 281

# A value of _PHOTOMETRIC.
_WHITE_IS_ZERO = 0

_NO_PROFILE = "its colour profile cannot be used; its colours are taken for sRGB"


def to_rgb(
    image: Image.Image,
    background: Color,
    *,
    profile: bytes | None = None,
    bits: int = 0,
    deep: bool = False,
) -> tuple[Image.Image, _Notes]:
    """A new RGB image, and the warnings about it.

    profile: the ICC profile; bits: how many are used of a grey sample, 0 where the file does not
    say; deep: the file has 16 bits a colour, of which Pillow keeps the upper 8.
    """
    if is_wide(image):
        grey, clear, notes = _grey(image, bits)
        rgb, profile_notes = _srgb(grey, None if notes else profile)
        if clear is not None:
            rgb.paste(background, mask=clear)
        return rgb, notes + profile_notes
    notes = _darkness(image) if deep else ()
    if not image.has_transparency_data:
        rgb, profile_notes = _srgb(image, profile)
        return rgb, notes + profile_notes
    # Pillow brings the pixels of a 16-bit PNG to 8 bits, but not the colour that is clear.
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in key)
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    rgb, profile_notes = _srgb(rgba.convert("L" if image.mode in _GREY else "RGB"), profile)
    notes += profile_notes
    # A screen grab may have an alpha that nobody filled in.
    if image.format in ("BMP", "ICO") and alpha.getextrema() == (0, 0):
        return rgb, (*notes, "its alpha is 0 everywhere and was left out")
    blended = Image.new("RGB", image.size, background)
    blended.paste(rgb, mask=alpha)
    return blended, notes


def is_wide(image: Image.Image) -> bool:
    """Whether a pixel is one number of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def _darkness(image: Image.Image) -> _Notes:
    """A note where 16 bits a colour lost most of what they held.

    Pillow keeps the upper half, so little is left where only the lower half was used.
    """
    extrema = image.getextrema()
    if not isinstance(extrema[0], tuple):
        return ()
    brightest = max(high for _, high in extrema[:3])
    if brightest >= 64:
        return ()
    used = brightest.bit_length() + 8
    return (f"16 bits a colour, of which it uses {used}: it is read very dark",)


# Grey of 16 bits, 32 bits or floats


def _grey(image: Image.Image, bits: int) -> tuple[Image.Image, Image.Image | None, _Notes]:
    """8-bit grey, the mask of clear pixels (None: no pixel is clear), and notes.

    bits: as in `to_rgb`. Only pixels of 16 bits have a known white; others are stretched, with a
    note.
    """
    import numpy as np  # here, as few images need it

    low, high, notes = _black_and_white(image, bits)
    key = image.info.get("transparency")
    grey = np.empty((image.height, image.width), dtype=np.uint8)
    clear = np.zeros_like(grey) if isinstance(key, int) else None
    for top, values in _bands(image):
        part = slice(top, top + len(values))
        if isinstance(high, int):
            whole_numbers = values.astype(np.int64) * 255 + high // 2
            grey[part] = whole_numbers // high  # rounds to nearest
        else:
            unit = (values.astype(np.float64) - low) / ((high - low) or 1.0)
            grey[part] = np.rint(np.nan_to_num(unit).clip(0, 1) * 255)
        if clear is not None:
            clear[part] = np.where(values == key, 255, 0)
    # Pillow turns such a picture round in 8 bits only.
    if image.format == "TIFF" and _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:
        np.subtract(255, grey, out=grey)
    return Image.fromarray(grey), None if clear is None else Image.fromarray(clear), notes


def _black_and_white(image: Image.Image, bits: int) -> tuple[float, float, _Notes]:
    """The values that become 0 and 255, and notes. Ints where the picture has 16 bits."""
    low, high, finite = _range(image)
    if image.mode == "F" or not finite or low < 0 or high > 65535:
        if image.mode == "F" and low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        type_name = "float" if image.mode == "F" else "32-bit"
        return low, high, (f"{type_name} pixels rescaled from {low:g}..{high:g}",)
    if 0 < bits < 16 and high < 1 << bits:
        return 0, (1 << bits) - 1, ()
    used = next((depth for depth in _DEPTHS if 0 < high < 1 << depth), 16)
    white = (1 << used) - 1
    if used == 16:
        return 0, white, ()
    return 0, white, (f"16-bit pixels use {used} bits and were stretched from 0..{white}",)


def _range(image: Image.Image) -> tuple[float, float, bool]:
    """The least and the greatest finite value, and whether all values are finite."""
    import numpy as np

    lows, highs = [], []
    all_finite = True
    for _, values in _bands(image):
        finite = np.isfinite(values)
        all_finite &= bool(finite.all())
        if finite.any():
            values = values if all_finite else values[finite]
            lows.append(values.min())
            highs.append(values.max())
    if not lows:
        raise ValueError("no pixel is a finite number")
    return float(min(lows)), float(max(highs)), all_finite


def _bands(image: Image.Image) -> Iterator[tuple[int, Any]]:
    """(top row, values) of the picture's bands; values (rows, columns), a numpy array."""
    import numpy as np

    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield top, np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))


def _tag(image: Image.Image, number: int) -> Any:
    return getattr(image, "tag_v2", {}).get(number)


def tiff_bits(image: Image.Image) -> tuple[int, bool]:
    """(bits, deep) of a TIFF, as `to_rgb` takes them."""
    depths, greatest = _tag(image, _BITS_PER_SAMPLE), _tag(image, _MAX_SAMPLE_VALUE)
    if isinstance(depths, int):
        depths = (depths,)
    if not isinstance(depths, tuple) or not depths:
        return 0, False
    if isinstance(greatest, tuple):
        greatest = greatest[0] if greatest else None
    bits = depths[0] if depths[0] < 16 else 0
    if isinstance(greatest, int) and 0 < greatest.bit_length() < 16 and greatest > 0:
        bits = greatest.bit_length()
    return bits, len(depths) > 2 and depths[0] == 16


# Colour profiles


def _srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, _Notes]:
    """The picture in sRGB, and notes.

    A profile that is broken, or of another kind than the pixels, is not applied, with a note.
    """
    if not profile:
        return image.convert("RGB"), ()
    space = profile[16:20]
    mode = {b"GRAY": "L", b"RGB ": "RGB", b"CMYK": "CMYK"}.get(space, "")
    fits = {
        "L": image.mode in _GREY,
        "RGB": image.mode not in ("CMYK", "LAB"),
        "CMYK": image.mode == "CMYK",
    }.get(mode, False)
    if not fits:
        return image.convert("RGB"), (_NO_PROFILE,)
    try:
        change = _to_srgb(profile, mode)
    except (OSError, ValueError, TypeError):  # all that lcms raises for broken profiles
        return image.convert("RGB"), (_NO_PROFILE,)
    if change is None:
        return image.convert("RGB"), ()
    return change.apply(image if image.mode == mode else image.convert(mode)), ()


# The pictures of a folder mostly share one profile.
@lru_cache(maxsize=4)
def _to_srgb(profile: bytes, mode: str) -> Any:
    """The transform from pixels of `mode` to sRGB; None where the profile is sRGB already."""
    from PIL import ImageCms

    source, target = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
    try:
        change = ImageCms.buildTransform(
            source,
            target,
            mode,
            "RGB",
            ImageCms.Intent.PERCEPTUAL,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except ImageCms.PyCMSError as error:
        raise ValueError(str(error)) from error
    return None if mode != "CMYK" and _changes_nothing(change, mode) else change


def _changes_nothing(change: Any, mode: str) -> bool:
    """Whether a profile is sRGB under any name: no colour moves by more than a rounding."""
    colors: list[Any] = list(range(0, 256, 5))
    if mode == "RGB":
        colors = list(product(range(0, 256, 51), repeat=3))
    probe = Image.new(mode, (len(colors), 1))
    probe.putdata(colors)
    before, after = probe.convert("RGB").tobytes(), change.apply(probe).tobytes()
    return max(abs(one - other) for one, other in zip(before, after, strict=True)) <= 2
