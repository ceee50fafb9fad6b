"""When the frames of a video stream are shown, by its packets, and whether each keyframe starts
afresh. Decodes nothing. Streams and packets are PyAV's.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from trimtok_cli.errors import MediaError

# A day at 50 frames a second.
MOST_PACKETS = 5_000_000

# Codecs that decord may seek in -> the NAL types of a full restart (IDR).
SEEKS = {"h264": (5,), "hevc": (19, 20), "vp9": (), "mpeg4": ()}


@dataclass(frozen=True, slots=True)
class Clock:
    """The times of a stream.

    tick: seconds per tick; rate: frames per second; end: the tick at which the stream ends, None
    where the file does not say.
    """

    tick: Fraction
    rate: float
    end: int | None

    @classmethod
    def of(cls, stream: Any) -> "Clock":
        """The clock of a video stream; 25 frames per second where the file gives no rate."""
        end = None if stream.duration is None else (stream.start_time or 0) + stream.duration
        return cls(stream.time_base, float(stream.average_rate or stream.guessed_rate or 25), end)

    def times(self, shown: list[int]) -> tuple[list[float], float]:
        """When frames are shown, and the length of the video, in seconds from the first frame.

        shown: when frames are shown, in ticks, ascending.
        """
        starts = [float((pts - shown[0]) * self.tick) for pts in shown]
        duration = usual_end(starts, self.rate)
        if self.end is not None:
            duration = max(float((self.end - shown[0]) * self.tick), duration)
        return starts, duration


def usual_end(starts: list[float], rate: float) -> float:
    """The end of the last frame in seconds, if the frame lasts as long as most.

    A packet's own duration is no help: it counts decoding times.
    """
    return float(starts[-1] + (np.median(np.diff(starts)) if len(starts) > 1 else 1 / rate))


@dataclass(frozen=True, slots=True)
class Packets:
    """The packets of a stream, in ticks.

    shown: when frames are shown, ascending, [] where that is not known; keys: (pts, dts) of the
    keyframes, ascending; closed: every keyframe starts afresh.
    """

    shown: list[int]
    keys: list[tuple[int, int]]
    closed: bool

    @classmethod
    def of(cls, container: Any, stream: Any) -> "Packets":
        """The packets of a video stream, all of which are read. MediaError for too many of them."""
        restarts = SEEKS.get(stream.codec_context.name, ())
        size = _nal_size(stream)
        shown: list[int] = []
        keys: list[tuple[int, int]] = []
        # An AVI has no presentation times: FFmpeg makes them up.
        timed = container.format.name != "avi"
        closed = True
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if len(shown) > MOST_PACKETS:
                raise MediaError(f"a video of more than {MOST_PACKETS} frames is not read; cut it")
            if packet.pts is None:
                timed = False
                continue
            if packet.is_keyframe:
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
                closed &= not restarts or bool(size and _restarts(bytes(packet), size, restarts))
            closed &= bool(keys) and packet.pts >= keys[-1][0] and not packet.is_discard
            if not packet.is_discard:
                shown.append(packet.pts)
        timed &= len(set(shown)) == len(shown)
        return cls(shown=sorted(shown) if timed else [], keys=sorted(keys), closed=closed and timed)


def _nal_size(stream: Any) -> int:
    """Bytes of the length in front of each NAL unit; 0 where units have no such length."""
    extra = stream.codec_context.extradata or b""
    if extra[:1] != b"\1":
        return 0
    offset = {"h264": 4, "hevc": 21}.get(stream.codec_context.name, len(extra))
    return (extra[offset] & 3) + 1 if offset < len(extra) else 0


def _restarts(data: bytes, size: int, kinds: tuple[int, ...]) -> bool:
    """Whether the first picture unit of a packet is of one of these NAL types.

    If not, pictures before the packet may be needed for those after it.
    """
    is_hevc = 19 in kinds
    at = 0
    while at + size < len(data):
        kind = data[at + size] >> 1 & 63 if is_hevc else data[at + size] & 31
        is_picture = kind < 32 if is_hevc else 1 <= kind <= 5
        if is_picture:
            return kind in kinds
        at += size + int.from_bytes(data[at : at + size], "big")
    return False
