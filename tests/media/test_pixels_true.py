"""Right pixels in every mode and format, against the same picture as plain RGB, and sound pictures in
damaged files.

A scene of soft colours is written in a way that keeps it (to a stated mean difference), read back,
and compared. A file that a browser shows whole is read, with a note about the damage; one that
lacks pixels is refused. Files are made here, byte by byte where Pillow would not make them.
"""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from tests.media.test_images import readable
from trimtok_cli.errors import MediaError
from trimtok_cli.media.images import load_image

WIDTH, HEIGHT = 64, 48
_Y, _X = np.mgrid[0:HEIGHT, 0:WIDTH]
SCENE = np.stack([60 + 2 * _X, 90 + 3 * _Y, 200 - _X - _Y], axis=-1).clip(0, 255).astype(np.uint8)
GREY = SCENE.astype(np.uint16).sum(axis=-1) // 3
RGB = Image.fromarray(SCENE)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def read(path, expected, bound, **options):
    """The warnings about a file; its pixels are `expected` to a mean difference of `bound`."""
    image, media = load_image(path, **options)
    wanted = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=-1)
    difference = np.abs(np.asarray(image, dtype=float) - wanted).mean()
    assert difference <= bound, f"mean difference {difference:.1f}"
    return media.warnings


def encoded(image, format, **options):
    with BytesIO() as file:
        image.save(file, format, **options)
        return file.getvalue()


# Files that Pillow does not write


def bmp(pixels, header, bits, masks=(), mask_bytes=4, compression=3):
    """A bitmap of `pixels`, the bytes of bottom-up rows.

    header: size of the header in bytes; masks: four of them, at its 40th byte.
    """
    head = struct.pack(
        "<IiiHHIIiiII", header, WIDTH, HEIGHT, 1, bits, compression, len(pixels), 2835, 2835, 0, 0
    )
    head += b"".join(struct.pack("<I", mask) for mask in masks)
    body = head.ljust(max(header, len(head)), b"\0")
    return (
        b"BM"
        + struct.pack("<IHHI", 14 + len(body) + len(pixels), 0, 0, 14 + len(body))
        + body
        + pixels
    )


def bgra(alpha, order="BGRA"):
    planes = dict(zip("RGB", np.moveaxis(SCENE[::-1], -1, 0), strict=True)) | {
        "A": np.full((HEIGHT, WIDTH), alpha, np.uint8)
    }
    return np.stack([planes[letter] for letter in order], axis=-1).tobytes()


def tiff(values, *, photometric=1, bits=16, form=1, extra=(), order="<"):
    """An uncompressed TIFF of one strip; `extra` are tags (number, value) of one SHORT each."""
    data = values.tobytes()
    tags = {
        256: WIDTH,
        257: HEIGHT,
        258: bits,
        259: 1,
        262: photometric,
        277: 1,
        278: HEIGHT,
        279: len(data),
        339: form,
    } | dict(extra)
    tags[273] = 8 + 2 + 12 * (len(tags) + 1) + 4
    lines = b""
    for number, value in sorted(tags.items()):
        kind, shape = (3, "H2x") if value < 65536 and number not in (273, 279) else (4, "I")
        lines += struct.pack(order + "HHI" + shape, number, kind, 1, value)
    return (
        (b"II*\0" if order == "<" else b"MM\0*")
        + struct.pack(order + "IH", 8, len(tags))
        + lines
        + bytes(4)
        + data
    )


def chunk(kind, body, check=None):
    check = zlib.crc32(kind + body) if check is None else check
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)


def png(values, depth, color, *extra, after=()):
    """An array of big-endian rows as a PNG, with `extra` chunks before its pixels."""
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, color, 0, 0, 0))
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            head,
            *extra,
            chunk(b"IDAT", zlib.compress(rows)),
            *after,
            chunk(b"IEND", b""),
        ]
    )


def icc(red, green, blue, gamma=2.2):
    """A matrix profile with the D50 XYZ of its primaries."""

    def fixed(value):
        return struct.pack(">i", round(value * 65536))

    def xyz(values):
        return b"XYZ " + bytes(4) + b"".join(map(fixed, values))

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67)
    parts = {
        b"desc": text,
        b"wtpt": xyz((0.9642, 1.0, 0.8249)),
        b"rXYZ": xyz(red),
        b"gXYZ": xyz(green),
        b"bXYZ": xyz(blue),
    }
    parts |= {
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
        b"cprt": b"text" + bytes(4) + b"none\0\0\0\0",
    }
    table, data, at = struct.pack(">I", len(parts)), b"", 128 + 4 + 12 * len(parts)
    for name, body in parts.items():
        body += bytes(-len(body) % 4)
        table += name + struct.pack(">II", at + len(data), len(body))
        data += body
    size = at + len(data)
    head = (
        struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
        + bytes(12)
        + b"acsp"
        + bytes(28)
    )
    return (head + fixed(0.9642) + fixed(1.0) + fixed(0.8249)).ljust(128, b"\0") + table + data


# The primaries of sRGB.
_RED = (0.4360, 0.2225, 0.0139)
_GREEN = (0.3851, 0.7169, 0.0971)
_BLUE = (0.1431, 0.0606, 0.7139)

SWAPPED = icc(_GREEN, _RED, _BLUE)
# Profiles whose green and red reach further than those of sRGB.
WIDE = {
    "display-p3": icc(
        (0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841)
    ),
    "adobe-rgb": icc((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)),
}


def as_lcms_sees(image, profile, mode="RGB"):
    """The oracle: the picture in sRGB by its profile, in one step of lcms."""
    change = ImageCms.profileToProfile(
        image.convert(mode),
        ImageCms.ImageCmsProfile(BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        outputMode="RGB",
    )
    return np.asarray(change)


# 32-bit bitmaps

# Masks of red, green, blue, alpha -> the order of bytes.
ORDERS = {
    (0xFF0000, 0xFF00, 0xFF, 0xFF000000): "BGRA",
    (0xFF, 0xFF00, 0xFF0000, 0xFF000000): "RGBA",
    (0xFF000000, 0xFF0000, 0xFF00, 0xFF): "ABGR",
}


@pytest.mark.parametrize("alpha", [0, 255])
@pytest.mark.parametrize("header", [56, 108, 124])
@pytest.mark.parametrize("masks", list(ORDERS), ids=list(ORDERS.values()))
def test_a_bitmap_whose_alpha_is_nowhere_set_is_opaque(tmp_path, header, masks, alpha):
    path = tmp_path / "grab.bmp"
    path.write_bytes(bmp(bgra(alpha, ORDERS[masks]), header, 32, masks))
    notes = read(path, SCENE, 0)
    assert bool(notes) == (alpha == 0)


@pytest.mark.parametrize(
    "header,compression,masks",
    [
        (40, 0, ()),
        (40, 3, (0xFF0000, 0xFF00, 0xFF)),
        (124, 0, ()),
        (52, 3, (0xFF0000, 0xFF00, 0xFF)),
    ],
)
def test_a_bitmap_without_alpha_is_opaque(tmp_path, header, compression, masks):
    path = tmp_path / "grab.bmp"
    path.write_bytes(bmp(bgra(0), header, 32, masks, compression=compression))
    assert read(path, SCENE, 0) == ()


def test_alpha_that_is_used_in_a_bitmap_is_honoured(tmp_path):
    path = tmp_path / "half.bmp"
    path.write_bytes(bmp(bgra(51), 124, 32, next(iter(ORDERS))))
    assert read(path, 255 * 0.8 + SCENE * 0.2, 1) == ()


def test_an_icon_whose_alpha_is_nowhere_set_is_opaque(tmp_path):
    head = struct.pack("<IiiHHIIiiII", 40, WIDTH, 2 * HEIGHT, 1, 32, 0, 0, 0, 0, 0, 0)
    body = head + bgra(0) + bytes(HEIGHT * WIDTH // 8)
    path = tmp_path / "old.ico"
    path.write_bytes(
        struct.pack("<HHHBBBBHHII", 0, 1, 1, WIDTH, HEIGHT, 0, 0, 1, 32, len(body), 22) + body
    )
    read(path, SCENE, 0)


def test_a_clear_png_is_still_the_background(tmp_path):
    image = RGB.copy()
    image.putalpha(0)
    image.save(tmp_path / "clear.png")
    read(tmp_path / "clear.png", np.full_like(SCENE, 255), 0)


# Grey of more than 8 bits

WIDE_GREY = (GREY * 257).astype("<u2")


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("kind", ["8", "16", "16 big-endian", "float"])
def test_a_tiff_in_which_0_is_white(tmp_path, photometric, kind):
    white_is_0 = photometric == 0
    grey = 255 - GREY if white_is_0 else GREY
    if kind == "8":
        data = tiff(grey.astype(np.uint8), photometric=photometric, bits=8)
    elif kind == "float":
        data = tiff((grey / 255).astype("<f4"), photometric=photometric, bits=32, form=3)
    else:
        order = "<" if kind == "16" else ">"
        data = tiff((grey * 257).astype(f"{order}u2"), photometric=photometric, order=order)
    (tmp_path / "scan.tif").write_bytes(data)
    try:
        read(tmp_path / "scan.tif", GREY, 0.6)
    except MediaError:
        # This kind is not in Pillow's table: a failed row, never wrong pixels.
        assert kind == "16 big-endian" and white_is_0


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize(
    "format", ["png", "tiff", "tiff with MaxSampleValue", "png with sBIT", "tiff white is 0"]
)
def test_grey_that_uses_few_of_its_16_bits_is_stretched(tmp_path, bits, format):
    most = (1 << bits) - 1
    values = np.rint(GREY / GREY.max() * most).astype("<u2")
    expected = GREY / GREY.max() * 255
    told = "with" in format
    if format.startswith("png"):
        data = png(values.astype(">u2"), 16, 0, *([chunk(b"sBIT", bytes([bits]))] if told else []))
    elif format == "tiff white is 0":
        data = tiff(most - values, photometric=0)
        expected = 255 - np.asarray((most - values) * 255.0 / most)
    else:
        data = tiff(values, extra=[(281, most)] if told else [])
    (tmp_path / "x-ray").write_bytes(data)
    notes = read(tmp_path / "x-ray", expected, 0.6)
    assert notes == (
        () if told else (f"16-bit pixels use {bits} bits and were stretched from 0..{most}",)
    )


def test_12_bits_of_a_tiff_are_its_own_word(tmp_path):
    values = np.rint(GREY / 255 * 4095).astype(np.uint16).ravel()
    pairs = values.reshape(-1, 2)
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=-1
    ).astype(np.uint8)
    (tmp_path / "scan.tif").write_bytes(tiff(packed, bits=12))
    assert read(tmp_path / "scan.tif", GREY, 0.6) == ()


@pytest.mark.parametrize("where", ["png", "tiff", "pgm"])
def test_grey_of_16_bits_is_not_stretched(tmp_path, where):
    data = {"png": png(WIDE_GREY.astype(">u2"), 16, 0), "tiff": tiff(WIDE_GREY)}
    data["pgm"] = f"P5 {WIDTH} {HEIGHT} 65535\n".encode() + WIDE_GREY.astype(">u2").tobytes()
    (tmp_path / "grey").write_bytes(data[where])
    assert read(tmp_path / "grey", GREY, 0) == ()


def test_16_bits_a_colour_of_which_few_are_used_are_said(tmp_path):
    (tmp_path / "raw.png").write_bytes(
        png((SCENE.astype(np.uint16) * 16).astype(">u2").reshape(HEIGHT, -1), 16, 2)
    )
    (warning,) = read(tmp_path / "raw.png", SCENE // 16, 1)
    assert "very dark" in warning
    (tmp_path / "full.png").write_bytes(
        png((SCENE.astype(np.uint16) * 257).astype(">u2").reshape(HEIGHT, -1), 16, 2)
    )
    assert read(tmp_path / "full.png", SCENE, 0) == ()


# Colour profiles

LOSSLESS = {
    "png": {},
    "tiff": {},
    "webp": {"lossless": True},
    "jpeg": {"quality": 100, "subsampling": 0},
}


@pytest.mark.parametrize("format", list(LOSSLESS))
def test_a_profile_that_exchanges_channels_is_applied(tmp_path, format):
    path = tmp_path / "swapped"
    path.write_bytes(encoded(RGB, format, icc_profile=SWAPPED, **LOSSLESS[format]))
    assert read(path, SCENE[..., [1, 0, 2]], 4) == ()


@pytest.mark.parametrize("wide", list(WIDE))
@pytest.mark.parametrize("format", list(LOSSLESS))
def test_a_wide_profile_is_applied(tmp_path, format, wide):
    path = tmp_path / "wide"
    path.write_bytes(encoded(RGB, format, icc_profile=WIDE[wide], **LOSSLESS[format]))
    expected = as_lcms_sees(RGB, WIDE[wide])
    assert np.abs(expected.astype(float) - SCENE).mean() > 3
    assert read(path, expected, 1.5) == ()


@pytest.mark.parametrize("mode", ["P", "RGBA", "L", "LA"])
def test_a_profile_reaches_every_mode(tmp_path, mode):
    image = RGB.quantize(256) if mode == "P" else RGB.convert(mode)
    profile = (
        SWAPPED if mode in ("P", "RGBA") else ImageCms.ImageCmsProfile(BytesIO(GAMMA_ONE)).tobytes()
    )
    path = tmp_path / "mode.png"
    path.write_bytes(encoded(image, "png", icc_profile=profile))
    plain = np.asarray(image.convert("RGB"))
    expected = (
        plain[..., [1, 0, 2]]
        if mode in ("P", "RGBA")
        else as_lcms_sees(image.convert("L"), GAMMA_ONE, "L")
    )
    assert read(path, expected, 2) == ()
    assert np.abs(expected.astype(float) - plain).mean() > 5


def grey_profile(gamma):
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    white = b"XYZ " + bytes(4) + struct.pack(">iii", 63190, 65536, 54061)
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78 + 1)
    table, data = struct.pack(">I", 3), b""
    for name, body in ((b"desc", text), (b"wtpt", white), (b"kTRC", curve)):
        body += bytes(-len(body) % 4)
        table += name + struct.pack(">II", 128 + 4 + 36 + len(data), len(body))
        data += body
    head = (
        struct.pack(">I4sI4s4s4s", 168 + len(data), b"lcms", 0x02400000, b"mntr", b"GRAY", b"XYZ ")
        + bytes(12)
        + b"acsp"
        + bytes(28)
    )
    return (head + struct.pack(">iii", 63190, 65536, 54061)).ljust(128, b"\0") + table + data


GAMMA_ONE = grey_profile(1.0)


@pytest.mark.parametrize("format", list(LOSSLESS))
def test_srgb_under_whatever_name_changes_nothing(tmp_path, format):
    for profile in (SRGB, icc(_RED, _GREEN, _BLUE, 2.2)[:-4] + b"\1\1\1\1"):
        path = tmp_path / "srgb"
        path.write_bytes(encoded(RGB, format, icc_profile=profile, **LOSSLESS[format]))
        with Image.open(BytesIO(encoded(RGB, format, **LOSSLESS[format]))) as plain:
            assert read(path, np.asarray(plain), 0 if profile is SRGB else 2) == ()


@pytest.mark.parametrize("format", list(LOSSLESS))
@pytest.mark.parametrize(
    "broken", ["noise", "cut", "grey for colours", "a device link", "CMYK for RGB"]
)
def test_a_broken_profile_is_left_out_and_it_is_said(tmp_path, format, broken):
    profile = {
        "noise": bytes(range(256)) * 2,
        "cut": SWAPPED[:200],
        "grey for colours": GAMMA_ONE,
        "a device link": SWAPPED[:12] + b"link" + SWAPPED[16:],
        "CMYK for RGB": SWAPPED[:16] + b"CMYK" + SWAPPED[20:],
    }[broken]
    path = tmp_path / "broken"
    path.write_bytes(encoded(RGB, format, icc_profile=profile, **LOSSLESS[format]))
    assert read(path, SCENE, 2) == (
        "its colour profile cannot be used; its colours are taken for sRGB",
    )


# Other modes


@pytest.mark.parametrize("format", ["jpeg", "tiff"])
def test_cmyk(tmp_path, format):
    path = tmp_path / "print"
    path.write_bytes(
        encoded(RGB.convert("CMYK"), format, **({"quality": 100} if format == "jpeg" else {}))
    )
    assert read(path, SCENE, 3) == ()


def test_inverted_ink_of_adobe(tmp_path):
    """Every CMYK JPEG is taken for inverted, as browsers take it, with Adobe's mark or without."""
    data = encoded(RGB.convert("CMYK"), "jpeg", quality=100)
    at = data.index(b"\xff\xee")
    assert data[at + 4 : at + 9] == b"Adobe"
    (tmp_path / "ink.jpg").write_bytes(data)
    read(tmp_path / "ink.jpg", SCENE, 3)
    (tmp_path / "ink.jpg").write_bytes(
        data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    )
    read(tmp_path / "ink.jpg", SCENE, 3)


# (format, mode) that Pillow makes white when it writes them.
MADE_WHITE = [(format, mode) for format in ("webp", "gif", "avif", "ico") for mode in ("I;16", "F")]


MODES = ("1", "L", "LA", "P", "PA", "RGBA", "RGBX", "YCbCr", "LAB", "I;16", "F")
# Format -> the modes that Pillow writes into it.
WRITTEN = {
    "png": ("1", "L", "LA", "P", "RGBA", "I;16"),
    "tiff": MODES,
    "webp": MODES,
    "gif": ("1", "L", "LA", "P", "RGBA", "I;16", "F"),
    "bmp": ("1", "L", "P", "RGBA"),
    "jpeg": ("1", "L", "RGBX", "YCbCr"),
    "jpeg2000": ("L", "LA", "RGBA", "YCbCr", "I;16"),
    "ppm": ("1", "L", "RGBA", "I;16", "F"),
    "ico": ("1", "L", "LA", "P", "RGBA", "I;16"),
    "avif": MODES,
}
CELLS = [(format, mode) for format, modes in WRITTEN.items() for mode in modes]
NO_CELLS = [(format, mode) for format in WRITTEN for mode in MODES if (format, mode) not in CELLS]


def scene(mode):
    if mode == "LAB":
        return ImageCms.profileToProfile(
            RGB, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    if mode == "PA":
        return RGB.quantize(256).convert("PA")
    if mode in ("I;16", "F"):
        return Image.fromarray(WIDE_GREY if mode == "I;16" else (GREY / 255).astype(np.float32))
    return RGB.quantize(256) if mode == "P" else RGB.convert(mode)


def options_of(format):
    """The options of Pillow with which a format keeps a picture."""
    if not features.check("avif") and format == "avif":
        pytest.skip("this Pillow was built without AVIF")
    return (
        {"lossless": True}
        if format == "webp"
        else {"quality": 100}
        if format in ("jpeg", "avif")
        else {}
    )


def test_the_table_has_a_cell_for_every_mode_in_every_format():
    assert (len(CELLS), len(NO_CELLS)) == (70, 40) and len(CELLS) + len(NO_CELLS) == len(
        MODES
    ) * len(WRITTEN)


@pytest.mark.parametrize(("format", "mode"), NO_CELLS)
def test_what_the_table_leaves_out_pillow_does_not_write(format, mode):
    with pytest.raises(
        (OSError, ValueError),
        match=r"cannot write mode|image has wrong mode|broken data stream when writing",
    ):
        encoded(scene(mode), format, **options_of(format))


@pytest.mark.parametrize(("format", "mode"), CELLS)
def test_every_mode_in_every_format(tmp_path, format, mode):
    path = tmp_path / "picture"
    path.write_bytes(encoded(scene(mode), format, **options_of(format)))
    # Older Pillows cannot read the YCbCr that they wrote.
    if (format, mode) == ("tiff", "YCbCr") and not readable(path):
        with pytest.raises(MediaError, match="damaged"):
            load_image(path)
    else:
        check_scene(path, format, mode)


def check_scene(path, format, mode):
    grey = Image.fromarray(GREY.astype(np.uint8))
    expected = grey if mode in ("I;16", "F") else RGB.convert("L") if mode in ("L", "LA") else RGB
    with Image.open(path) as written:
        written.load()
        # Pillow itself gets these modes wrong.
        wrong = written.mode in ("I", "I;16", "I;16B", "F", "LAB")
        pillows = np.asarray(expected if wrong else written.convert("RGBA").convert("RGB"))
    if not (wrong and format == "ico"):  # an icon is smaller than the picture
        read(path, pillows, 4 if wrong else 0.5)
    if mode != "1" and format != "ico" and (format, mode) not in MADE_WHITE:
        read(path, np.asarray(expected.convert("RGB")), 8)
    assert load_image(path)[0].mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["jpeg", "png", "tiff", "webp", "avif"])
def test_every_format_is_turned_upright(tmp_path, format, orientation):
    options = options_of(format)
    stored = np.asarray(RGB)  # stored so that it is upright once it is turned
    undo = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
    }
    undo |= {6: np.rot90(stored), 7: np.rot90(stored, 2).swapaxes(0, 1), 8: np.rot90(stored, -1)}
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned"
    path.write_bytes(
        encoded(
            Image.fromarray(np.ascontiguousarray(undo[orientation])), format, exif=exif, **options
        )
    )
    assert read(path, SCENE, 3) == ()


# Sound pictures in damaged files

# zlib packs it into more than 1 MB.
NOISE = bytes(np.random.default_rng(0).integers(32, 127, 2_000_000, dtype=np.uint8))
LONG = {
    "tEXt": chunk(b"tEXt", b"workflow\0" + NOISE),
    "zTXt": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(NOISE)),
    "iTXt": chunk(b"iTXt", b"workflow\0\0\0\0\0" + NOISE),
    "packed iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(NOISE)),
    "packed bomb": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(100_000_000))),
    "a hundred texts": chunk(b"tEXt", b"note\0" + NOISE[:1_000_000]) * 100,
    "an unknown chunk": chunk(b"prVt", NOISE),
    "long XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + NOISE),
    "raw profile": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(50_000_000))),
}


@pytest.mark.parametrize("after", [False, True], ids=["before the pixels", "behind them"])
@pytest.mark.parametrize("what", list(LONG))
def test_long_text_in_a_png_is_no_damage(tmp_path, what, after):
    rows = SCENE.reshape(HEIGHT, -1)
    (tmp_path / "a.png").write_bytes(
        png(rows, 8, 2, after=[LONG[what]]) if after else png(rows, 8, 2, LONG[what])
    )
    assert read(tmp_path / "a.png", SCENE, 0) == ()


def test_a_long_profile_of_a_png_is_applied_and_a_bomb_is_not(tmp_path):
    rows = SCENE.reshape(HEIGHT, -1)
    large = bytearray(SWAPPED + NOISE)
    large[:4] = struct.pack(">I", len(large))
    (tmp_path / "a.png").write_bytes(
        png(rows, 8, 2, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(large))))
    )
    assert read(tmp_path / "a.png", SCENE[..., [1, 0, 2]], 4) == ()
    (tmp_path / "a.png").write_bytes(
        png(rows, 8, 2, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(300_000_000))))
    )
    assert read(tmp_path / "a.png", SCENE, 0) == (
        "its colour profile cannot be used; its colours are taken for sRGB",
    )


@pytest.mark.parametrize(
    "kind", [b"tEXt", b"gAMA", b"eXIf", b"tRNS", b"sBIT", b"iCCP", b"pHYs", b"acTL", b"tIME"]
)
def test_a_bad_check_sum_of_a_note_is_passed_over(tmp_path, kind):
    (tmp_path / "a.png").write_bytes(
        png(SCENE.reshape(HEIGHT, -1), 8, 2, chunk(kind, b"\0\0\0\1\0\0\0\2x", check=7))
    )
    read(tmp_path / "a.png", SCENE, 0)


def test_a_png_without_its_end_chunk_is_whole(tmp_path):
    data = png(SCENE.reshape(HEIGHT, -1), 8, 2)
    for cut in (4, 8, 12):
        (tmp_path / "a.png").write_bytes(data[:-cut])
        read(tmp_path / "a.png", SCENE, 0)


JPEGS = {
    "baseline": {"quality": 90},
    "progressive": {"quality": 90, "progressive": True},
    "444": {"quality": 95, "subsampling": 0},
    "restarts": {"quality": 90, "restart_marker_blocks": 2},
    "optimized": {"quality": 75, "optimize": True},
    "grey": {"quality": 90},
    "CMYK": {"quality": 90},
}
TEXTURE = Image.fromarray(
    np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
)


def jpeg(kind):
    image = TEXTURE.convert({"grey": "L", "CMYK": "CMYK"}.get(kind, "RGB"))
    data = encoded(image, "jpeg", **JPEGS[kind])
    assert data.endswith(b"\xff\xd9")
    with Image.open(BytesIO(data)) as whole:
        return data, np.asarray(whole.convert("RGB"))


@pytest.mark.parametrize("kind", list(JPEGS))
def test_a_jpeg_that_lacks_only_its_end_mark_is_read(tmp_path, kind):
    data, whole = jpeg(kind)
    for cut in (1, 2):
        (tmp_path / "a.jpg").write_bytes(data[:-cut])
        assert "its end mark is missing" in read(tmp_path / "a.jpg", whole, 0)


@pytest.mark.parametrize("kind", list(JPEGS))
@pytest.mark.parametrize("closed", [False, True], ids=["open", "with an end mark"])
def test_a_jpeg_that_lacks_pixels_is_refused(tmp_path, kind, closed):
    data, whole = jpeg(kind)
    start = data.index(b"\xff\xda") + 12
    cuts = [
        *range(start + 1, len(data) - 2, max((len(data) - start) // 25, 1)),
        *(range(len(data) - 12, len(data) - 5) if not closed else ()),
    ]
    wrong = 0
    for at in cuts:
        (tmp_path / "a.jpg").write_bytes(data[:at] + b"\xff\xd9" * closed)
        try:
            image, _ = load_image(tmp_path / "a.jpg")
        except MediaError as error:
            assert "cut short" in str(error)
            continue
        difference = np.abs(np.asarray(image, dtype=int) - whole).max(axis=-1)
        # A last block that lacks data, closed with a mark, looks like a block that is so.
        if closed:
            difference[-18:, -18:] = 0
        wrong += difference.max() > 2
    # With an end mark of its own a progressive file has every pixel, only blurred, and any decoder
    # takes it for whole.
    assert wrong == 0 or (closed and kind == "progressive"), (
        f"{wrong} of {len(cuts)} were read as if they were whole"
    )


def test_a_grey_corner_of_its_own_is_no_damage(tmp_path):
    picture = SCENE.copy()
    picture[-16:, -16:] = 128
    for grey in (
        Image.fromarray(picture),
        Image.new("RGB", (40, 40), (128,) * 3),
        Image.new("L", (33, 9), 128),
    ):
        (tmp_path / "a.jpg").write_bytes(encoded(grey, "jpeg", quality=95))
        assert read(tmp_path / "a.jpg", np.asarray(grey), 2) == ()


FRONTS = {
    "white space": b"\r\n\r\n",
    "a byte order mark": b"\xef\xbb\xbf",
    "a chunk's length": b"1f3a\r\n",
    "zeros": bytes(16),
    "one": b"\n",
}


@pytest.mark.parametrize("front", list(FRONTS))
@pytest.mark.parametrize("format", ["jpeg", "png", "gif", "webp"])
def test_bytes_in_front_are_passed_over_and_said(tmp_path, front, format):
    data = encoded(RGB.quantize(64) if format == "gif" else RGB, format, **LOSSLESS.get(format, {}))
    with Image.open(BytesIO(data)) as plain:
        whole = np.asarray(plain.convert("RGB"))
    (tmp_path / "a").write_bytes(FRONTS[front] + data)
    count = len(FRONTS[front])
    bytes_were = (
        f"{count} bytes in front of the picture were"
        if count > 1
        else "byte in front of the picture was"
    )
    assert read(tmp_path / "a", whole, 0) == (f"the {bytes_were} passed over",)


@pytest.mark.parametrize("format", ["jpeg", "png", "gif", "webp", "tiff", "bmp", "ppm"])
def test_bytes_behind_do_not_matter(tmp_path, format):
    data = encoded(RGB.quantize(64) if format == "gif" else RGB, format, **LOSSLESS.get(format, {}))
    with Image.open(BytesIO(data)) as plain:
        whole = np.asarray(plain.convert("RGB"))
    for behind in (b"\0", b"\r\n", b"PK\3\4" + NOISE[:5000], data):
        (tmp_path / "a").write_bytes(data + behind)
        read(tmp_path / "a", whole, 0)


@pytest.mark.parametrize(
    "damage", ["length too long", "length too short", "cut EXIF", "no padding", "zero length"]
)
def test_a_webp_with_harmless_damage(tmp_path, damage):
    exif = Image.Exif()
    exif[0x010E] = "a note of some length, odd"
    data = encoded(RGB, "webp", lossless=True, **({"exif": exif} if "EXIF" in damage else {}))
    wrong = {
        "length too long": len(data) + 5000,
        "length too short": len(data) - 20,
        "zero length": 0,
    }
    if damage in wrong:
        data = data[:4] + struct.pack("<I", wrong[damage]) + data[8:]
    elif damage == "cut EXIF":
        data = data[:-5]
    else:  # a chunk of odd length at the end of the file, and nothing behind it
        data += b"XXXX" + struct.pack("<I", 3) + b"abc"
    (tmp_path / "a.webp").write_bytes(data)
    assert len(read(tmp_path / "a.webp", SCENE, 0)) <= 1


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xe1\0\x10Exif\0\0MM\0*\xff\xff",
        b"\xff\xe0\0\x04JF",
        b"\xff\xe2\0\x08ICC_P\1",
        b"\xff\xed\0\x12Photoshop 3.0\0\x38",
    ],
)
def test_broken_notes_in_a_jpeg_are_left_out(tmp_path, segment):
    data, whole = jpeg("baseline")
    length = int.from_bytes(segment[2:4], "big")
    (tmp_path / "a.jpg").write_bytes(data[:2] + segment.ljust(length + 2, b"\xee") + data[2:])
    read(tmp_path / "a.jpg", whole, 0)
