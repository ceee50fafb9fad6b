"""`load_image`: the right pixels of every file that Pillow reads, one sentence for any other file."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trimtok_cli.errors import MediaError
from trimtok_cli.media import images
from trimtok_cli.media.images import load_image, shrunk

ROOT = Path(__file__).parents[2]
RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.fixture
def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))


def saved(image, path, **options):
    image.save(path, **options)
    return path


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, depth, color, rows, *extra):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(extra)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def failure(path, **options):
    with pytest.raises(MediaError) as caught:
        load_image(path, **options)
    message = str(caught.value)
    # One line that says where and, behind the semicolon, what to do.
    assert str(path)[:100] in message and "\n" not in message and ";" in message
    return message


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tiff", "ppm"])
def test_ordinary_files_give_pillows_own_pixels(tmp_path, noise, suffix):
    path = saved(noise, tmp_path / f"a.{suffix}")
    image, media = load_image(path)
    with Image.open(path) as expected:
        assert np.array_equal(np.asarray(image), np.asarray(expected))
    assert type(image) is Image.Image and image.mode == "RGB"
    assert (media.width, media.height, media.mode, media.exif_orientation, media.frames) == (
        32,
        24,
        "RGB",
        1,
        1,
    )
    assert media.warnings == ()


@pytest.mark.parametrize(
    "name", ["ünïcode 图.png", "[red].png", "[*]?.png", "no suffix", "wrong.txt"]
)
def test_names_do_not_matter(tmp_path, noise, name):
    image, _ = load_image(saved(noise, tmp_path / name, format="PNG"))
    assert image.tobytes() == noise.tobytes()


# What lies below: bit depths


@pytest.mark.parametrize("mode,suffix", [("I;16", "png"), ("I;16", "tiff"), ("I", "pgm")])
def test_16_bit_grey_keeps_its_ramp(tmp_path, mode, suffix):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    path = tmp_path / f"ramp.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 256 256 65535\n" + ramp.astype(">u2").tobytes())
    else:
        Image.fromarray(ramp).save(path)
    image, media = load_image(path)
    grey = np.asarray(image)[..., 0].ravel()
    assert np.array_equal(grey, np.rint(np.arange(65536) / 257)) and (grey[0], grey[-1]) == (0, 255)
    assert image.getpixel((3, 200)) == (image.getpixel((3, 200))[0],) * 3
    assert media.mode == mode and media.warnings == ()


def test_big_endian_16_bit_grey(tmp_path):
    path = tmp_path / "b.tiff"
    Image.frombytes("I;16B", (2, 1), b"\x80\x80\xff\xff").save(path)
    image, media = load_image(path)
    assert media.mode == "I;16B" and [image.getpixel((x, 0))[0] for x in range(2)] == [128, 255]


def test_16_bit_grey_with_a_clear_value(tmp_path):
    path = tmp_path / "t.png"
    path.write_bytes(
        png(
            2,
            1,
            16,
            0,
            b"\0" + struct.pack(">HH", 1000, 25700),
            chunk(b"tRNS", struct.pack(">H", 1000)),
        )
    )
    image, _ = load_image(path)
    assert [image.getpixel((x, 0)) for x in range(2)] == [WHITE, (100, 100, 100)]


def test_16_bit_rgb_with_a_clear_colour(tmp_path):
    rows = b"\0" + struct.pack(">6H", 1000, 0, 0, 0, 65535, 0)
    path = tmp_path / "t.png"
    path.write_bytes(png(2, 1, 16, 2, rows, chunk(b"tRNS", struct.pack(">HHH", 1000, 0, 0))))
    image, _ = load_image(path)
    assert [image.getpixel((x, 0)) for x in range(2)] == [WHITE, (0, 255, 0)]


@pytest.mark.parametrize(
    "values,expected,said",
    [
        ([0.0, 0.5, 1.0], [0, 128, 255], "0..1"),
        ([0.25, 0.5, 0.5], [64, 128, 128], "0..1"),  # in 0..1 but not filling it: not stretched
        ([-10.0, 0.0, 10.0], [0, 128, 255], "-10..10"),
        ([np.nan, 100.0, 200.0], [0, 0, 255], "100..200"),
        ([-np.inf, 0.5, np.inf], [0, 128, 255], "0..1"),
        ([7.0, 7.0, 7.0], [0, 0, 0], "7..7"),
    ],
)
def test_floats_are_rescaled_and_it_is_said(tmp_path, values, expected, said):
    path = saved(Image.fromarray(np.array([values], dtype=np.float32)), tmp_path / "f.tiff")
    image, media = load_image(path)
    assert [image.getpixel((x, 0))[0] for x in range(3)] == expected
    assert media.mode == "F" and media.warnings == (f"float pixels rescaled from {said}",)


def test_floats_that_are_all_nan(tmp_path):
    assert "finite" in failure(
        saved(Image.fromarray(np.full((2, 2), np.nan, np.float32)), tmp_path / "f.tiff")
    )


def test_32_bit_grey_uses_its_own_range(tmp_path):
    path = saved(
        Image.fromarray(np.array([[-100, 0, 100_000]], dtype=np.int32)), tmp_path / "i.tiff"
    )
    image, media = load_image(path)
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 0, 255]
    assert media.warnings == ("32-bit pixels rescaled from -100..100000",)


# Transparency


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_clear_pixels_become_the_background(tmp_path, suffix):
    image = Image.new("RGBA", (3, 1), (*RED, 0))
    image.putpixel((1, 0), (*RED, 255))
    image.putpixel((2, 0), (0, 0, 0, 51))
    path = saved(
        image,
        tmp_path / f"a.{suffix}",
        **({"lossless": True, "exact": True} if suffix == "webp" else {}),
    )
    rgb, media = load_image(path)
    assert [rgb.getpixel((x, 0)) for x in range(3)] == [
        WHITE,
        RED,
        (204, 204, 204),
    ] and media.mode == "RGBA"
    assert load_image(path, background=(0, 0, 9))[0].getpixel((0, 0)) == (0, 0, 9)


def test_opaque_alpha_changes_nothing(tmp_path, noise):
    rgba = noise.copy()
    rgba.putalpha(255)
    assert load_image(saved(rgba, tmp_path / "a.png"))[0].tobytes() == noise.tobytes()


def test_grey_with_alpha(tmp_path):
    image = Image.new("LA", (2, 1), (40, 0))
    image.putpixel((1, 0), (40, 255))
    rgb, media = load_image(saved(image, tmp_path / "la.png"))
    assert [rgb.getpixel((x, 0)) for x in range(2)] == [WHITE, (40, 40, 40)] and media.mode == "LA"


@pytest.mark.parametrize(
    "transparency,expected",
    [(1, WHITE), (bytes([255, 0]), WHITE), (bytes([255, 51]), (255, 204, 204))],
)
def test_palette_with_transparency(tmp_path, transparency, expected):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 255, *RED])
    image.putpixel((1, 0), 1)
    rgb, media = load_image(saved(image, tmp_path / "p.png", transparency=transparency))
    assert [rgb.getpixel((x, 0)) for x in range(2)] == [(0, 0, 255), expected] and media.mode == "P"
    assert "transparency" not in rgb.info


@pytest.mark.parametrize("mode,color,key", [("RGB", RED, RED), ("L", 7, 7), ("1", 0, 0)])
def test_one_clear_colour(tmp_path, mode, color, key):
    image = Image.new(mode, (2, 1), color)
    image.putpixel((1, 0), (0, 0, 0) if mode == "RGB" else 255)
    rgb, _ = load_image(saved(image, tmp_path / "t.png", transparency=key), background=(1, 2, 3))
    assert rgb.getpixel((0, 0)) == (1, 2, 3) and rgb.getpixel((1, 0)) in ((0, 0, 0), WHITE)


# Colour spaces


def readable(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "mode,suffix",
    [("CMYK", "jpg"), ("CMYK", "tiff"), ("YCbCr", "tiff"), ("LAB", "tiff"), ("YCbCr", "jpg")],
)
def test_colour_spaces(tmp_path, mode, suffix):
    reds = {"CMYK": (0, 255, 255, 0), "YCbCr": (76, 85, 255), "LAB": (136, 208, 195)}
    path = saved(Image.new(mode, (16, 16), reds[mode]), tmp_path / f"c.{suffix}")
    # Older Pillows cannot read the YCbCr that they wrote; no picture is made of such a file.
    if not readable(path):
        assert (mode, suffix) == ("YCbCr", "tiff")
        with pytest.raises(MediaError, match="damaged"):
            load_image(path)
    else:
        rgb, _ = load_image(path)
        assert rgb.mode == "RGB" and np.abs(np.subtract(rgb.getpixel((8, 8)), RED)).max() <= 12


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_bilevel_and_palette(tmp_path, mode):
    image = Image.new("L", (2, 1), 0)
    image.putpixel((1, 0), 255)
    rgb, media = load_image(saved(image.convert(mode), tmp_path / "g.png"))
    assert [rgb.getpixel((x, 0)) for x in range(2)] == [(0, 0, 0), WHITE] and media.mode == mode


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_the_red_corner_ends_where_exif_says(tmp_path, orientation, suffix):
    image = Image.new("RGB", (32, 16))
    image.paste(RED, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb, media = load_image(saved(image, tmp_path / f"o.{suffix}", exif=exif))
    width, height = (32, 16) if orientation < 5 else (16, 32)
    # The corner in which the stored top left must be shown.
    right = orientation in (2, 3, 6, 7)
    bottom = orientation in (3, 4, 7, 8)
    assert (
        rgb.size == (media.width, media.height) == (width, height)
        and media.exif_orientation == orientation
    )
    corners = [rgb.getpixel((x, y))[0] > 128 for y in (3, height - 4) for x in (3, width - 4)]
    assert corners.index(True) == 2 * bottom + right and corners.count(True) == 1
    assert rgb.getexif().get(0x0112) is None  # or a reader would turn it a second time


@pytest.mark.parametrize(
    "broken",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01",
        b"",
    ],
)
def test_broken_exif_does_not_matter(tmp_path, noise, broken):
    image, media = load_image(saved(noise, tmp_path / "b.jpg", exif=broken))
    assert image.tobytes() == load_image(saved(noise, tmp_path / "none.jpg"))[0].tobytes()
    assert image.size == noise.size and media.exif_orientation == 1


def test_an_orientation_that_is_none(tmp_path, noise):
    exif = Image.Exif()
    exif[0x0112] = 99
    assert load_image(saved(noise, tmp_path / "o.jpg", exif=exif))[1].exif_orientation == 1


# Frames


@pytest.mark.parametrize(
    "suffix,what",
    [
        ("gif", "animated: frame"),
        ("webp", "animated: frame"),
        ("png", "animated: frame"),
        ("tiff", "page"),
    ],
)
def test_the_first_of_several_frames(tmp_path, suffix, what):
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(
        frames[0], tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options
    )
    rgb, media = load_image(path)
    assert rgb.getpixel((4, 4)) == RED
    assert media.frames == 3 and media.warnings == (f"{what} 0 of 3 was used",)


def test_a_phone_photo_with_a_preview_is_not_animated(tmp_path, noise):
    path = saved(
        noise,
        tmp_path / "a.jpg",
        format="MPO",
        save_all=True,
        append_images=[Image.new("RGB", (8, 8))],
    )
    with Image.open(path) as image:
        assert image.format == "MPO"
    image, media = load_image(path)
    assert image.size == noise.size and media.frames == 1 and media.warnings == ()


# Files that cannot be read


def test_a_path_may_be_text(tmp_path, noise):
    noise.save(tmp_path / "a.png")
    assert (
        load_image(str(tmp_path / "a.png"))[0].tobytes()
        == load_image(tmp_path / "a.png")[0].tobytes()
    )


def test_missing_folder_empty(tmp_path):
    assert "does not exist" in failure(tmp_path / "no.png")
    assert "is a folder" in failure(tmp_path)
    (tmp_path / "empty.jpg").touch()
    assert "empty (0 bytes)" in failure(tmp_path / "empty.jpg")
    assert "cannot be read" in failure(tmp_path / "empty.jpg" / "below.png")
    assert len(failure(tmp_path / ("x" * 5000))) < 500


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in failure(tmp_path / "pipe.png")


def test_permission(tmp_path, noise, monkeypatch):
    path = saved(noise, tmp_path / "a.png")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    assert "permissions" in failure(path)


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html></html>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"%PDF-1.4",
        b"\0" * 64,
        b"x",
    ],
)
def test_not_an_image(tmp_path, content):
    path = tmp_path / "page.jpg"
    path.write_bytes(content)
    assert "not an image that Pillow can read" in failure(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "bmp", "gif"])
def test_cut_short_anywhere(tmp_path, noise, suffix):
    path = saved(noise.resize((200, 150)), tmp_path / f"a.{suffix}")
    content = path.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        failure(path)
    if suffix in ("jpg", "png"):
        assert "damaged or cut short" in failure(path)


@pytest.mark.parametrize("suffix", ["png", "gif", "tiff", "webp", "jpg", "avif"])
def test_random_damage_never_escapes_as_another_error(tmp_path, noise, suffix):
    if f".{suffix}" not in Image.registered_extensions():
        pytest.skip("this Pillow lacks the format")
    random = np.random.default_rng(1)
    path = saved(noise, tmp_path / f"a.{suffix}")
    content = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(30):
        damaged = content.copy()
        damaged[random.integers(0, len(content), 6)] = random.integers(0, 256, 6)
        path.write_bytes(damaged.tobytes())
        try:
            image, _ = load_image(path, max_pixels=10_000)
        except MediaError as error:
            assert path.name in str(error) and "\n" not in str(error)
        else:
            assert image.mode == "RGB"


def test_a_bomb_is_refused_by_its_header(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(60_000, 60_000, 8, 2, b"\0"))
    assert "60000 x 60000" in failure(path)
    # 100 million pixels: Pillow alone would warn, here the file is only cut short.
    path.write_bytes(png(10_000, 10_000, 8, 2, b"\0"))
    assert "cut short" in failure(path)
    assert "limit" in failure(path, max_pixels=99_999_999)


def test_the_limit_is_ours_and_pillows_is_put_back(tmp_path, noise, monkeypatch):
    path = saved(noise, tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow alone would refuse this
    assert load_image(path, max_pixels=32 * 24)[0].size == (32, 24) and Image.MAX_IMAGE_PIXELS == 10
    assert "limit of 767" in failure(path, max_pixels=32 * 24 - 1)


@pytest.mark.parametrize(
    "error",
    [
        struct.error("x"),
        SyntaxError("x"),
        OverflowError("x"),
        zlib.error("x"),
        KeyError(),
        MemoryError(),
        RecursionError(),
    ],
)
def test_whatever_pillow_raises(tmp_path, noise, monkeypatch, error):
    path = saved(noise, tmp_path / "a.png")

    def explode(*_):
        raise error

    monkeypatch.setattr(images, "_to_rgb", explode)
    assert ("memory" if isinstance(error, MemoryError) else "damaged") in failure(path)


def test_heic_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64)
    assert "pip install pillow-heif" in failure(path)


def test_importing_it_is_light():
    code = (
        "import sys, trimtok_cli.media.images, trimtok_cli.readers; print({'torch', 'numpy', "
        "'transformers'} & set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
        ).stdout
        == "set()\n"
    )


def test_shrinking_keeps_the_shape_and_never_enlarges():
    image = Image.new("RGB", (400, 100))
    assert shrunk(image, 0) is image and shrunk(image, 40_000) is image
    assert shrunk(image, 10_000).size == (200, 50) and shrunk(
        Image.new("RGB", (1, 900)), 4
    ).size == (1, 60)
