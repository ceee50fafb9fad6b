"""Pillow: the frames of an animation, or a picture that does not move as one frame."""

from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import numpy as np

from trimtok_cli.data import FrameRule
from trimtok_cli.media.decoders.answer import (
    Answer,
    choose_frames,
    fit_frame,
    refuse_mixed_sizes,
)
from trimtok_cli.media.frame_counts import MOST_FRAMES
from trimtok_cli.media.image_limits import MOST_PIXELS
from trimtok_cli.media.images import animation


def read(path: str, name: str, rule: FrameRule, last: bool) -> Answer:
    """The chosen frames. The file is walked through twice, as the lengths of all frames come first.

    Errors are as in `load_image`.
    """
    lengths = [seconds for seconds, _ in animation(Path(path), name)]
    *starts, duration = 0.0, *accumulate(lengths)
    chosen, answer = choose_frames(name, starts, duration, rule)
    answer["warnings"] = []
    wanted = set(chosen)
    frames: list[np.ndarray] = []
    notes: tuple[str, ...] = ()
    for number, (_, take) in enumerate(animation(Path(path), name)):
        if number in wanted:
            image, notes = take()
            frames.append(
                fit_frame(
                    np.asarray(image),
                    pixel_shape=Fraction(1),
                    max_pixels=MOST_PIXELS // len(chosen),
                    answer=answer,
                )
            )
    if len(lengths) == MOST_FRAMES:
        notes = (*notes, f"only its first {MOST_FRAMES} frames were looked at")
    answer["warnings"] = [*notes, *answer["warnings"]]
    refuse_mixed_sizes(frames)
    return answer | {"rotation": 0}, frames
