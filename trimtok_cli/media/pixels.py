"""A decoded picture of any mode -> 8-bit RGB as a browser shows it, and what had to be decided on
the way.

Colour profiles are applied (PNG's gAMA and cHRM chunks are not), transparent pixels laid on a
background, grey of more than 8 bits brought to 8. Works in bands where a picture would otherwise be
copied in wide numbers. Knows no file.
"""

from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from typing import Any

from PIL import Image

Color = tuple[int, int, int]

_Notes = tuple[str, ...]

_BAND = 4_000_000  # pixels

_DEPTHS = (8, 10, 12, 14)  # bits that cameras, scanners and X-ray machines put into 16

_GREY = ("1", "L", "LA", "La")

_NO_PROFILE = "its colour profile cannot be used; its colours are taken for sRGB"


def to_rgb(
    image: Image.Image,
    background: Color,
    *,
    profile: bytes | None = None,
    bits: int = 0,
    deep: bool = False,
) -> tuple[Image.Image, _Notes]:
    """A new RGB image and the warnings about it. `bits`: those used of a grey sample, 0 if the file
    does not say.
    """
    if is_wide(image):
        grey, clear, notes = _grey(image, bits)
        rgb, more = _srgb(grey, None if notes else profile)
        if clear is not None:
            rgb.paste(background, mask=clear)
        return rgb, notes + more
    notes = _darkness(image) if deep else ()
    if not image.has_transparency_data:
        rgb, more = _srgb(image, profile)
        return rgb, notes + more
    key = image.info.get("transparency")
    if (
        isinstance(key, tuple) and max(key) > 255
    ):  # a 16-bit PNG: Pillow reduced the pixels, but not the colour that is clear
        image.info["transparency"] = tuple(value >> 8 for value in key)
    clear = image.convert("RGBA")
    alpha = clear.getchannel("A")
    rgb, more = _srgb(clear.convert("L" if image.mode in _GREY else "RGB"), profile)
    if image.format in ("BMP", "ICO") and alpha.getextrema() == (
        0,
        0,
    ):  # nobody filled it in: a screen grab
        return rgb, (*notes, *more, "its alpha is 0 everywhere and was left out")
    laid = Image.new("RGB", image.size, background)
    laid.paste(rgb, mask=alpha)
    return laid, notes + more


def is_wide(image: Image.Image) -> bool:
    """Whether a pixel is one number of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def _darkness(image: Image.Image) -> _Notes:
    """Pillow keeps the upper half of 16 bits a colour; where only the lower half was used, little
    is left.
    """
    extrema = image.getextrema()
    if not isinstance(extrema[0], tuple):
        return ()
    brightest = max(high for _, high in extrema[:3])
    used = brightest.bit_length() + 8
    return (
        (f"16 bits a colour, of which it uses {used}: it is read very dark",)
        if brightest < 64
        else ()
    )


# Grey of 16 bits, 32 bits or floats


def _grey(image: Image.Image, bits: int) -> tuple[Image.Image, Image.Image | None, _Notes]:
    """8-bit grey, the mask of what is clear, and notes. Only 16 bits have a known white; others are
    stretched, which is said.
    """
    import numpy as np  # here, as few images need it

    low, high, whole = _range(image)
    notes: _Notes = ()
    if image.mode != "F" and whole and low >= 0 and high <= 65535:
        told = 0 < bits < 16 and high < 1 << bits
        used = bits if told else next((depth for depth in _DEPTHS if 0 < high < 1 << depth), 16)
        low, high = 0, (1 << used) - 1
        if used < 16 and not told:
            notes = (f"16-bit pixels use {used} bits and were stretched from 0..{high}",)
    else:
        if image.mode == "F" and low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        notes = (
            f"{'float' if image.mode == 'F' else '32-bit'} pixels rescaled from {low:g}..{high:g}",
        )
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
    if (
        image.format == "TIFF" and _tag(image, 262) == 0
    ):  # 0 is white; Pillow turns it round in 8 bits only
        np.subtract(255, grey, out=grey)
    return Image.fromarray(grey), None if clear is None else Image.fromarray(clear), notes


def _range(image: Image.Image) -> tuple[float, float, bool]:
    """Least and greatest finite value, and whether all are finite."""
    import numpy as np

    lows, highs, whole = [], [], True
    for _, values in _bands(image):
        finite = np.isfinite(values)
        whole &= bool(finite.all())
        if finite.any():
            values = values if whole else values[finite]
            lows.append(values.min())
            highs.append(values.max())
    if not lows:
        raise ValueError("no pixel is a finite number")
    return float(min(lows)), float(max(highs)), whole


def _bands(image: Image.Image) -> Iterator[tuple[int, Any]]:
    import numpy as np

    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield top, np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))


def _tag(image: Image.Image, number: int) -> Any:
    return getattr(image, "tag_v2", {}).get(number)


def tiff_bits(image: Image.Image) -> tuple[int, bool]:
    """How many bits of a grey sample a TIFF says are used (0: not said), and whether its colours
    have 16 bits each.
    """
    depth, greatest = _tag(image, 258), _tag(image, 281)
    if isinstance(depth, int):
        depth = (depth,)
    if not isinstance(depth, tuple) or not depth:
        return 0, False
    if isinstance(greatest, tuple):
        greatest = greatest[0] if greatest else None
    told = int(greatest).bit_length() if isinstance(greatest, int) and greatest > 0 else 0
    return (told if 0 < told < 16 else depth[0] if depth[0] < 16 else 0), len(depth) > 2 and depth[
        0
    ] == 16


# Colour profiles


def _srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, _Notes]:
    """The picture in sRGB. A profile that is broken, of another kind than the pixels, or sRGB
    already is left alone.
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
    except (OSError, ValueError, TypeError):  # lcms raises no other for what is no profile
        return image.convert("RGB"), (_NO_PROFILE,)
    return image.convert("RGB") if change is None else change.apply(
        image if image.mode == mode else image.convert(mode)
    ), ()


@lru_cache(maxsize=4)  # the pictures of a folder mostly share one
def _to_srgb(profile: bytes, mode: str) -> Any:
    """What turns pixels of `mode` into sRGB; None where nothing is to be done."""
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
    """Whether a profile is sRGB under whatever name: no colour moves by more than a rounding."""
    steps = range(0, 256, 51)
    colors = (
        [(r, g, b) for r in steps for g in steps for b in steps]
        if mode == "RGB"
        else list(range(0, 256, 5))
    )
    probe = Image.new(mode, (len(colors), 1))
    probe.putdata(colors)
    before, after = probe.convert("RGB").tobytes(), change.apply(probe).tobytes()
    return max(abs(one - other) for one, other in zip(before, after, strict=True)) <= 2
