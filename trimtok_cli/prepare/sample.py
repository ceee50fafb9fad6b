"""`prepare`: one sample from its files to a model's inputs. Knows no pruner, touches no device."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from PIL import Image

from trimtok_cli.blobs import Address, Held, Medium
from trimtok_cli.bounds import check_record, like
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Failed, FrameRule, Media, Sample, Seconds
from trimtok_cli.device import Clock, out_of_memory
from trimtok_cli.errors import MediaError, ModelError, SampleError, sentence
from trimtok_cli.limits import TimeUp, within
from trimtok_cli.media.blob_files import read_blob
from trimtok_cli.media.frames import Clip
from trimtok_cli.media.image_limits import MOST_PIXELS
from trimtok_cli.media.images import load_image, shrunk
from trimtok_cli.media.kinds import by_content
from trimtok_cli.media.video import load_video
from trimtok_cli.models.inputs import Inputs
from trimtok_cli.models.preprocessor import Preprocessor
from trimtok_cli.sampling import Sampling

# Pixels of all pictures of one prompt together: 1 GB of RGB.
MOST_TOGETHER = 2 * MOST_PIXELS

log = logging.getLogger("trimtok")


@dataclass(frozen=True)
class Ask:
    """How every sample of a run is asked.

    prompt: the question of samples that have none of their own.
    max_new_tokens: None is the checkpoint's own number, or 128 where it has none.
    sampling: overrules the checkpoint's generation settings.
    frames: which frames of a video are read.
    video_as: `video` (the family's own path), `frames` (as images) or `auto`.
    max_pixels: larger images and frames are shrunk to this number of pixels; 0 shrinks none.
    decode: `continuous` (a static cache; a prompt that waits follows an answer that ends) or
    `simple` (batch by batch, with a cache that grows).
    timeout: seconds for reading and preparing one sample, without the decoding of its video, which
    has the time of `frames`.
    strip_reasoning: answers are without what stands between <think> and </think>.
    UsageError for a value that the option of that name refuses.
    """

    prompt: str = like(RunConfig, "prompt", default="", empty=True)
    system: str = like(RunConfig, "system")
    max_new_tokens: int | None = like(RunConfig, "max_new_tokens")
    sampling: Sampling = field(default_factory=Sampling)
    frames: FrameRule = field(default_factory=FrameRule)
    video_as: str = like(RunConfig, "video_as")
    max_pixels: int = like(RunConfig, "max_pixels")
    decode: str = like(RunConfig, "decode")
    timeout: float = like(RunConfig, "timeout")
    strip_reasoning: bool = like(RunConfig, "strip_reasoning")

    def question(self, sample: Sample) -> str:
        """A sample's own question, else the one of the run."""
        return self.prompt if sample.question is None else sample.question

    def limit(self, sample: Sample) -> float:
        """Seconds until this sample fails."""
        return self.timeout + (self.frames.timeout if sample.video is not None else 0)

    def __post_init__(self) -> None:
        check_record(self)


@dataclass(frozen=True)
class Prepared:
    """A sample whose files are read and whose question is prepared, with the times that it took.

    media: facts about each image or video. seed: the sample's own, for draws at random. number: the
    sample's place in its run.
    """

    sample: Sample
    question: str
    inputs: Inputs
    media: tuple[Media, ...]
    seconds: Seconds
    seed: int = 0
    number: int = 0


def attempt(preprocessor: Preprocessor, sample: Sample, ask: Ask) -> Prepared | Failed:
    """As `prepare`, but only ModelError is raised, which every other sample would meet as well."""
    try:
        return prepare(preprocessor, sample, ask)
    except ModelError:
        raise
    except Exception as error:
        log.debug("sample %s cannot be prepared", sample.id, exc_info=error)
        # A new error of the kind: the old one holds its frames, and they hold the pictures.
        kind = MediaError if isinstance(error, MediaError) else SampleError
        return Failed(sample, kind(sentence(error)))


def overdue(seconds: float) -> SampleError:
    """The error of a sample that took longer than its limit of `seconds`."""
    remedy = "save its files again, look at the model's chat template, or raise --timeout"
    return SampleError(f"it was not read and prepared within {seconds:g} seconds; {remedy}")


def prepare(preprocessor: Preprocessor, sample: Sample, ask: Ask) -> Prepared:
    """Reads a sample's files, then runs the chat template and the processor.

    Raises SampleError where that takes too much time or memory. The time limit is kept in the main
    thread alone (see `limits.within`).
    """
    try:
        return within(ask.limit(sample), lambda: _prepare(preprocessor, sample, ask))
    except TimeUp:
        raise overdue(ask.limit(sample)) from None
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise SampleError(
            "there is not enough memory to prepare it; make it smaller or use fewer --workers"
        ) from error


def _prepare(preprocessor: Preprocessor, sample: Sample, ask: Ask) -> Prepared:
    if sample.problem:
        raise SampleError(sample.problem)
    given = sample
    clock = Clock(torch.device("cpu"))
    sample = by_content(_fetched(sample))
    if sample.video is not None and ask.video_as == "video" and not preprocessor.has_video:
        raise ModelError(
            f"--video-as video: {preprocessor.name} has no video path of its own; use "
            "--video-as frames."
        )
    loaded = _images(sample.images, ask.max_pixels)
    clip = load_video(sample.video, ask.frames) if sample.video is not None else None
    load_seconds = clock.mark()
    question = ask.question(sample)
    if clip is not None:
        clip = replace(clip, frames=tuple(shrunk(frame, ask.max_pixels) for frame in clip.frames))
    inputs = preprocessor.prepare(
        [image for image, _ in loaded],
        question,
        system=ask.system,
        clip=clip,
        as_frames=ask.video_as == "frames",
    )
    seconds = Seconds(load=load_seconds, prepare=clock.mark())
    media = [media for _, media in loaded]
    if clip is not None:
        media.append(_clip_media(clip))
    return Prepared(
        sample=given, question=question, inputs=inputs, media=tuple(media), seconds=seconds
    )


def _fetched(sample: Sample) -> Sample:
    """The sample with what its addresses give, each fetched once."""
    media = (*sample.images, sample.video)
    if not any(isinstance(medium, Address) for medium in media):
        return sample
    *images, video = (
        Held(medium.name, read_blob(medium)) if isinstance(medium, Address) else medium
        for medium in media
    )
    return replace(sample, images=tuple(images), video=video)


def _clip_media(clip: Clip) -> Media:
    """The facts about a video."""
    return Media(
        width=clip.width,
        height=clip.height,
        mode="RGB",
        frames=clip.num_frames,
        warnings=clip.warnings,
        decoder=clip.decoder,
        duration=clip.duration,
        times=clip.times,
    )


def _images(paths: Sequence[Medium], max_pixels: int) -> list[tuple[Image.Image, Media]]:
    """The pictures of one prompt, each shrunk to `max_pixels`.

    Raises SampleError where all of them together would fill the memory.
    """
    loaded: list[tuple[Image.Image, Media]] = []
    total = 0
    for path in paths:
        image, media = load_image(path)
        image = shrunk(image, max_pixels)
        loaded.append((image, media))
        total += image.width * image.height
        if total > MOST_TOGETHER:
            raise SampleError(
                f"its {len(paths)} pictures have more than {MOST_TOGETHER:,} pixels "
                "together; name fewer, or shrink each with "
                "--max-pixels."
            )
    return loaded
