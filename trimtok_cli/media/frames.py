"""Which frames of a video are read, and what they come as."""

import math
import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from trimtok_cli.errors import UsageError

DECODER_PACKAGES = {"decord": "decord", "pyav": "av"}

_FINEST = 1e9  # frames a second: more are no more

_SLACK = 1e-3  # seconds: decord tells times in 32-bit floats, Matroska rounds them to milliseconds


@dataclass(frozen=True, slots=True)
class FrameRule:
    """Which frames of a video are read: at most `frames`, evenly spaced from `start` to `end`
    (seconds, None: to its end).

    With `fps` so many per second instead, and `frames` is the cap. `timeout` is the time for
    decoding one file, in seconds. UsageError where a value makes no sense.
    """

    frames: int = 8
    fps: float | None = None
    start: float = 0.0
    end: float | None = None
    backend: str = "auto"
    timeout: float = 120.0

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise UsageError(
                f"{self.frames} frames cannot be taken from a video; ask for 1 or more"
            )
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise UsageError(
                f"{self.fps:g} frames a second cannot be taken from a video; ask for more than 0"
            )
        if not 0 <= self.start < math.inf or (self.end is not None and not self.start < self.end):
            raise UsageError(
                f"a video has no span from {self.start} to {self.end} seconds; --end must be "
                "after --start"
            )
        if self.backend not in ("auto", *DECODER_PACKAGES):
            raise UsageError(f"{self.backend!r} is no video decoder; use auto, decord or pyav")
        if not 0 < self.timeout <= threading.TIMEOUT_MAX:
            raise UsageError(
                f"{self.timeout:g} seconds cannot be a time limit; ask for more than 0"
            )


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames of a video, upright RGB; `times` are when each is first shown, in seconds after the
    video's first frame.

    `duration` is in seconds; `fps`, `num_frames` are the whole file's, fps on average; `width`,
    `height` are upright pixels; `rotation` is how far the stored pictures were turned clockwise;
    `decoder` is decord, pyav or, for pictures, pillow.
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
    """Ascending numbers of the frames to take, none twice; empty where nothing is shown in the
    span.

    `starts` are when the frames appear (seconds, ascending, the first at 0). The span is cut into
    equal slots, and the frame on screen at the middle of each is taken, so a frame that stays long
    counts for no more than it shows.
    """
    span = min(duration, math.inf if rule.end is None else rule.end) - rule.start
    if span <= 0 or not starts:
        return []
    count = max(1, min(rule.frames, int(span * _FINEST)))
    step = span / count
    rate = None if rule.fps is None else min(rule.fps, _FINEST)
    if rate is not None and (wanted := max(1, math.ceil(span * rate - 0.5 - _SLACK))) <= count:
        count, step = wanted, min(span, 1 / rate)
    shown, slot = set(), 0
    while slot < count:
        number = max(0, bisect_right(starts, rule.start + (slot + 0.5) * step + _SLACK) - 1)
        shown.add(number)
        if number + 1 == len(starts):
            break
        # Slots in which the same frame stays are passed over, all but the last, so that rounding
        # does no harm.
        after = math.floor((starts[number + 1] - _SLACK - rule.start) / step - 0.5) - 1
        slot = max(slot + 1, after)
    return sorted(shown)
