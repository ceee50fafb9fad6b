"""What runs in the child process of video.py: decord or PyAV takes the chosen frames out of one
file and hands them back.

decord finds frames by counting from a keyframe, which goes wrong in several kinds of files; so it
may seek only where PyAV's list of the packets shows that it will be right, and else reads frame
after frame. Knows nothing of the parent but its request.
"""

import json
import math
import os
import re
import signal
import struct
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trimtok_cli.child_process import end_with_parent
from trimtok_cli.errors import MediaError
from trimtok_cli.media.containers import rotation_of
from trimtok_cli.media.files import machine_fault, plain
from trimtok_cli.media.frames import FrameRule, pick_times
from trimtok_cli.media.images import MOST_FRAMES, MOST_PIXELS, animation
from trimtok_cli.media.kinds import DEMUXERS, HEAD, container
from trimtok_cli.media.packets import SEEKS, Clock, Packets, usual_end

_THREADS = 4

# pixels of a frame from which on one thread decodes: each further one holds frames of its own
_MANY = 9_000_000

_CLOSE = 1e-3  # seconds: decord tells times in 32-bit floats

MOST_FRAME = 36_000_000  # pixels of one frame; an 8K video has 33 million

_STRANGE = 8  # a pixel so many times as wide as high, or the reverse, is not believed

_Read = tuple[dict[str, Any], list[np.ndarray]]


def main() -> None:
    """Reads the request from the command line; writes one line of JSON and the frames' bytes to
    stdout.
    """
    out = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints shall not get between the frames
    request = json.loads(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "setitimer"):  # ends even a native loop, should the parent be gone
        signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 5)
    frames: list[np.ndarray] = []
    read = {"decord": _read_decord, "pyav": _read_pyav, "pillow": _read_pillow}[request["decoder"]]
    os.write(out, b"ready\n")  # whatever happens from here on is the file's doing
    try:
        end_with_parent(lambda: os.read(0, 1))
        answer, frames = read(
            request["path"], request["name"], FrameRule(**request["rule"]), request["last"]
        )
        height, width = frames[0].shape[:2]
        answer |= {"decoder": request["decoder"], "width": width, "height": height}
    except MediaError as error:
        answer = {"final": str(error)}
    except MemoryError:
        answer = {
            "final": f"{request['name']} does not fit into memory; ask for fewer frames or make it "
            "smaller"
        }
    except Exception as error:
        answer = {"reason": _reason(error, request["path"])}
        if fault := machine_fault(error):
            answer = {"final": f"{request['name']} cannot be decoded, as {fault}"}
    with os.fdopen(out, "wb") as file:
        file.write(json.dumps(answer).encode() + b"\n")
        for frame in frames:
            file.write(np.ascontiguousarray(frame).data)
    os._exit(0)  # decoders have been known to crash while they tidy up


def _reason(error: Exception, path: str) -> str:
    """A library's first line, without its numbers and the path, and without what it quotes of the
    file.
    """
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return plain(re.sub(r"^(\[(Errno )?[\d:]+\] (\S+:\d+: )?)+", "", lines[0]).replace(path, "it"))


def _answer(
    name: str, starts: list[float], duration: float, rule: FrameRule
) -> tuple[list[int], dict[str, Any]]:
    """The numbers of the frames to take, and what both decoders say about the file. Times in
    seconds, the first 0.
    """
    chosen = pick_times(starts, duration, rule)
    if not chosen:
        end = "its end" if rule.end is None else f"{rule.end:g}"
        span = f"between --start {rule.start:g} and --end {end}"
        raise MediaError(
            f"{name} is {duration:.2f} seconds long and shows no frame {span}; set them "
            "inside its length"
        )
    times = [round(max(0.0, starts[number]), 6) for number in chosen]
    fps = len(starts) / duration if duration > 0 else 0.0
    said = {
        "times": times,
        "duration": round(duration, 6),
        "fps": round(fps, 6),
        "num_frames": len(starts),
    }
    held = duration - starts[-1]
    notes = (
        [f"its last frame is shown for {held:.1f} seconds; it may be cut short"]
        if held > 5 + duration / 10
        else []
    )
    return chosen, said | {"warnings": notes if len(starts) > 1 else []}


def _read_decord(path: str, name: str, rule: FrameRule, last: bool) -> _Read:
    import decord

    _refuse_what_decord_misreads(path)
    times, duration, seeks, shape = (
        _packets_say(path, name) if find_spec("av") else ([], 0.0, False, Fraction(1))
    )
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=_THREADS)
    stamps = np.asarray(reader.get_frame_timestamp(list(range(len(reader)))), dtype=np.float64)
    starts = stamps[:, 0] - stamps[0, 0]
    if not abs(stamps[0, 0]) < 1e9 or stamps[0, 0] < -_CLOSE or (np.diff(starts) <= 0).any():
        raise ValueError(
            "decord does not know when its frames are shown"
        )  # also an edit list that skips the first ones
    if find_spec("av"):
        if len(times) != len(starts) or np.abs(starts - times).max() > max(_CLOSE, 1e-6 * duration):
            raise ValueError("decord counts frames that are not shown")
        starts = np.array(times)
    else:
        duration = usual_end(list(starts), reader.get_avg_fps())
    if not seeks and not last:
        raise ValueError("decord may take the wrong frame")
    chosen, answer = _answer(name, list(map(float, starts)), duration, rule)
    rotation = rotation_of(path)  # decord has turned the frames
    fit = partial(
        _fitted,
        shape=1 / shape if rotation % 180 else shape,
        most=MOST_PIXELS // len(chosen),
        answer=answer,
    )
    if seeks:
        frames = [fit(reader[number].asnumpy()) for number in chosen]
    else:
        # next() only: skip_frames() is off by some frames in files whose reader does not stand at
        # the first frame
        every, wanted = (reader.next() for _ in range(chosen[-1] + 1)), set(chosen)
        frames = [fit(frame.asnumpy()) for number, frame in enumerate(every) if number in wanted]
    return answer | {"rotation": rotation}, frames


def _refuse_what_decord_misreads(path: str) -> None:
    """An allow-list. decord's own FFmpeg chooses the demuxer, and these marks are sure to choose
    the right one.
    """
    with open(path, "rb") as file:
        head = file.read(8192)
    kind = container(head)
    if kind not in ("mp4", "mkv", "flv") or (kind == "mp4" and head[4:8] != b"ftyp"):
        raise ValueError("decord does not find the right frames in this kind of file")
    if kind == "mkv" and re.search(b"\x76\x75[\x84\x88]", head):  # ProjectionPoseRoll
        raise ValueError("decord does not turn rotated Matroska files")


def _packets_say(path: str, name: str) -> tuple[list[float], float, bool, Fraction]:
    """When frames are shown, how long the video is (seconds), whether decord's seeking is right
    here, and a pixel's shape.
    """
    container, stream = _open(path, name)
    with container:
        if stream.codec_context.width * stream.codec_context.height > _MANY:
            raise ValueError("decord holds too many frames of this size")
        packets = Packets.of(container, stream)
        if not packets.shown:
            return [], 0.0, False, Fraction(1)
        exact = stream.codec_context.name in SEEKS and container.format.name.split(",")[0] in (
            "mov",
            "matroska",
            "flv",
        )
        return *Clock.of(stream).times(packets.shown), exact and packets.closed, _shape(stream)


def _shape(stream: Any) -> Fraction:
    """A pixel's width over its height, as players show it."""
    shape = stream.sample_aspect_ratio or Fraction(1)
    return shape if Fraction(1, _STRANGE) <= shape <= _STRANGE else Fraction(1)


def _fitted(
    pixels: np.ndarray, *, shape: Fraction, most: int, answer: dict[str, Any]
) -> np.ndarray:
    """The frame in square pixels, the shorter side of a pixel drawn out, and in no more than `most`
    of them, which is said.
    """
    height, width = pixels.shape[:2]
    wide, high = max(float(shape), 1.0) * width, max(float(1 / shape), 1.0) * height
    scale = min(1.0, (most / (wide * high)) ** 0.5)
    size = max(1, round(wide * scale)), max(1, round(high * scale))
    if scale < 1:
        answer["warnings"] = [
            f"its frames were shrunk to {size[0]} x {size[1]}, as so many would not fit into memory"
        ]
    return (
        pixels
        if size == (width, height)
        else np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    )


def _open(path: str, name: str) -> tuple[Any, Any]:
    """The file, by the demuxer of its kind and no other: FFmpeg would take text for a playlist and
    follow it.
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
    stream.thread_type, stream.codec_context.thread_count = "AUTO", _THREADS if area <= _MANY else 1
    return opened, stream


def _refuse_large(name: str, picture: Any) -> None:
    if picture.width * picture.height > MOST_FRAME:
        size = f"{picture.width} x {picture.height}"
        raise MediaError(
            f"{name} has frames of {size} pixels, more than the limit of {MOST_FRAME}; make "
            "it smaller"
        )


def _read_pyav(path: str, name: str, rule: FrameRule, last: bool) -> _Read:
    opened, stream = _open(path, name)
    with opened:
        clock, shape = Clock.of(stream), _shape(stream)
        packets = Packets.of(opened, stream)
        if packets.shown:
            chosen, answer = _answer(name, *clock.times(packets.shown), rule)
            take = partial(
                _upright, name=name, shape=shape, most=MOST_PIXELS // len(chosen), answer=answer
            )
            taken = _seek(
                opened, stream, [packets.shown[number] for number in chosen], packets.keys, take
            )
            if taken:
                return _alike(answer, taken)
    # Frames that the packets did not foretell: decode everything, once for the times and once for
    # the frames.
    shown = [frame.pts for frame in _every(path, name)]
    if not shown:
        raise ValueError("no frame can be decoded")
    if None in shown or len(set(shown)) < len(shown):
        shown = [round(number / clock.rate / clock.tick) for number in range(len(shown))]
    shown.sort()  # an AVI's times come in the order of decoding, its frames in the order of showing
    chosen, answer = _answer(name, *clock.times(shown), rule)
    take = partial(_upright, name=name, shape=shape, most=MOST_PIXELS // len(chosen), answer=answer)
    wanted = set(chosen)
    return _alike(
        answer, [take(frame) for number, frame in enumerate(_every(path, name)) if number in wanted]
    )


def _every(path: str, name: str) -> Iterator[Any]:
    container, stream = _open(path, name)
    with container:
        yield from container.decode(stream)


def _seek(
    container: Any,
    stream: Any,
    wanted: list[int],
    keys: list[tuple[int, int]],
    take: Callable[[Any], np.ndarray],
) -> list[np.ndarray]:
    """The frames with exactly these times, each decoded from the keyframe before it; none where one
    of them does not come.
    """
    taken: list[np.ndarray] = []
    here, frames = None, iter(())
    for pts in wanted:
        place = bisect_right(keys, (pts, math.inf)) - 1
        if place < 0:
            return []
        if here is None or keys[place][0] > here:
            container.seek(
                keys[place][1], stream=stream
            )  # by dts, as files are indexed; too early is only slower
            frames = container.decode(stream)
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
    frame: Any, *, name: str, shape: Fraction, most: int, answer: dict[str, Any]
) -> np.ndarray:
    """Its pixels, square and turned as they are shown. A frame that was patched up is an error."""
    if frame.is_corrupt:
        raise ValueError(f"the frame at {frame.time or 0:.2f} seconds is damaged")
    _refuse_large(name, frame)
    turn = _turn(frame)
    answer.setdefault("rotation", turn)
    return np.rot90(
        _fitted(frame.to_ndarray(format="rgb24"), shape=shape, most=most, answer=answer),
        -turn // 90,
    )


def _turn(frame: Any) -> int:
    """Degrees clockwise, a multiple of 90; by the display matrix where PyAV (14.0) does not work it
    out.
    """
    if hasattr(frame, "rotation"):
        return round(-frame.rotation / 90) * 90 % 360
    matrix = frame.side_data.get("DISPLAYMATRIX")
    cos, sin = struct.unpack_from("=2i", bytes(matrix)) if matrix is not None else (1, 0)
    return round(math.degrees(math.atan2(sin, cos)) / 90) * 90 % 360


def _alike(answer: dict[str, Any], frames: list[np.ndarray]) -> _Read:
    if any(frame.shape != frames[0].shape for frame in frames):
        raise ValueError("its pictures change their size")
    return answer, frames


def _read_pillow(path: str, name: str, rule: FrameRule, last: bool) -> _Read:
    """An animation, or a picture that does not move as one frame. Walked through twice: the lengths
    of all frames come first.
    """
    lengths = [seconds for seconds, _ in animation(Path(path), name)]
    starts = [0.0, *accumulate(lengths)]
    chosen, answer = _answer(name, starts[:-1], starts[-1], rule)
    answer["warnings"], wanted, notes, frames = [], set(chosen), [], []
    for number, (_, take) in enumerate(animation(Path(path), name)):
        if number in wanted:
            image, notes = take()
            pixels = np.asarray(image)
            frames.append(
                _fitted(pixels, shape=Fraction(1), most=MOST_PIXELS // len(chosen), answer=answer)
            )
    if len(lengths) == MOST_FRAMES:
        notes = [*notes, f"only its first {MOST_FRAMES} frames were looked at"]
    answer["warnings"] = [*notes, *answer["warnings"]]
    return _alike(answer | {"rotation": 0}, frames)
