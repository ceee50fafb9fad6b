"""Small files that ask for much: each is refused or read within a stated time and memory, and no
byte of a file is in a message.

A peak is the most memory that a child process of its own ever held.
"""

import struct
import subprocess
import sys
import time
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.media.test_pixels_true import chunk, encoded
from trimtok_cli.data import FrameRule
from trimtok_cli.errors import MediaError
from trimtok_cli.media import frame_counts, image_limits, jpeg_marks
from trimtok_cli.media.images import load_image
from trimtok_cli.media.video import load_video

ROOT = Path(__file__).parents[2]
RED = Image.new("RGB", (16, 16), (255, 0, 0))


def zeros(length):
    """`length` zeros as zlib packs them, made without holding them."""
    packer, parts, block = zlib.compressobj(9), [], bytes(10_000_000)
    for _ in range(length // len(block)):
        parts.append(packer.compress(block))
    return b"".join([*parts, packer.compress(bytes(length % len(block))), packer.flush()])


def png(width, height, depth=8, color=2, *extra, rows=b"\0"):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", head, *extra, chunk(b"IDAT", rows), chunk(b"IEND", b"")])


def tiff(tags, data=b"", order="<"):
    """A TIFF of one page whose strip or tile follows its tags, which have 4 bytes each."""
    lines = b"".join(
        struct.pack(order + "HHII", number, 4, 1, value) for number, value in sorted(tags.items())
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + lines + bytes(4) + data


def whole_tiff(width, height, bits, form, row):
    """A TIFF of one deflated strip of zeros, `row` bytes a row."""
    tags = {
        256: width,
        257: height,
        258: bits,
        259: 8,
        262: 1,
        277: 1,
        278: height,
        339: form,
        273: 0,
        279: 0,
    }
    data = zeros(row * height)
    tags |= {273: 8 + 2 + 12 * len(tags) + 4, 279: len(data)}
    return tiff(tags, data)


def icon(inner, width=0, bits=32):
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, width, width, 0, 0, 1, bits, len(inner), 22) + inner


def dib(width, height):
    return struct.pack("<IiiHHIIiiII", 40, width, 2 * height, 1, 32, 0, 0, 0, 0, 0, 0)


def jpeg_of_scans(count, side=64):
    """A progressive JPEG whose last scan is repeated."""
    data = encoded(Image.new("L", (side, side), 90), "jpeg", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * count + b"\xff\xd9"


def webp_header(width, height):
    body = (
        b"WEBPVP8X"
        + struct.pack("<II", 10, 2)
        + (width - 1).to_bytes(3, "little")
        + (height - 1).to_bytes(3, "little")
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def loop_of_pages():
    tags = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 277: 1, 278: 1, 273: 200, 279: 1}
    lines = b"".join(
        struct.pack("<HHII", number, 4, 1, value) for number, value in sorted(tags.items())
    )
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + lines + struct.pack("<I", 8)).ljust(
        300, b"\x07"
    )


LARGE = {
    "png": lambda: png(60_000, 60_000),
    "png, one row": lambda: png(2_000_000_000, 1),
    "bmp": lambda: (
        b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
        + bytes(99)
    ),
    "gif": lambda: (
        b"GIF89a"
        + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0)
        + b"\2\2L\1\0;"
    ),
    "ppm": lambda: b"P6 60000 60000 255\n",
    "pfm": lambda: b"Pf 60000 60000 -1.0\n",
    "qoi": lambda: b"qoif" + struct.pack(">IIBB", 60_000, 60_000, 3, 0),
    "webp": lambda: webp_header(16_383, 16_383),
    "icon of a png": lambda: icon(png(40_000, 40_000)),
    "icon of a bitmap": lambda: icon(dib(40_000, 40_000)),
    "icon of a png a little too large": lambda: icon(png(4_000, 4_000)),
    "tiff": lambda: tiff(
        {256: 60_000, 257: 60_000, 258: 8, 259: 1, 262: 1, 277: 1, 273: 200, 279: 1}, bytes(99)
    ),
    "tiff of a huge tile": lambda: tiff(
        {
            256: 16,
            257: 16,
            258: 8,
            259: 8,
            262: 1,
            277: 1,
            322: 60_000,
            323: 60_000,
            324: 200,
            325: 9,
        },
        bytes(99),
    ),
    "jpeg of 3,000 scans": lambda: jpeg_of_scans(3000),
    "large jpeg of 90 scans": lambda: large_scans(90),
    "grey of floats": lambda: whole_tiff(13_300, 13_300, 32, 3, 4 * 13_300),
    "grey of 32 bits": lambda: whole_tiff(13_300, 13_300, 32, 1, 4 * 13_300),
    "png with transparency": lambda: png(13_000, 13_000, 8, 6),
    "png of grey and alpha": lambda: png(13_000, 13_000, 8, 4),
    "png of 16 bits and alpha": lambda: png(13_000, 13_000, 16, 6),
    "png of a palette with a clear colour": lambda: png(
        13_000, 13_000, 8, 3, chunk(b"PLTE", bytes(6)), chunk(b"tRNS", b"\0")
    ),
}


def large_scans(count):
    data = bytearray(jpeg_of_scans(count))
    at = data.index(b"\xff\xc2") + 5
    data[at : at + 4] = struct.pack(">HH", 9000, 9000)
    return bytes(data)


@pytest.mark.parametrize("what", list(LARGE))
def test_what_would_take_too_much_is_refused_before_it_is_decoded(tmp_path, what):
    path = tmp_path / "bomb"
    path.write_bytes(LARGE[what]())
    began = time.process_time()
    with pytest.raises(MediaError, match=r"limit|scans|larger than itself") as caught:
        load_image(path)
    assert time.process_time() - began < 3 and str(caught.value).startswith(f"{path} ")


@pytest.mark.parametrize("format", ["JPEG2000", "AVIF"])
def test_the_limit_holds_in_every_format(tmp_path, format):
    Image.init()
    if format not in Image.SAVE:
        pytest.skip("this Pillow lacks the format")
    Image.new("RGB", (64, 64)).save(tmp_path / "a", format)
    with pytest.raises(MediaError, match="64 x 64 pixels, more than the limit of 4095"):
        load_image(tmp_path / "a", max_pixels=64 * 64 - 1)


def gif_of_frames(count):
    frame = b",\0\0\0\0\1\0\1\0\0\2\2L\1\0"
    return b"GIF89a\1\0\1\0\x80\0\0\xff\0\0\0\0\xff" + frame * count + b";"


def tiff_of_pages(count):
    tags = [
        (256, 1),
        (257, 1),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 1),
        (279, 1),
    ]
    size = 2 + 12 * len(tags) + 4
    lines = b"".join(struct.pack("<HHII", number, 4, 1, value) for number, value in tags)
    pages = [
        struct.pack("<H", len(tags))
        + lines
        + struct.pack("<I", 12 + size * (i + 1) if i + 1 < count else 0)
        for i in range(count)
    ]
    return b"II*\0" + struct.pack("<I", 12) + b"\x07\0\0\0" + b"".join(pages)


def moving_png(frames):
    return png(
        1, 1, 8, 2, chunk(b"acTL", struct.pack(">II", frames, 0)), rows=zlib.compress(b"\0\xff\0\0")
    )


# Case -> (file, number of frames in its Media).
READ = {
    "a million pages": (lambda: tiff_of_pages(200_000), frame_counts.MOST_FRAMES),
    "a hundred pages": (lambda: tiff_of_pages(100), 100),
    "pages in a circle": (loop_of_pages, 1),
    "a gif of 500,000 frames": (lambda: gif_of_frames(500_000), frame_counts.MOST_FRAMES),
    "a gif of 300 frames": (lambda: gif_of_frames(300), 300),
    "a png that claims a billion frames": (lambda: moving_png(10**9), None),
    "text in a png": (
        lambda: png(
            16,
            16,
            8,
            0,
            chunk(b"zTXt", b"a\0\0" + zeros(300_000_000)),
            rows=zlib.compress(bytes(17 * 16)),
        ),
        1,
    ),
    "a thousand texts in a png": (
        lambda: png(
            16,
            16,
            8,
            0,
            *[chunk(b"zTXt", b"a\0\0" + zeros(10_000_000))] * 1000,
            rows=zlib.compress(bytes(17 * 16)),
        ),
        1,
    ),
    "a profile in a png": (
        lambda: png(
            16,
            16,
            8,
            0,
            chunk(b"iCCP", b"a\0\0" + zeros(300_000_000)),
            rows=zlib.compress(bytes(17 * 16)),
        ),
        1,
    ),
    "a jpeg of 90 scans": (lambda: jpeg_of_scans(80), 1),
    "pixels packed beyond their number": (lambda: png(16, 16, 8, 0, rows=zeros(300_000_000)), 1),
}


@pytest.mark.parametrize("what", list(READ))
def test_what_is_sound_inside_a_bomb_is_read_in_little_time(tmp_path, what):
    build, frames = READ[what]
    (tmp_path / "bomb").write_bytes(build())
    began = time.process_time()
    try:
        _, media = load_image(tmp_path / "bomb")
        assert media.frames == frames or frames is None
    except MediaError as error:
        assert "beyond" in what and "damaged" in str(error)
    assert time.process_time() - began < 5


HEAVY = {
    "plain RGB": (lambda: png(12_000, 12_000, rows=zeros(12_000 * 36_001)), None),
    "floats": (lambda: whole_tiff(8_000, 8_000, 32, 3, 32_000), None),
    "16 bits": (lambda: png(9_000, 9_000, 16, 0, rows=zeros(9_000 * 18_001)), None),
    "transparency": (lambda: png(8_500, 8_500, 8, 6, rows=zeros(8_500 * 34_001)), None),
    "webp": (
        lambda: encoded(
            Image.new("RGB", (8_000, 8_000)), "webp", lossless=True, quality=0, method=0
        ),
        None,
    ),
    "progressive jpeg": (
        lambda: encoded(Image.new("RGB", (9_000, 9_000)), "jpeg", progressive=True),
        None,
    ),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kB here")
@pytest.mark.parametrize("what", list(HEAVY))
def test_the_largest_pictures_stay_within_the_stated_memory(tmp_path, what):
    (tmp_path / "heavy").write_bytes(HEAVY[what][0]())
    code = (
        "import resource, sys\nfrom pathlib import Path\nimport numpy\nfrom "
        "trimtok_cli.media.images import load_image\n"
        "before = "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nload_image(Path(sys.argv[1]))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "heavy")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) <= image_limits.MOST_BYTES


# The message for a file that is no picture

SECRET = b"root:*:20228:0:99999:7:::\ndaemon:*:20228\n"
OTHERS = {
    "a text file": SECRET,
    "an HTML page": b"<!DOCTYPE html><html>" + SECRET,
    "a ZIP archive": b"PK\3\4" + SECRET,
    "a PDF": b"%PDF-1.7\n" + SECRET,
    "an SVG drawing": b"<svg xmlns='http://www.w3.org/2000/svg'>" + SECRET,
    "an SVG drawing ": b"<?xml version='1.0'?>\n<!-- " + SECRET + b" -->\n<svg>",
    "an XML file": b"<?xml version='1.0'?><a>" + SECRET,
    "a packed archive": b"\x1f\x8b\x08" + SECRET,
    "a PostScript file": b"%!PS-Adobe-3.0\n" + SECRET,
    "a sound file": b"ID3\4" + SECRET,
    "a Photoshop document": b"8BPS" + SECRET,
    "a JPEG XL picture": b"\xff\x0a" + SECRET,
    "a program": b"\x7fELF" + SECRET,
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\n" + SECRET,
    "a JSON file": b'{"a": 1}' + SECRET,
    "a playlist": b"#EXTM3U\n" + SECRET,
    "nothing but zeros": bytes(99),
    "nothing but white space": b"\n \n",
    "nothing known": b"\1\2" + SECRET,
}


@pytest.mark.parametrize("what", list(OTHERS))
@pytest.mark.parametrize(
    "load", [load_image, lambda path: load_video(path, FrameRule())], ids=["image", "video"]
)
def test_a_message_says_what_a_file_looks_like_and_quotes_none_of_it(tmp_path, what, load):
    (tmp_path / "file.jpg").write_bytes(OTHERS[what])
    with pytest.raises(MediaError) as caught:
        load(tmp_path / "file.jpg")
    said = str(caught.value).replace(str(tmp_path), "")
    assert f"(it looks like {what.strip()}" in said and "\\x" not in said
    assert not any(word in said for word in ("root", "daemon", "20228"))


STARTS = {
    "PNG": b"\x89PNG\r\n\x1a\n",
    "PNG chunk": b"\x89PNG\r\n\x1a\n\0\0\0\4",
    "JPEG": b"\xff\xd8\xff\xe0",
    "GIF": b"GIF89a",
    "BMP": b"BM\0\0\0\0\0\0\0\0\0\0\0\0\x28\0\0\0",
    "PPM": b"P6 ",
    "plain PPM": b"P3\n1 1 255\n",
    "PPM number": b"P5 12",
    "TIFF": b"II*\0\x08\0\0\0",
    "WebP": b"RIFF\x40\0\0\0WEBPVP8 ",
    "JPEG2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0",
    "ICO": b"\0\0\1\0\1\0",
    "QOI": b"qoif",
    "MP4": b"\0\0\0\x18ftypisom",
    "Matroska": b"\x1aE\xdf\xa3",
    "AVI": b"RIFF\x40\0\0\0AVI ",
    "MPEG": b"\0\0\1\xba",
    "FLV": b"FLV\1",
    "Ogg": b"OggS",
    "y4m": b"YUV4MPEG2 ",
    "ivf": b"DKIF",
}


@pytest.mark.parametrize("start", list(STARTS))
@pytest.mark.parametrize(
    "load",
    [load_image, lambda path: load_video(path, FrameRule(timeout=60))],
    ids=["image", "video"],
)
def test_no_message_quotes_a_file_that_only_begins_like_one(tmp_path, start, load):
    (tmp_path / "file").write_bytes(STARTS[start] + SECRET * 3)
    with pytest.raises(MediaError) as caught:
        load(tmp_path / "file")
    said = str(caught.value).replace(str(tmp_path), "")
    assert (
        not any(word in said for word in ("root", "daemon", "20228", "b'", "\\x", "oot:"))
        and "\n" not in said
    )


def test_libtiff_prints_nothing(tmp_path, capfd):
    random = np.random.default_rng(1)
    for compression in ("tiff_adobe_deflate", "tiff_lzw", "packbits", "jpeg"):
        data = encoded(
            Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)),
            "TIFF",
            compression=compression,
        )
        for _ in range(15):
            damaged = np.frombuffer(data, np.uint8).copy()
            damaged[random.integers(0, len(data), 40)] = random.integers(0, 256, 40)
            (tmp_path / "a.tif").write_bytes(damaged.tobytes())
            with suppress(MediaError):
                load_image(tmp_path / "a.tif", max_pixels=1_000_000)
    assert capfd.readouterr() == ("", "")


def test_pillow_logs_nothing_where_nobody_has_asked_for_logs(tmp_path):
    """Runs in a process of its own, as pytest listens to every log."""
    data = bytearray(encoded(RED, "TIFF"))
    entry = data.index(struct.pack("<HHI", 277, 3, 1))  # SamplesPerPixel
    data[entry + 8 : entry + 10] = struct.pack("<H", 61440)
    (tmp_path / "a.tif").write_bytes(data)
    code = (
        "import sys; from pathlib import Path; from trimtok_cli.media.images import "
        "load_image; load_image(Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.tif"], cwd=ROOT, capture_output=True, text=True
    )
    assert "MediaError: " in done.stderr and "More samples" not in done.stderr.split("Traceback")[0]


def test_scans_are_counted_without_decoding(tmp_path):
    assert (
        jpeg_marks.read_marks(jpeg_of_scans(20)).scans == 25
        and jpeg_marks.read_marks(encoded(RED, "jpeg")).scans == 1
    )
    with BytesIO(jpeg_of_scans(5)) as file, Image.open(file) as image:
        image.load()  # the bomb of the tests is a sound JPEG
