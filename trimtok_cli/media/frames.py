"""Which frames of a video are read, and the Clip that they come as. Opens no file."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from trimtok_cli.data import FrameRule

# Video decoders in the order in which they are asked -> the package of each.
DECODER_PACKAGES = {"decord": "decord", "pyav": "av"}

# Frames a second; a higher rate takes no more frames.
_FINEST = 1e9

# Seconds: decord holds times as 32-bit floats, Matroska rounds them to milliseconds.
_SLACK = 1e-3


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames of a video as upright RGB, and what the file was.

    times: when each frame is first shown, in seconds after the video's first frame; duration in
    seconds; fps (on average), num_frames: of the whole file; width, height: upright pixels;
    rotation: degrees clockwise by which the stored frames were turned; decoder: decord, pyav or,
    for pictures, pillow.
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
    """The numbers of the frames to take: ascending, none twice; [] where the span shows nothing.

    starts: when the frames appear, in seconds, ascending, the first at 0; duration in seconds. The
    span is cut into equal slots, and the frame on screen at the middle of each slot is taken. A
    frame that stays long is taken once.
    """
    end = duration if rule.end is None else min(duration, rule.end)
    span = end - rule.start
    if span <= 0 or not starts:
        return []
    count = max(1, min(rule.frames, int(span * _FINEST)))
    step = span / count
    rate = None if rule.fps is None else min(rule.fps, _FINEST)
    if rate is not None and (wanted := max(1, math.ceil(span * rate - 0.5 - _SLACK))) <= count:
        count, step = wanted, min(span, 1 / rate)
    shown: set[int] = set()
    slot = 0
    while slot < count:
        middle = rule.start + (slot + 0.5) * step
        number = max(0, bisect_right(starts, middle + _SLACK) - 1)
        shown.add(number)
        if number + 1 == len(starts):
            break
        # Slots in which the same frame stays are skipped. The last of them is not, so that rounding
        # does no harm.
        after = math.floor((starts[number + 1] - _SLACK - rule.start) / step - 0.5) - 1
        slot = max(slot + 1, after)
    return sorted(shown)
