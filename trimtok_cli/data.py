"""The records that flow: a Sample goes in, a Result comes out. Plain Python, frozen, no torch.

Knows no file format: readers make Samples, writers and the report read Results.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from trimtok_cli.blobs import Medium, as_media, as_medium
from trimtok_cli.bounds import check_record, setting
from trimtok_cli.errors import UsageError
from trimtok_cli.notebook import comparison_table


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of the input, to be answered.

    In a script `images` may be one or several of paths, strings and Pillow images, `video` a path.

    `names` are the images as the input wrote them; `images` are their files, or
    blobs where they have none. `question` is None if
    the command's prompt is asked. `answers` are references, if the input has any. `extra` holds
    every further column of the input. `problem` says why a row could not be read. `key` tells it
    from every other sample of its run, and is the same in the next run; `turn` counts the samples
    up to this one that ask the same of the same names. Both are empty in a sample of a script.
    """

    id: str | int | float
    images: tuple[Medium, ...] | Any = ()  # Any: whatever a script may give
    names: tuple[str, ...] = ()
    video: Medium | Any | None = None
    question: str | None = None
    answers: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    key: str = ""
    turn: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError for what is no image."""
        object.__setattr__(self, "images", as_media(self.images))
        if self.video is not None:
            object.__setattr__(self, "video", as_medium(self.video))


@dataclass(frozen=True, slots=True)
class Failed:
    """A sample that could not be answered, with its error. number: its position in the input."""

    sample: Sample
    error: Exception
    number: int = 0


@dataclass(frozen=True, slots=True)
class Media:
    """Facts of an image or video file before it became RGB.

    The size is in pixels, upright; the mode is the file's own; the EXIF orientation is 1..8.
    frames: the number that the file holds. A video also has its decoder, its length, and the times
    of the frames taken, in seconds.
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
class Setting:
    """One way of answering: a method, its budget, and the parameters that are not its defaults.

    A Setting without arguments is dense. `keep` is written as --keep takes it. `params` holds the
    values of the method's own parameters, `counts` (--budget-counts) among them.
    """

    method: str = "dense"
    keep: str = "all"
    budget: str = "equal"
    seed: int = 0
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, pruner: Any) -> "Setting":
        """The setting of a pruner; None gives dense."""
        return cls() if pruner is None else pruner.setting

    @property
    def name(self) -> str:
        """A label that tells any two settings apart, such as `trimtokenator@64 pool=0.9`."""
        return " ".join(filter(None, (self.method_keep, self.changes)))

    @property
    def method_keep(self) -> str:
        """`METHOD@KEEP`, or `dense`."""
        return f"{self.method}@{self.keep}" if self != Setting() else self.method

    @property
    def changes(self) -> str:
        """The values that are not defaults, as `NAME=VALUE` with spaces between."""
        default = Setting()
        changed = {
            name: getattr(self, name)
            for name in ("budget", "seed")
            if getattr(self, name) != getattr(default, name)
        }
        return " ".join(
            f"{name}={_written(value)}" for name, value in (changed | {**self.params}).items()
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "method": self.method,
            "keep": self.keep,
            "budget": self.budget,
            "seed": self.seed,
            "params": dict(self.params),
        }


def _written(value: Any) -> str:
    """A parameter's value as --param takes it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Token counts of one sample.

    `layer_mean` is the number of visual tokens averaged over the decoder layers. `generated`
    includes the end token. `stages` holds each stage's layer and the visual tokens left after it.
    """

    text: int = 0
    visual: int = 0
    kept: int = 0
    layer_mean: float = 0.0
    generated: int = 0
    stages: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds of each step for one sample; a step that samples shared is divided among them."""

    load: float = 0.0
    prepare: float = 0.0
    encode: float = 0.0
    prune: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(
            *(getattr(self, each.name) + getattr(other, each.name) for each in fields(self))
        )

    def in_microseconds(self) -> "Seconds":
        """The same in whole microseconds, as a record holds them."""
        return Seconds(*(round(getattr(self, each.name), 6) for each in fields(self)))

    @property
    def total(self) -> float:
        return self.load + self.prepare + self.encode + self.prune + self.prefill + self.decode


@dataclass(frozen=True, slots=True)
class Kept:
    """The visual tokens left after a stage, as ascending numbers in the dense prompt.

    `layer` 0 is the prompt itself.
    """

    layer: int
    tokens: tuple[int, ...]

    def __repr__(self) -> str:
        return f"<{len(self.tokens)} visual tokens from layer {self.layer} on>"


@dataclass(frozen=True, slots=True)
class Result:
    """One answer. `finish` is stop, length or error; `error` is empty unless the sample failed.

    `error_class` is the error's class: MediaError for a file, SampleError for whatever else.
    `grid` is (rows, columns) of the first image's visual tokens if they form one grid, else empty.
    `peak_bytes` is the device's peak since samples were last taken in, 0 if the device does not
    count. `batch_size` is the most answers that were under way with this one. `notes` are warnings
    about the prompt or the answer; warnings about a file stand in its Media.
    """

    sample: Sample
    question: str
    answer: str = ""
    setting: Setting = Setting()
    tokens: TokenCounts = TokenCounts()
    seconds: Seconds = Seconds()
    peak_bytes: int = 0
    kept: tuple[Kept, ...] = ()
    grid: tuple[int, ...] = ()
    finish: str = "error"
    error: str = ""
    error_class: str = ""
    prompt_sent: str = ""
    media: tuple[Media, ...] = ()
    batch_size: int = 1
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        said = f"failed: {self.error}" if self.error else repr(self.answer)
        tokens = f"{self.tokens.visual} → {self.tokens.kept} visual tokens"
        return f"<{self.setting.name} on {self.sample.id!r}, {tokens}: {said}>"

    @property
    def method(self) -> str:
        return self.setting.method

    @property
    def warnings(self) -> tuple[str, ...]:
        return (*(warning for media in self.media for warning in media.warnings), *self.notes)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One sample answered in several ways, dense first.

    boxes[i]: the box of visual token i in image visual_index[i], xyxy in [0, 1]. frame[i]: its
    frame, if that image is a video. kinds: image or video, for each number in visual_index.
    """

    sample: Sample
    results: tuple[Result, ...]
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    visual_index: tuple[int, ...] = ()
    frame: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()

    def __repr__(self) -> str:
        names = ", ".join(result.setting.name for result in self.results)
        return f"<{self.sample.id!r} answered by {names}>"

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        return comparison_table(self)


@dataclass(frozen=True, slots=True)
class FrameRule:
    """Which frames of a video are read: at most `frames`, evenly spaced from `start` to `end`.

    start, end: in seconds; an `end` of None is the end of the video. fps: frames a second, capped
    at `frames`. backend: auto, decord or pyav. timeout: seconds for decoding one file. Raises
    UsageError if a value makes no sense.
    """

    frames: int = setting(8, least=1, most=10_000)
    fps: float | None = setting(None, above=0, most=1000)
    start: float = setting(0.0, least=0, most=10**7)
    end: float | None = setting(None, above=0, most=10**7)
    backend: str = setting("auto", name="video_backend", choices=("auto", "decord", "pyav"))
    timeout: float = setting(120.0, name="video_timeout", above=0, most=86_400)

    def __post_init__(self) -> None:
        check_record(self)
        if self.end is not None and self.end <= self.start:
            raise UsageError(
                f"--end must be later than --start, got {self.end:g} and {self.start:g} seconds."
            )
