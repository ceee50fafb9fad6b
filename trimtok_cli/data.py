"""The records that flow: a Sample goes in, a Result comes out. Plain Python, frozen, no torch.

Knows no file format: readers make Samples, writers and the report read Results.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Sample:
    """One thing to answer. `names` are the images as the input wrote them; `images` are where they lie.

    `question` is None where the command's prompt is to be asked. `answers` are references, if the input has any;
    `extra` holds every further column of the input. A row that could not be read carries its sentence in `problem`.
    """

    id: str | int | float
    images: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()
    video: Path | None = None
    question: str | None = None
    answers: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Media:
    """What an image or video file was before it became RGB: pixels upright, the file's own mode, EXIF orientation 1..8.

    frames: how many the file holds. Of a video: the decoder, its length, and the times in seconds of the frames taken.
    """

    width: int = 0
    height: int = 0
    mode: str = ""
    exif_orientation: int = 1
    frames: int = 1
    warnings: tuple[str, ...] = ()
    decoder: str = ""
    duration: float = 0.0
    times: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of one sample. `layer_mean`: visual tokens averaged over decoder layers; `generated` counts the end token."""

    text: int = 0
    visual: int = 0
    kept: int = 0
    layer_mean: float = 0.0
    generated: int = 0


@dataclass(frozen=True, slots=True)
class Seconds:
    """Time of each stage for one sample; what several shared is divided among them."""

    load: float = 0.0
    prepare: float = 0.0
    encode: float = 0.0
    prune: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0

    @property
    def total(self) -> float:
        return self.load + self.prepare + self.encode + self.prune + self.prefill + self.decode


@dataclass(frozen=True, slots=True)
class Kept:
    """The visual tokens alive after a stage, as ascending numbers in the dense prompt; `layer` 0 is the prompt itself."""

    layer: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """One answer. `finish` is stop, length or error; `error` is empty unless the sample failed.

    `grid` is (rows, columns) of the first image's visual tokens where they form one grid, else empty. `peak_bytes` is the
    device's peak since samples were last taken in, 0 where the device does not count. `batch_size` is the most answers that
    were under way with this one. `notes` are warnings about the prompt or the answer; those about a file are its Media's.
    """

    sample: Sample
    question: str
    answer: str = ""
    method: str = "dense"
    tokens: TokenCounts = TokenCounts()
    seconds: Seconds = Seconds()
    peak_bytes: int = 0
    kept: tuple[Kept, ...] = ()
    grid: tuple[int, ...] = ()
    finish: str = "error"
    error: str = ""
    prompt_sent: str = ""
    media: tuple[Media, ...] = ()
    batch_size: int = 1
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        return (*(warning for media in self.media for warning in media.warnings), *self.notes)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One sample answered in several ways, dense first. boxes[i]: visual token i in image visual_index[i], xyxy in [0, 1].

    frame[i]: of which frame, where that image is a video; kinds: image or video, for each number in visual_index.
    """

    sample: Sample
    results: tuple[Result, ...]
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    visual_index: tuple[int, ...] = ()
    frame: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()
