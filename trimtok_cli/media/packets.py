"""When a stream's frames are shown, by its packets, and whether each of its keyframes starts
afresh. Decodes nothing.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from trimtok_cli.errors import MediaError

MOST_PACKETS = 5_000_000  # a day at 50 frames a second

SEEKS = {
    "h264": (5,),
    "hevc": (19, 20),
    "vp9": (),
    "mpeg4": (),
}  # codecs decord seeks in; NAL types of a full restart (IDR)


@dataclass(frozen=True, slots=True)
class Clock:
    """What a stream says of time: seconds per tick, frames per second, and the tick at which it
    ends (None: not said).
    """

    tick: Fraction
    rate: float
    end: int | None

    @classmethod
    def of(cls, stream: Any) -> "Clock":
        end = None if stream.duration is None else (stream.start_time or 0) + stream.duration
        return cls(stream.time_base, float(stream.average_rate or stream.guessed_rate or 25), end)

    def times(self, shown: list[int]) -> tuple[list[float], float]:
        """When frames are shown and how long the video is, in seconds after the first frame, from
        ascending ticks.
        """
        starts = [float((pts - shown[0]) * self.tick) for pts in shown]
        told = 0.0 if self.end is None else float((self.end - shown[0]) * self.tick)
        return starts, max(told, usual_end(starts, self.rate))


def usual_end(starts: list[float], rate: float) -> float:
    """The end of the last frame if it lasts as long as most. A packet's own duration is no help: it
    counts decoding times.
    """
    return float(starts[-1] + (np.median(np.diff(starts)) if len(starts) > 1 else 1 / rate))


@dataclass(frozen=True, slots=True)
class Packets:
    """A stream's packets in its time base: `shown` ascending; `keys` (pts, dts) of keyframes;
    `closed`: each starts afresh.
    """

    shown: list[int]
    keys: list[tuple[int, int]]
    closed: bool

    @classmethod
    def of(cls, container: Any, stream: Any) -> "Packets":
        restarts = SEEKS.get(stream.codec_context.name, ())
        size = _nal_size(stream)
        shown: list[int] = []
        keys: list[tuple[int, int]] = []
        told, closed = (
            container.format.name != "avi",
            True,
        )  # an AVI tells no presentation times, FFmpeg makes them up
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if len(shown) > MOST_PACKETS:
                raise MediaError(f"a video of more than {MOST_PACKETS} frames is not read; cut it")
            if packet.pts is None:
                told = False
                continue
            if packet.is_keyframe:
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
                closed &= not restarts or bool(size and _restarts(bytes(packet), size, restarts))
            closed &= bool(keys) and packet.pts >= keys[-1][0] and not packet.is_discard
            if not packet.is_discard:
                shown.append(packet.pts)
        told &= len(set(shown)) == len(shown)
        return cls(sorted(shown) if told else [], sorted(keys), closed and told)


def _nal_size(stream: Any) -> int:
    """Bytes of the length before each NAL unit; 0 where units are not counted so."""
    extra = stream.codec_context.extradata or b""
    if extra[:1] != b"\1":
        return 0
    place = {"h264": 4, "hevc": 21}.get(stream.codec_context.name, len(extra))
    return (extra[place] & 3) + 1 if place < len(extra) else 0


def _restarts(data: bytes, size: int, kinds: tuple[int, ...]) -> bool:
    """Whether a packet's first picture unit is of one of these NAL types. Otherwise older pictures
    may be needed after it.
    """
    at, hevc = 0, 19 in kinds
    while at + size < len(data):
        kind = data[at + size] >> 1 & 63 if hevc else data[at + size] & 31
        if kind < 32 if hevc else 1 <= kind <= 5:
            return kind in kinds
        at += size + int.from_bytes(data[at : at + size], "big")
    return False
