"""Small clips for the tests of video reading: each frame shows its own number, and which way is up.

A frame is 96 x 64 in blocks of 24 x 32: the top left block is red, the bottom right one blue, the
six between them are the number in binary. Knows nothing of the code under test.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 96, 64
_SPOTS = ((0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2))  # (row, column) of bits 5..0


def picture(number: int) -> np.ndarray:
    """The upright RGB picture (64, 96, 3) of frame `number`, 0..63."""
    blocks = np.full((2, 4, 3), 20, dtype=np.uint8)
    blocks[0, 0], blocks[1, 3] = (220, 30, 30), (30, 30, 220)
    for bit, spot in enumerate(_SPOTS):
        blocks[spot] = 235 if number >> (5 - bit) & 1 else 20
    return blocks.repeat(32, axis=0).repeat(24, axis=1)


def number_in(image: Image.Image) -> int:
    """The number that the picture shows; AssertionError where it is not upright, not RGB or torn."""
    assert (image.mode, image.size) == ("RGB", (WIDTH, HEIGHT))
    blocks = (
        np.asarray(image, dtype=float).reshape(2, 32, 4, 24, 3)[:, 4:-4, :, 4:-4].mean(axis=(1, 3))
    )
    assert blocks[0, 0].argmax() == 0 and np.ptp(blocks[0, 0]) > 90, "the top left block is not red"
    assert blocks[1, 3].argmax() == 2 and np.ptp(blocks[1, 3]) > 90, (
        "the bottom right block is not blue"
    )
    grey = [blocks[spot].mean() for spot in _SPOTS]
    assert all(value < 90 or value > 165 for value in grey), f"blurred or torn: {grey}"
    return sum(1 << (5 - bit) for bit, value in enumerate(grey) if value > 128)


def make_clip(
    path: Path,
    ticks: Sequence[int] | int = 30,
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    rate: int = 10,
    turn: int = 0,
    change: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Path:
    """A clip whose frame i appears at ticks[i] / `rate` seconds.

    turn: degrees clockwise by which the pictures are stored turned, as a phone held upright stores
    them; the caller then marks the file with `mark_rotation`.
    """
    import av

    ticks = range(ticks) if isinstance(ticks, int) else ticks
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.pix_fmt = "yuv420p"
        stream.width, stream.height = (HEIGHT, WIDTH) if turn % 180 else (WIDTH, HEIGHT)
        stream.time_base = stream.codec_context.time_base = Fraction(1, rate)
        for number, tick in enumerate(ticks):
            pixels = np.ascontiguousarray(np.rot90(picture(number), -turn // 90))
            frame = av.VideoFrame.from_ndarray(change(pixels) if change else pixels, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def mark_rotation(path: Path, degrees: int) -> Path:
    """Patches the mp4's display matrix, by which a player turns the picture clockwise."""
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # version 0: the matrix is 40 bytes into the box
    for place, value in ((0, cos), (4, sin), (12, -sin), (16, cos)):
        data[start + place : start + place + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    return path
