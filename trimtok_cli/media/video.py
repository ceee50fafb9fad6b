"""A video file -> a few upright RGB frames, evenly spaced in time, and when each of them is shown.

A child process decodes, as a broken file can hang or crash a decoder's native code. decord is asked first; where it is missing,
fails, or cannot be shown to find the right frame, PyAV takes over. The child's side is decoders.py. Knows no model, no reader
and no command line.
"""

import json
import math
import os
import stat
import subprocess
import tempfile
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from trimtok_cli.child import command
from trimtok_cli.errors import MediaError, UsageError

# What a search of a folder takes for a video. A file that is named explicitly may have any suffix.
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".ogv"}
)

_PACKAGES = {"decord": "decord", "pyav": "av"}
_SLACK = 1e-3  # seconds: decord tells times in 32-bit floats, Matroska rounds them to milliseconds
_CHILD = "from trimtok_cli.media.decoders import main; main()"


@dataclass(frozen=True, slots=True)
class FrameRule:
    """Which frames of a video are read: at most `frames`, evenly spaced from `start` to `end` (seconds, None: to its end).

    With `fps` so many per second instead, and `frames` is the cap. `timeout` is the time for decoding one file, in seconds.
    UsageError where a value makes no sense.
    """

    frames: int = 8
    fps: float | None = None
    start: float = 0.0
    end: float | None = None
    backend: str = "auto"
    timeout: float = 120.0

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise UsageError(f"{self.frames} frames cannot be taken from a video; ask for 1 or more")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise UsageError(f"{self.fps:g} frames a second cannot be taken from a video; ask for more than 0")
        if not 0 <= self.start < math.inf or (self.end is not None and not self.start < self.end):
            raise UsageError(f"a video has no span from {self.start} to {self.end} seconds; --end must be after --start")
        if self.backend not in ("auto", *_PACKAGES):
            raise UsageError(f"{self.backend!r} is no video decoder; use auto, decord or pyav")
        if not 0 < self.timeout <= threading.TIMEOUT_MAX:
            raise UsageError(f"{self.timeout:g} seconds cannot be a time limit; ask for more than 0")


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames of a video, upright RGB; `times` are when each is first shown, in seconds after the video's first frame.

    `duration` is in seconds; `fps`, `num_frames` are the whole file's, fps on average; `width`, `height` are upright pixels;
    `rotation` is how far the stored pictures were turned clockwise; `decoder` is decord or pyav.
    """

    frames: tuple[Image.Image, ...]
    times: tuple[float, ...]
    duration: float
    fps: float
    decoder: str
    width: int
    height: int
    num_frames: int
    rotation: int
    warnings: tuple[str, ...]


def pick_times(starts: Sequence[float], duration: float, rule: FrameRule) -> list[int]:
    """Ascending numbers of the frames to take, none twice; empty where nothing is shown in the span.

    `starts` are when the frames appear (seconds, ascending, the first at 0). The span is cut into equal slots, and the frame
    on screen at the middle of each is taken, so a frame that stays long counts for no more than it shows.
    """
    span = min(duration, math.inf if rule.end is None else rule.end) - rule.start
    if span <= 0 or not starts:
        return []
    count, step = rule.frames, span / rule.frames
    if rule.fps is not None and (wanted := max(1, math.ceil(span * rule.fps - 0.5 - _SLACK))) <= rule.frames:
        count, step = wanted, min(span, 1 / rule.fps)
    shown = (bisect_right(starts, rule.start + (slot + 0.5) * step + _SLACK) - 1 for slot in range(count))
    return sorted({max(0, number) for number in shown})


def load_video(path: Path, rule: FrameRule) -> Clip:
    """The frames that `rule` asks for. MediaError, one sentence, where the file or its span holds none or no decoder is there."""
    name = str(path) if len(str(path)) <= 300 else f"{str(path)[:300]}..."
    try:
        _check(path, name)
        wanted = [rule.backend] if rule.backend != "auto" else list(_PACKAGES)
        decoders = [decoder for decoder in wanted if find_spec(_PACKAGES[decoder])]
        if not decoders:
            commands = " or: ".join(f"pip install {_PACKAGES[decoder]}" for decoder in wanted)
            raise MediaError(f"{name} is a video, which needs one more package; run: {commands}")
        return _decode(path, name, rule, decoders)
    except FileNotFoundError as error:
        raise MediaError(f"{name} does not exist; check its name and folder") from error
    except PermissionError as error:
        raise MediaError(f"{name} may not be read by this user; change its permissions") from error
    except MemoryError as error:
        raise MediaError(f"{name} does not fit into memory; ask for fewer frames or make it smaller") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise MediaError(f"{name} cannot be read ({getattr(error, 'strerror', None) or error}); check the path") from error


def _check(path: Path, name: str) -> None:
    """Refuses what no decoder need see. An allow-list: FFmpeg would follow a playlist to other files, whatever its name."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(f"{name} is a folder, not a video; name the files in it")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{name} is not a regular file; name a video file")
    if not status.st_size:
        raise MediaError(f"{name} is empty (0 bytes); fetch or save it again")
    with path.open("rb") as file:
        head = file.read(256)
        kind = file_kind(head)
        if not kind:
            raise MediaError(f"{name} is not a video of a known kind (it starts with {head[:16]!r}); save it as MP4")
        if kind == "mp4":
            boxes = list(mp4_boxes(file, status.st_size))
            missing = max(
                (at + length - status.st_size for box, at, length in boxes if box in (b"mdat", b"moov", b"moof")), default=0
            )
            reason = "its index is missing" if b"moov" not in {box for box, _, _ in boxes} else ""
        else:
            missing, reason = _told_size(kind, head) - status.st_size, ""
        if missing > 0 or reason:
            reason = f"its last {missing} bytes are missing" if missing > 0 else reason
            raise MediaError(f"{name} is damaged or cut short ({reason}); fetch or save it again")


def file_kind(head: bytes) -> str:
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"):
        return "mp4"
    if head[:1] == head[188:189] == b"G" or head[4:5] == head[196:197] == b"G":
        return "ts"
    starts = {b"\x1aE\xdf\xa3": "mkv", b"RIFF": "avi", b"\0\0\1\xba": "mpg", b"\0\0\1\xb3": "mpg", b"0&\xb2u": "wmv"}
    return (starts | {b"FLV\1": "flv", b"OggS": "ogg"}).get(head[:4], "")


def mp4_boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, offset, length in bytes) of an MP4's outermost boxes."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        length = {0: size - at, 1: int.from_bytes(head[8:], "big")}.get(length, length)
        if length < 8:
            return
        yield head[4:8], at, length
        at += length


def _told_size(kind: str, head: bytes) -> int:
    """How many bytes the header says the file has; 0 where it does not say."""
    if kind == "avi":
        return 8 + int.from_bytes(head[4:8], "little")
    if kind == "mkv":
        header, at = _vint(head, 4)
        length, start = _vint(head, at + header + 4)  # past the segment's own four-byte mark
        return 0 if length == (1 << 7 * (start - at - header - 4)) - 1 else start + length  # all ones: a live recording
    return 0


def _vint(data: bytes, at: int) -> tuple[int, int]:
    """A Matroska number and the offset behind it."""
    length = 9 - (data[at] if at < len(data) else 128).bit_length()
    return int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1), at + length


def _decode(path: Path, name: str, rule: FrameRule, decoders: list[str]) -> Clip:
    deadline, reason = time.monotonic() + rule.timeout, ""
    for number, decoder in enumerate(decoders):
        left = len(decoders) - number  # the first may hang: the next one gets its share of the time
        request = {"path": os.path.abspath(path), "name": name, "decoder": decoder, "last": left == 1}
        answer = _ask_child(request | {"rule": asdict(rule)}, (deadline - time.monotonic()) / left)
        if isinstance(answer, Clip):
            return answer
        if "final" in answer:
            raise MediaError(answer["final"])
        reason = answer["reason"]
    if reason == "timeout":
        limit = f"{rule.timeout:g} seconds"
        raise MediaError(f"{name} was not decoded within {limit}; raise the limit, ask for fewer frames or save it again")
    if decoders == ["decord"]:
        remedy = "let PyAV read it" if find_spec("av") else "PyAV may read it, run: pip install av"
        raise MediaError(f"{name} cannot be read by decord ({reason}); {remedy}")
    raise MediaError(f"{name} is damaged or cut short ({reason}); fetch or save it again")


def _ask_child(request: dict[str, Any], seconds: float) -> Clip | dict[str, str]:
    """The Clip, or why there is none: `final` is a sentence for the user, `reason` leaves it to the next decoder."""
    lifeline, held = os.pipe()  # closes with this process, however that ends, and the child with it
    process = None
    try:
        with tempfile.TemporaryFile() as out:
            # A session of its own: Ctrl-C is for this process, which then ends the child.
            pipes = {"stdin": lifeline, "stdout": out, "stderr": subprocess.PIPE}
            process = subprocess.Popen(
                command(_CHILD, json.dumps(request | {"seconds": seconds})), **pipes, start_new_session=True
            )  # fmt: skip
            try:
                process.communicate(timeout=max(seconds, 0.001))
            except subprocess.TimeoutExpired:
                return {"reason": "timeout"}
            out.seek(0)
            answer = json.loads(out.readline()) if process.returncode == 0 else {"reason": "the decoder crashed"}
            if "times" not in answer:
                return answer
            size = answer["width"], answer["height"]
            frames = (Image.frombytes("RGB", size, out.read(size[0] * size[1] * 3)) for _ in answer["times"])
            lists = {"frames": tuple(frames), "times": tuple(answer["times"]), "warnings": tuple(answer["warnings"])}
            return Clip(**answer | lists)
    finally:
        if process is not None:
            process.kill()
            process.wait()
            process.stderr.close()
        os.close(lifeline)
        os.close(held)
