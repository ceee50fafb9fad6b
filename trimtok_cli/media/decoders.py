"""What runs in the child process of video.py: decord or PyAV takes the chosen frames out of one file and hands them back.

decord finds frames by counting from a keyframe, which goes wrong in several kinds of files; so it may seek only where PyAV's
list of the packets shows that it will be right, and else reads frame after frame. Knows nothing of the parent but its request.
"""

import json
import math
import os
import re
import signal
import struct
import sys
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

import numpy as np

from trimtok_cli.child import end_with_parent
from trimtok_cli.errors import MediaError
from trimtok_cli.media.video import FrameRule, file_kind, mp4_boxes, pick_times

_THREADS = 4
_CLOSE = 1e-3  # seconds: decord tells times in 32-bit floats
_SEEKS = {"h264": (5,), "hevc": (19, 20), "vp9": (), "mpeg4": ()}  # codecs decord seeks in; NAL types of a full restart (IDR)
_Read = tuple[dict[str, Any], list[np.ndarray]]


def main() -> None:
    """Reads the request from the command line; writes one line of JSON and the frames' bytes to stdout."""
    out = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints shall not get between the frames
    request = json.loads(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "setitimer"):  # ends even a native loop, should the parent be gone
        signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 5)
    end_with_parent(lambda: os.read(0, 1))
    frames: list[np.ndarray] = []
    read = {"decord": _read_decord, "pyav": _read_pyav}[request["decoder"]]
    try:
        answer, frames = read(request["path"], request["name"], FrameRule(**request["rule"]), request["last"])
        height, width = frames[0].shape[:2]
        answer |= {"decoder": request["decoder"], "width": width, "height": height}
    except MediaError as error:
        answer = {"final": str(error)}
    except MemoryError:
        answer = {"final": f"{request['name']} does not fit into memory; ask for fewer frames or make it smaller"}
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        answer = {"reason": re.sub(r"^(\[(Errno )?[\d:]+\] (\S+:\d+: )?)+", "", lines[0]).replace(request["path"], "it")[:120]}
    with os.fdopen(out, "wb") as file:
        file.write(json.dumps(answer).encode() + b"\n")
        for frame in frames:
            file.write(np.ascontiguousarray(frame).data)
    os._exit(0)  # decoders have been known to crash while they tidy up


def _answer(name: str, starts: list[float], duration: float, rule: FrameRule) -> tuple[list[int], dict[str, Any]]:
    """The numbers of the frames to take, and what both decoders say about the file. Times in seconds, the first 0."""
    chosen = pick_times(starts, duration, rule)
    if not chosen:
        end = "its end" if rule.end is None else f"{rule.end:g}"
        span = f"between --start {rule.start:g} and --end {end}"
        raise MediaError(f"{name} is {duration:.2f} seconds long and shows no frame {span}; set them inside its length")
    times = [round(max(0.0, starts[number]), 6) for number in chosen]
    fps = len(starts) / duration if duration > 0 else 0.0
    said = {"times": times, "duration": round(duration, 6), "fps": round(fps, 6), "num_frames": len(starts)}
    held = duration - starts[-1]
    notes = [f"its last frame is shown for {held:.1f} seconds; it may be cut short"] if held > 5 + duration / 10 else []
    return chosen, said | {"rotation": 0, "warnings": notes if len(starts) > 1 else []}


def _read_decord(path: str, name: str, rule: FrameRule, last: bool) -> _Read:
    import decord

    _refuse_what_decord_misreads(path)
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=_THREADS)
    stamps = np.asarray(reader.get_frame_timestamp(list(range(len(reader)))), dtype=np.float64)
    starts = stamps[:, 0] - stamps[0, 0]
    duration = _usual_end(list(starts), reader.get_avg_fps())
    if not abs(stamps[0, 0]) < 1e9 or stamps[0, 0] < -_CLOSE or (np.diff(starts) <= 0).any():
        raise ValueError("decord does not know when its frames are shown")  # also an edit list that skips the first ones
    seeks = False
    if find_spec("av"):
        times, duration, seeks = _packets_say(path, name)
        if len(times) != len(starts) or np.abs(starts - times).max() > max(_CLOSE, 1e-6 * duration):
            raise ValueError("decord counts frames that are not shown")
        starts = np.array(times)
    if not seeks and not last:
        raise ValueError("decord may take the wrong frame")
    chosen, answer = _answer(name, list(map(float, starts)), duration, rule)
    if seeks:
        frames = [reader[number].asnumpy() for number in chosen]
    else:  # next() only: skip_frames() is off by some frames in files whose reader does not stand at the first frame
        every, wanted = (reader.next() for _ in range(chosen[-1] + 1)), set(chosen)
        frames = [frame.asnumpy() for number, frame in enumerate(every) if number in wanted]
    return answer | {"rotation": _rotation_of(path)}, frames  # decord has turned them


def _refuse_what_decord_misreads(path: str) -> None:
    with open(path, "rb") as file:
        head = file.read(8192)
    kind = file_kind(head)
    if kind in ("ts", "mpg"):  # it drops the first frames and repeats the last one instead
        raise ValueError("decord does not find the right frames in an MPEG stream")
    if kind == "mkv" and re.search(b"\x76\x75[\x84\x88]", head):  # ProjectionPoseRoll
        raise ValueError("decord does not turn rotated Matroska files")


def _packets_say(path: str, name: str) -> tuple[list[float], float, bool]:
    """When frames are shown and how long the video is, in seconds, and whether decord's seeking is right in this file."""
    container, stream = _open(path, name)
    with container:
        packets = _Packets.of(container, stream)
        if not packets.shown:
            return [], 0.0, False
        exact = stream.codec_context.name in _SEEKS and container.format.name.split(",")[0] in ("mov", "matroska", "flv")
        return *_Clock.of(stream).times(packets.shown), exact and packets.closed


def _rotation_of(path: str) -> int:
    """Degrees clockwise by which an MP4's display matrix turns its first picture track; 0 for other files."""
    with open(path, "rb") as file:
        if file_kind(file.read(256)) != "mp4":
            return 0
        size = os.fstat(file.fileno()).st_size
        at, length = next((at, length) for kind, at, length in mp4_boxes(file, size) if kind == b"moov")
        file.seek(at)
        moov = file.read(length)
    for found in re.finditer(b"tkhd", moov):
        matrix = found.end() + (52 if moov[found.end()] == 1 else 40)
        with suppress(struct.error):
            cos, sin, width = (struct.unpack_from(">i", moov, matrix + place)[0] for place in (0, 4, 36))
            if width:  # a sound track has none
                return round(math.degrees(math.atan2(sin, cos)) / 90) * 90 % 360
    return 0


@dataclass(frozen=True, slots=True)
class _Clock:
    """What a stream says of time: seconds per tick, frames per second, and the tick at which it ends (None: not said)."""

    tick: Fraction
    rate: float
    end: int | None

    @classmethod
    def of(cls, stream: Any) -> "_Clock":
        end = None if stream.duration is None else (stream.start_time or 0) + stream.duration
        return cls(stream.time_base, float(stream.average_rate or stream.guessed_rate or 25), end)

    def times(self, shown: list[int]) -> tuple[list[float], float]:
        """When frames are shown and how long the video is, in seconds after the first frame, from ascending ticks."""
        starts = [float((pts - shown[0]) * self.tick) for pts in shown]
        told = 0.0 if self.end is None else float((self.end - shown[0]) * self.tick)
        return starts, max(told, _usual_end(starts, self.rate))


def _usual_end(starts: list[float], rate: float) -> float:
    """The end of the last frame if it lasts as long as most. A packet's own duration is no help: it counts decoding times."""
    return float(starts[-1] + (np.median(np.diff(starts)) if len(starts) > 1 else 1 / rate))


@dataclass(frozen=True, slots=True)
class _Packets:
    """A stream's packets in its time base: `shown` ascending; `keys` (pts, dts) of keyframes; `closed`: each starts afresh."""

    shown: list[int]
    keys: list[tuple[int, int]]
    closed: bool

    @classmethod
    def of(cls, container: Any, stream: Any) -> "_Packets":
        restarts = _SEEKS.get(stream.codec_context.name, ())
        size = _nal_size(stream)
        shown: list[int] = []
        keys: list[tuple[int, int]] = []
        told, closed = container.format.name != "avi", True  # an AVI tells no presentation times, FFmpeg makes them up
        for packet in container.demux(stream):
            if not packet.size:
                continue
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
    """Whether a packet's first picture unit is of one of these NAL types. Otherwise older pictures may be needed after it."""
    at, hevc = 0, 19 in kinds
    while at + size < len(data):
        kind = data[at + size] >> 1 & 63 if hevc else data[at + size] & 31
        if kind < 32 if hevc else 1 <= kind <= 5:
            return kind in kinds
        at += size + int.from_bytes(data[at : at + size], "big")
    return False


def _open(path: str, name: str) -> tuple[Any, Any]:
    import av

    container = av.open(path)
    stream = container.streams.best("video")
    if stream is None:
        container.close()
        raise MediaError(f"{name} holds no moving picture, only sound or text; name a video file")
    stream.thread_type, stream.codec_context.thread_count = "AUTO", _THREADS
    return container, stream


def _read_pyav(path: str, name: str, rule: FrameRule, last: bool) -> _Read:
    container, stream = _open(path, name)
    with container:
        clock = _Clock.of(stream)
        packets = _Packets.of(container, stream)
        if packets.shown:
            chosen, answer = _answer(name, *clock.times(packets.shown), rule)
            taken = _seek(container, stream, [packets.shown[number] for number in chosen], packets.keys)
            if taken:
                return _upright(answer, taken)
    # Frames that the packets did not foretell: decode everything, once for the times and once for the frames.
    shown = [frame.pts for frame in _every(path, name)]
    if not shown:
        raise ValueError("no frame can be decoded")
    if None in shown or len(set(shown)) < len(shown):
        shown = [round(number / clock.rate / clock.tick) for number in range(len(shown))]
    shown.sort()  # an AVI's times come in the order of decoding, its frames in the order of showing
    chosen, answer = _answer(name, *clock.times(shown), rule)
    wanted = set(chosen)
    return _upright(answer, [_rgb(frame) for number, frame in enumerate(_every(path, name)) if number in wanted])


def _every(path: str, name: str) -> Iterator[Any]:
    container, stream = _open(path, name)
    with container:
        yield from container.decode(stream)


def _seek(container: Any, stream: Any, wanted: list[int], keys: list[tuple[int, int]]) -> list[tuple[np.ndarray, int]]:
    """The frames with exactly these times, each decoded from the keyframe before it; none where one of them does not come."""
    taken: list[tuple[np.ndarray, int]] = []
    here, frames = None, iter(())
    for pts in wanted:
        place = bisect_right(keys, (pts, math.inf)) - 1
        if place < 0:
            return []
        if here is None or keys[place][0] > here:
            container.seek(keys[place][1], stream=stream)  # by dts, as files are indexed; too early is only slower
            frames = container.decode(stream)
        for frame in frames:
            if frame.pts is None or frame.pts > pts:
                return []
            here = frame.pts
            if here == pts:
                taken.append(_rgb(frame))
                break
        else:
            return []
    return taken


def _rgb(frame: Any) -> tuple[np.ndarray, int]:
    """The pixels as stored and the degrees clockwise to turn them by. A frame that was patched up is an error."""
    if frame.is_corrupt:
        raise ValueError(f"the frame at {frame.time or 0:.2f} seconds is damaged")
    return frame.to_ndarray(format="rgb24"), round(-frame.rotation / 90) * 90 % 360


def _upright(answer: dict[str, Any], taken: list[tuple[np.ndarray, int]]) -> _Read:
    frames = [np.rot90(pixels, -turn // 90) for pixels, turn in taken]
    same = frames[0].shape
    if any(frame.shape != same for frame in frames):
        raise ValueError("its pictures change their size")
    return answer | {"rotation": taken[0][1]}, frames
