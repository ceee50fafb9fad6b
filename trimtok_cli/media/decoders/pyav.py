"""PyAV: finds each frame by its exact time; reads the whole file where the times are unknown."""

import math
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from trimtok_cli.data import FrameRule
from trimtok_cli.errors import MediaError
from trimtok_cli.media.containers import degrees_of_turn
from trimtok_cli.media.decoders.answer import (
    Answer,
    choose_frames,
    fit_frame,
    refuse_mixed_sizes,
)
from trimtok_cli.media.image_limits import MOST_PIXELS
from trimtok_cli.media.kinds import DEMUXERS, HEAD, container
from trimtok_cli.media.packets import Clock, Packets

THREADS = 4

# Pixels of a frame. Larger frames are decoded by one thread: each further thread holds frames of
# its own.
LARGE_FRAME = 9_000_000

# Pixels of one frame; an 8K video has 33 million.
MOST_FRAME = 36_000_000

# A pixel that is so many times as wide as high, or the reverse, is not believed.
_STRANGEST_SHAPE = 8


def read(path: str, name: str, rule: FrameRule, last: bool) -> Answer:
    """The chosen frames of a file. ValueError or a library's error where the file is damaged."""
    opened, stream = open_stream(path, name)
    with opened:
        clock, pixel_shape = Clock.of(stream), pixel_shape_of(stream)
        upright = partial(_upright, name=name, pixel_shape=pixel_shape)
        packets = Packets.of(opened, stream)
        if packets.shown:
            chosen, answer = choose_frames(name, *clock.times(packets.shown), rule)
            take = partial(upright, max_pixels=MOST_PIXELS // len(chosen), answer=answer)
            times = [packets.shown[number] for number in chosen]
            frames = _seek(opened, stream, times, packets.keys, take)
            if frames:
                refuse_mixed_sizes(frames)
                return answer, frames
    # The packets did not foretell the frames. Decode everything twice: for the times, then for the
    # frames.
    shown = [frame.pts for frame in _decode_all(path, name)]
    if not shown:
        raise ValueError("no frame can be decoded")
    if None in shown or len(set(shown)) < len(shown):
        shown = [round(number / clock.rate / clock.tick) for number in range(len(shown))]
    # The times of an AVI come in the order of decoding, its frames in the order of showing.
    shown.sort()
    chosen, answer = choose_frames(name, *clock.times(shown), rule)
    take = partial(upright, max_pixels=MOST_PIXELS // len(chosen), answer=answer)
    wanted = set(chosen)
    every = enumerate(_decode_all(path, name))
    frames = [take(frame) for number, frame in every if number in wanted]
    refuse_mixed_sizes(frames)
    return answer, frames


def open_stream(path: str, name: str) -> tuple[Any, Any]:
    """The file as a PyAV container, which the caller closes, and its best video stream.

    Only the demuxer of the file's kind is allowed: FFmpeg would take a text for a playlist and
    follow it. MediaError where there is no moving picture, or one of too large frames.
    """
    import av

    with open(path, "rb") as file:
        kind = container(file.read(HEAD))
    opened = av.open(path, format=DEMUXERS[kind], options={"protocol_whitelist": "file"})
    stream = opened.streams.best("video")
    if stream is None:
        opened.close()
        raise MediaError(f"{name} holds no moving picture, only sound or text; name a video file")
    area = stream.codec_context.width * stream.codec_context.height
    try:
        _refuse_large(name, stream.codec_context)
    except MediaError:
        opened.close()
        raise
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = THREADS if area <= LARGE_FRAME else 1
    return opened, stream


def pixel_shape_of(stream: Any) -> Fraction:
    """A pixel's width over its height, as players show it."""
    shape = stream.sample_aspect_ratio or Fraction(1)
    return shape if Fraction(1, _STRANGEST_SHAPE) <= shape <= _STRANGEST_SHAPE else Fraction(1)


def _refuse_large(name: str, picture: Any) -> None:
    """Raises MediaError where a codec context or a frame has too many pixels."""
    if picture.width * picture.height > MOST_FRAME:
        size = f"{picture.width} x {picture.height}"
        raise MediaError(
            f"{name} has frames of {size} pixels, more than the limit of {MOST_FRAME}; make "
            "it smaller"
        )


def _decode_all(path: str, name: str) -> Iterator[Any]:
    opened, stream = open_stream(path, name)
    with opened:
        yield from opened.decode(stream)


def _seek(
    opened: Any,
    stream: Any,
    wanted: list[int],
    keys: list[tuple[int, int]],
    take: Callable[[Any], np.ndarray],
) -> list[np.ndarray]:
    """The frames with exactly the times `wanted`, each decoded from the keyframe before it.

    wanted: ascending, in ticks; keys: (pts, dts) of the keyframes, ascending; take: a PyAV frame ->
    pixels. Returns [] where one of the times does not come.
    """
    taken: list[np.ndarray] = []
    here: int | None = None
    frames: Iterator[Any] = iter(())
    for pts in wanted:
        key = bisect_right(keys, (pts, math.inf)) - 1
        if key < 0:
            return []
        if here is None or keys[key][0] > here:
            # By dts, as files are indexed. A seek that lands too early is only slower.
            opened.seek(keys[key][1], stream=stream)
            frames = opened.decode(stream)
        for frame in frames:
            if frame.pts is None or frame.pts > pts:
                return []
            here = frame.pts
            if here == pts:
                taken.append(take(frame))
                break
        else:
            return []
    return taken


def _upright(
    frame: Any, *, name: str, pixel_shape: Fraction, max_pixels: int, answer: dict[str, Any]
) -> np.ndarray:
    """The pixels of a frame, square and turned as players show them.

    The first frame sets `answer["rotation"]`. ValueError for a frame that the codec patched up.
    """
    if frame.is_corrupt:
        raise ValueError(f"the frame at {frame.time or 0:.2f} seconds is damaged")
    _refuse_large(name, frame)
    rotation = _rotation_of(frame)
    answer.setdefault("rotation", rotation)
    pixels = frame.to_ndarray(format="rgb24")
    fitted = fit_frame(pixels, pixel_shape=pixel_shape, max_pixels=max_pixels, answer=answer)
    return np.rot90(fitted, -rotation // 90)


def _rotation_of(frame: Any) -> int:
    """Degrees clockwise, a multiple of 90, by which players turn a frame."""
    if hasattr(frame, "rotation"):
        return round(-frame.rotation / 90) * 90 % 360
    # PyAV 14.0 does not work out the rotation.
    matrix = frame.side_data.get("DISPLAYMATRIX")
    cos, sin = struct.unpack_from("=2i", bytes(matrix)) if matrix is not None else (1, 0)
    return degrees_of_turn(sin, cos)
