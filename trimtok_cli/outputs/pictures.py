"""The pictures of a comparison: which there are, where they lie, and how they are read again.

Knows no page and no token.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from trimtok_cli.blobs import Medium
from trimtok_cli.data import Comparison, FrameRule
from trimtok_cli.errors import MediaError
from trimtok_cli.media.kinds import by_content

Load = Callable[[Medium], tuple[Any, Any]]  # an image and its Media

LoadClip = Callable[[Medium], Any]  # a Clip


@dataclass(frozen=True, slots=True)
class Picture:
    """An image, or a frame of a video.

    number: its visual index. frame: its number in a video; None of an image, and -1 of a video of
    which no frame was read.
    """

    name: str
    medium: Medium
    number: int = 0
    frame: int | None = None


class Loader:
    """Reads pictures again, as upright RGB images. The last file is kept at hand.

    load: gives an image and its Media, by default `media.images.load_image`. load_clip: gives a
    video's Clip, by default `media.video.load_video` with the frames of `rule`.
    """

    def __init__(
        self,
        load: Load | None = None,
        load_clip: LoadClip | None = None,
        rule: FrameRule | None = None,
    ) -> None:
        self._load, self._load_clip, self._rule = load, load_clip, rule or FrameRule()
        self._last: tuple[Medium, bool] | None = None
        self._file: Any = None

    def image(self, picture: Picture) -> Any:
        """The image, not to be changed. Raises MediaError or OSError if it cannot be read."""
        is_image = picture.frame is None
        if self._last != (picture.medium, is_image):
            self._last, self._file = None, None
            read = self._image if is_image else self._clip
            self._file = read(picture.medium)
            self._last = (picture.medium, is_image)
        if picture.frame is None:
            return self._file
        if not 0 <= picture.frame < len(self._file.frames):
            raise MediaError("No frame of this video was read.")
        return self._file.frames[picture.frame].convert("RGB")

    def _image(self, medium: Medium) -> Any:
        if self._load is None:
            from trimtok_cli.media.images import load_image

            self._load = load_image
        return self._load(medium)[0].convert("RGB")

    def _clip(self, medium: Medium) -> Any:
        if self._load_clip is None:
            from trimtok_cli.media.video import load_video

            return load_video(medium, self._rule)
        return self._load_clip(medium)


def pictures_of(comparison: Comparison) -> Iterator[Picture]:
    """The images in the prompt's order; a video gives every frame that has tokens."""
    sample = by_content(comparison.sample)
    names = iter(
        zip(
            sample.images,
            [*sample.names, *(path.name for path in sample.images[len(sample.names) :])],
            strict=False,
        )
    )
    kinds = comparison.kinds or ("image",) * len(sample.images) + ("video",) * (
        sample.video is not None
    )
    for number, kind in enumerate(kinds):
        if kind == "image":
            if (found := next(names, None)) is not None:
                yield Picture(found[1], found[0], number)
        elif sample.video is not None:
            yield from _frames(comparison, sample.video, number)


def _frames(comparison: Comparison, video: Medium, number: int) -> Iterator[Picture]:
    owners = zip(comparison.frame, comparison.visual_index, strict=False)
    frames = sorted({frame for frame, owner in owners if owner == number})
    media = [media for result in comparison.results for media in result.media if media.times]
    times = media[0].times if media else ()
    for frame in frames or ([-1] if comparison.boxes else [0]):
        time = f", {times[frame]:.2f} s" if 0 <= frame < len(times) else ""
        yield Picture(f"{video.name}{time}", video, number, frame)
