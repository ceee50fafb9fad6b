"""The part of an answer that all decoders share: which frames are taken, what the file is, and in
which size a frame is handed back. Knows no decoder and no file.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

from trimtok_cli.data import FrameRule
from trimtok_cli.errors import MediaError
from trimtok_cli.media.frames import pick_times

# What a decoder returns: the fields of a Clip that it knows, and the frames (H, W, 3), 8-bit RGB.
Answer = tuple[dict[str, Any], list[np.ndarray]]


def choose_frames(
    name: str, starts: Sequence[float], duration: float, rule: FrameRule
) -> tuple[list[int], dict[str, Any]]:
    """The numbers of the frames to take, and the fields of a Clip that follow from the times.

    starts: when each frame is first shown, in seconds, ascending, the first 0; duration in seconds.
    MediaError where no frame is shown in the span of the rule.
    """
    chosen = pick_times(starts, duration, rule)
    if not chosen:
        end = "its end" if rule.end is None else f"{rule.end:g}"
        span = f"between --start {rule.start:g} and --end {end}"
        raise MediaError(
            f"{name} is {duration:.2f} seconds long and shows no frame {span}; set them "
            "inside its length"
        )
    last_shown_for = duration - starts[-1]
    warnings = []
    if len(starts) > 1 and last_shown_for > 5 + duration / 10:
        warnings.append(
            f"its last frame is shown for {last_shown_for:.1f} seconds; it may be cut short"
        )
    return chosen, {
        "times": [round(max(0.0, starts[number]), 6) for number in chosen],
        "duration": round(duration, 6),
        "fps": round(len(starts) / duration if duration > 0 else 0.0, 6),
        "num_frames": len(starts),
        "warnings": warnings,
    }


def fit_frame(
    pixels: np.ndarray, *, pixel_shape: Fraction, max_pixels: int, answer: dict[str, Any]
) -> np.ndarray:
    """The frame in square pixels, and in at most `max_pixels` of them.

    pixel_shape: width over height of a stored pixel; the shorter side is drawn out. A frame that
    is shrunk sets `answer["warnings"]`.
    """
    height, width = pixels.shape[:2]
    wide = max(float(pixel_shape), 1.0) * width
    high = max(float(1 / pixel_shape), 1.0) * height
    scale = min(1.0, (max_pixels / (wide * high)) ** 0.5)
    size = max(1, round(wide * scale)), max(1, round(high * scale))
    if scale < 1:
        answer["warnings"] = [
            f"its frames were shrunk to {size[0]} x {size[1]}, as so many would not fit into memory"
        ]
    if size == (width, height):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def refuse_mixed_sizes(frames: list[np.ndarray]) -> None:
    """Raises ValueError where the frames differ in size."""
    if any(frame.shape != frames[0].shape for frame in frames):
        raise ValueError("its pictures change their size")
