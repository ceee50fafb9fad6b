"""decord: fast, but it finds a frame by counting from a keyframe, which goes wrong in several kinds
of files.

Therefore decord may seek only where PyAV's list of the packets shows that seeking is right. In
other files it reads frame after frame, or raises ValueError and leaves the file to PyAV.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from importlib.util import find_spec

import numpy as np

from trimtok_cli.data import FrameRule
from trimtok_cli.media.containers import rotation_of
from trimtok_cli.media.decoders import pyav
from trimtok_cli.media.decoders.answer import Answer, choose_frames, fit_frame
from trimtok_cli.media.image_limits import MOST_PIXELS
from trimtok_cli.media.kinds import container
from trimtok_cli.media.packets import SEEKS, Clock, Packets, usual_end

# Seconds: decord holds times as 32-bit floats.
_TOLERANCE = 1e-3

_HEAD = 8192  # bytes

# FFmpeg's names of the formats that decord may seek in.
_SEEKABLE_FORMATS = ("mov", "matroska", "flv")

_PROJECTION_POSE_ROLL = re.compile(b"\x76\x75[\x84\x88]")


@dataclass(frozen=True, slots=True)
class _PacketTimes:
    """What the packets say of a file.

    starts: when frames are shown, in seconds from the first; duration in seconds; seeks: whether
    decord's seeking is right; pixel_shape: width over height of a pixel.
    """

    starts: list[float]
    duration: float
    seeks: bool
    pixel_shape: Fraction


def read(path: str, name: str, rule: FrameRule, last: bool) -> Answer:
    """The chosen frames of a file. ValueError where decord cannot be shown to find the right ones.

    last: no other decoder will be asked, so decord may read slowly from the first frame on.
    """
    import decord

    _refuse_misread_files(path)
    has_pyav = bool(find_spec("av"))
    packets = _packet_times(path, name) if has_pyav else _PacketTimes([], 0.0, False, Fraction(1))
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=pyav.THREADS)
    stamps = np.asarray(reader.get_frame_timestamp(list(range(len(reader)))), dtype=np.float64)
    starts = stamps[:, 0] - stamps[0, 0]
    # A first frame before 0 is also the sign of an edit list that skips the first frames.
    first = stamps[0, 0]
    if not abs(first) < 1e9 or first < -_TOLERANCE or (np.diff(starts) <= 0).any():
        raise ValueError("decord does not know when its frames are shown")
    if has_pyav:
        _refuse_other_times(starts, packets)
        starts = np.array(packets.starts)
        duration = packets.duration
    else:
        duration = usual_end(list(starts), reader.get_avg_fps())
    if not packets.seeks and not last:
        raise ValueError("decord may take the wrong frame")
    chosen, answer = choose_frames(name, list(map(float, starts)), duration, rule)
    rotation = rotation_of(path)
    # decord has already turned the frames, so the shape of a pixel turns with them.
    turned = rotation % 180 != 0
    fit = partial(
        fit_frame,
        pixel_shape=1 / packets.pixel_shape if turned else packets.pixel_shape,
        max_pixels=MOST_PIXELS // len(chosen),
        answer=answer,
    )
    if packets.seeks:
        frames = [fit(reader[number].asnumpy()) for number in chosen]
    else:
        # next() only: skip_frames() is off by some frames in files whose reader does not stand at
        # the first frame.
        every = (reader.next() for _ in range(chosen[-1] + 1))
        wanted = set(chosen)
        frames = [fit(frame.asnumpy()) for number, frame in enumerate(every) if number in wanted]
    return answer | {"rotation": rotation}, frames


def _refuse_misread_files(path: str) -> None:
    """Raises ValueError for a file that is not of a kind that decord is known to read right.

    An allow-list: decord's own FFmpeg chooses the demuxer, and only these marks are sure to choose
    the right one.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    kind = container(head)
    if kind not in ("mp4", "mkv", "flv") or (kind == "mp4" and head[4:8] != b"ftyp"):
        raise ValueError("decord does not find the right frames in this kind of file")
    if kind == "mkv" and _PROJECTION_POSE_ROLL.search(head):
        raise ValueError("decord does not turn rotated Matroska files")


def _refuse_other_times(starts: np.ndarray, packets: _PacketTimes) -> None:
    """Raises ValueError where decord's times (seconds) are not those of the packets."""
    tolerance = max(_TOLERANCE, 1e-6 * packets.duration)
    if (
        len(packets.starts) != len(starts)
        or np.abs(starts - np.array(packets.starts)).max() > tolerance
    ):
        raise ValueError("decord counts frames that are not shown")


def _packet_times(path: str, name: str) -> _PacketTimes:
    """What the packets say, as PyAV lists them. ValueError where the frames are large."""
    opened, stream = pyav.open_stream(path, name)
    with opened:
        # decord holds too many frames of this size at once.
        if stream.codec_context.width * stream.codec_context.height > pyav.LARGE_FRAME:
            raise ValueError("decord holds too many frames of this size")
        packets = Packets.of(opened, stream)
        if not packets.shown:
            return _PacketTimes([], 0.0, False, Fraction(1))
        starts, duration = Clock.of(stream).times(packets.shown)
        seekable = (
            stream.codec_context.name in SEEKS
            and opened.format.name.split(",")[0] in _SEEKABLE_FORMATS
        )
        return _PacketTimes(
            starts=starts,
            duration=duration,
            seeks=seekable and packets.closed,
            pixel_shape=pyav.pixel_shape_of(stream),
        )
