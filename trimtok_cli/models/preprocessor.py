"""The part of a model family that needs no network: chat template, image and video processor, and
how bytes become floats.

A Preprocessor is small and can be pickled, so that samples may be prepared in other processes.
Pixels stay bytes until they lie on the model's device, where they are rescaled and normalized in
the image processor's own arithmetic. Knows no pruning method.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from trimtok_cli.errors import ModelError, SampleError
from trimtok_cli.limits import TEMPLATE_BYTES, at_most
from trimtok_cli.media.frames import Clip
from trimtok_cli.models.chat import (
    Written,
    grown,
    guarded,
    has_start,
    marks_of,
    message_parts,
    token_rows,
    written,
)
from trimtok_cli.wording import brief

OF_THE_TEXT = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
)  # tensors of one number a token

# times as long as it is wide: what the processors of Qwen allow; others would ask for gigabytes
LONGEST_SHAPE = 200

_ARITHMETIC = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


@dataclass(frozen=True)
class Visual:
    """An image or a video of a prompt: kind, (width, height), and the times in seconds of a video's
    frames.

    frame: its number where it is one frame of a clip that is shown as images; None where it is an
    image of its own.
    """

    kind: str
    size: tuple[int, int]
    times: tuple[float, ...] = ()
    frame: int | None = None


@dataclass(frozen=True)
class Inputs:
    """One prepared question. tensors: what the family's processor made, batch axis 1, on the CPU;
    input_ids (S,). Pixels are uint8 where `Preprocessor.normalized` is to make floats of them,
    float32 where the processor did.

    instruction (T,): rows of the user's words. visuals: images and videos in the prompt's order;
    text: the prompt as sent; words: the user's own.
    """

    tensors: dict[str, Tensor]
    input_ids: Tensor
    instruction: Tensor
    visuals: tuple[Visual, ...]
    text: str
    words: str = ""

    @property
    def kinds(self) -> tuple[str, ...]:
        """image or video, for every number that a visual token's `visual_index` can be."""
        return tuple(
            "image" if v.kind == "image" and v.frame is None else "video"
            for v in self.visuals
            if not v.frame
        )


class Preprocessor:
    """A family's processor. Raises ModelError where its checkpoint cannot be asked questions."""

    # images and a video may stand in one prompt; elsewhere the video is then shown as frames
    mixes = True

    shares = False  # video frames lie in one tensor with images

    num_positions: int | None = None  # of the model, where that is known

    def __init__(self, processor, name: str) -> None:
        self.processor, self.name = processor, name
        if getattr(processor, "chat_template", None) is None:  # a tokenizer's own knows no images
            raise ModelError(
                f"{name} has no chat template for images, so questions cannot be put to it: "
                "use an instruction-tuned checkpoint."
            )

    @property
    def has_video(self) -> bool:
        """Whether videos have a path of their own in this family; elsewhere their frames are shown
        as images.
        """
        return getattr(self.processor, "video_processor", None) is not None

    def video_inputs(self, clip: Clip) -> dict:
        """What the processor is given for a video whose frames were chosen already: it may neither
        sample nor date them again.

        At one frame a second a frame's index is its time, exactly. The rate that was sampled is
        reckoned from how many frames the clip would then have.
        """
        count, times = len(clip.frames), clip.times
        gap = (times[-1] - times[0]) / (count - 1) if count > 1 else max(clip.duration, 0.001)
        facts = {
            "total_num_frames": count * gap,
            "fps": 1.0,
            "duration": clip.duration,
            "frames_indices": list(times),
        }
        return {
            "videos": [[list(clip.frames)]],
            "video_metadata": [facts],
            "do_sample_frames": False,
        }

    def as_bytes(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The processor's tensors, with pixels that were neither rescaled nor normalized as uint8,
        which most of them are.
        """
        return tensors

    def normalized(self, media: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tower's inputs on any device: what is uint8 becomes what the processor itself would
        have made of it, in float32.
        """
        return {
            name: self._floats(name, tensor) if tensor.dtype == torch.uint8 else tensor
            for name, tensor in media.items()
        }

    def _floats(self, name: str, pixels: Tensor) -> Tensor:
        """(..., 3, H, W) uint8 -> float32, by the library's own function: the same operations on
        every number, in any layout.
        """
        kind = "video_processor" if name == "pixel_values_videos" else "image_processor"
        return getattr(self.processor, kind).rescale_and_normalize(pixels, **self._arithmetic(kind))

    def _arithmetic(self, kind: str) -> dict[str, Any] | None:
        """What a processor rescales and normalizes with; None where that is left to it.

        That is where Pillow's backend is set, which calculates otherwise, and where one tensor
        would need two kinds.
        """
        found = [
            _settings(getattr(self.processor, each, None))
            for each in (kind, "image_processor", "video_processor")
        ]
        return found[0] if not self.shares or not self.has_video or found[1] == found[2] else None

    def prepare(
        self,
        images: Sequence[Image.Image],
        question: str,
        *,
        system: str = "",
        clip: Clip | None = None,
        as_frames: bool = False,
    ) -> Inputs:
        """Chat template, processor, and where the user's words are. SampleError where the question
        or a picture does not fit.

        as_frames shows a clip as so many images, as it always is where the family has no video
        path.
        """
        _check_shapes([*images, *(clip.frames if clip is not None else ())])
        as_frames = clip is not None and (
            as_frames or not self.has_video or (bool(images) and not self.mixes)
        )
        content, pictures, visuals = message_parts(question, len(images), clip is not None), [], []
        chat = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
        shown, rest = [], iter(images)
        for part in content:
            if part["type"] == "video" and as_frames:
                pictures += clip.frames
                visuals += [
                    Visual("image", frame.size, (), i) for i, frame in enumerate(clip.frames)
                ]
                shown += [{"type": "image"}] * len(clip.frames)
                continue
            if part["type"] == "video":
                visuals.append(Visual("video", (clip.width, clip.height), clip.times))
            elif part["type"] == "image":
                pictures.append(next(rest))
                visuals.append(Visual("image", pictures[-1].size))
            shown.append(part)
        prompt = written(self._apply_template, [*chat, {"role": "user", "content": shown}])
        tensors, rows, order = self._tokenized(prompt, pictures, None if as_frames else clip)
        # A template may show what it is given in another order: images first, say.
        kinds = {
            kind: iter([visual for visual in visuals if visual.kind == kind])
            for kind in ("image", "video")
        }
        words = " ".join(part["text"].strip() for part in content if part["type"] == "text")
        return Inputs(
            tensors,
            tensors["input_ids"][0],
            rows,
            tuple(next(kinds[kind]) for kind in order),
            prompt.text,
            words,
        )

    def _apply_template(self, chat: list[dict]) -> str:
        try:
            with at_most(TEMPLATE_BYTES):
                return self.processor.apply_chat_template(chat, add_generation_prompt=True)
        except MemoryError as error:
            raise SampleError(
                f"the chat template of {self.name} takes more than 1 GB of memory for this "
                "question."
            ) from error
        except (
            TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            AttributeError,
            RecursionError,
        ) as error:
            reason = brief(" ".join(str(error).split()) or type(error).__name__, 120).rstrip(".")
            raise SampleError(
                f"the chat template of {self.name} does not write this question ({reason})."
            ) from error

    @cached_property
    def _marks(self) -> dict[str, int]:
        return marks_of(self.processor)

    @property
    def _mark_ids(self) -> set[int]:
        """Ids that no user's characters become; those that the vocabulary lacks may become its
        token for unknown ones.
        """
        return set(self._marks.values()) - {self.processor.tokenizer.unk_token_id}

    def _tokenized(
        self, prompt: Written, pictures: Sequence[Image.Image], clip: Clip | None
    ) -> tuple[dict[str, Tensor], Tensor, list[str]]:
        """The processor's tensors, the rows of the question's words, and what is shown, image or
        video, in the prompt's order.
        """
        tokenizer, safe = self.processor.tokenizer, guarded(prompt, self._marks)
        options: dict[str, Any] = {"add_special_tokens": not has_start(tokenizer, safe.text)}
        self._check_length(prompt.text, **options)
        self._check_places(safe.text, images=len(pictures), videos=int(clip is not None))
        if clip is not None:
            options |= self.video_inputs(clip)
        for kind, name in (
            ("image_processor", "images_kwargs"),
            ("video_processor", "videos_kwargs"),
        ):
            if self._arithmetic(kind) is not None:
                options[name] = {"do_rescale": False, "do_normalize": False}
        batch = self.processor(
            text=[safe.text],
            images=[pictures] if pictures else None,
            return_tensors="pt",
            return_offsets_mapping=tokenizer.is_fast,
            return_text_replacement_offsets=True,
            **options,
        )
        offsets, replaced = (
            batch.pop("offset_mapping", None),
            batch.pop("text_replacement_offsets", ()),
        )
        replaced = list(replaced[0]) if len(replaced) else []
        tensors = self.as_bytes(
            {key: value for key, value in batch.items() if isinstance(value, Tensor)}
        )
        instruction = torch.empty(0, dtype=torch.long)  # without offsets nobody knows
        if offsets is not None:
            kept, instruction = token_rows(
                grown(safe, replaced), tensors["input_ids"][0], offsets[0], self._mark_ids
            )
            tensors |= {name: tensors[name][:, kept] for name in OF_THE_TEXT if name in tensors}
        return tensors, instruction, [each["type"] for each in replaced]

    def _check_places(self, text: str, **given: int) -> None:
        """SampleError where the chat template leaves out a picture, or writes for it what the
        processor does not look for.
        """
        for kind, count in given.items():
            mark = getattr(self.processor, f"{kind.removesuffix('s')}_token", None)
            if mark and (places := text.count(mark)) != count:
                raise SampleError(
                    f"the chat template of {self.name} writes {places} places ({mark}) for "
                    f"{count} {kind}: ask with as many "
                    "as it knows, or use another checkpoint."
                )

    def _check_length(self, text: str, **options) -> None:
        """SampleError where the words alone are longer than the model's positions, before anything
        else is made of them.

        Here a mark in them counts as one token, so that none is refused that fits.
        """
        if (
            self.num_positions is None or 4 * len(text) <= self.num_positions
        ):  # a character is four tokens at most
            return
        count = len(self.processor.tokenizer(text, verbose=False, **options).input_ids)
        if count > self.num_positions:
            raise SampleError(
                f"the question is too long: with the chat template it has {count:,} tokens, "
                "and the model has "
                f"{self.num_positions:,} positions; ask a shorter one."
            )


def _check_shapes(images: Sequence[Image.Image]) -> None:
    """SampleError for a picture so long and thin that a processor that looks at its shorter side
    would blow it up.
    """
    for width, height in {image.size for image in images}:
        if max(width, height) > LONGEST_SHAPE * min(width, height):
            raise SampleError(
                f"a picture of {width} x {height} pixels is more than {LONGEST_SHAPE} times "
                "as long as it is wide: crop it first."
            )


def _settings(processor) -> dict[str, Any] | None:
    if not hasattr(processor, "rescale_and_normalize") or not (
        processor.do_rescale or processor.do_normalize
    ):
        return None
    found = {name: getattr(processor, name) for name in _ARITHMETIC}
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in found.items()
    }
