"""The part of a family that needs no network: chat template and image and video processor.

A Preprocessor is small and can be pickled, so that other processes can prepare samples. Knows no
model and no pruning method.
"""

from collections.abc import Sequence
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
    PromptText,
    has_start,
    hide_marks,
    marks_of,
    message_parts,
    token_rows,
    with_replacements,
    write_prompt,
)
from trimtok_cli.models.inputs import TEXT_TENSORS, Inputs, Visual
from trimtok_cli.models.pixels import Pixels
from trimtok_cli.wording import brief

# The longest shape of an image, length to width. Qwen's processors refuse longer ones; others would
# ask for gigabytes.
LONGEST_SHAPE = 200


class Preprocessor(Pixels):
    """A family's processor. Raises ModelError where its checkpoint has no template for images."""

    # Images and a video may stand in one prompt; if not, the video is shown as images beside them.
    mixes = True

    # The model's positions, where their number is known.
    num_positions: int | None = None

    def __init__(self, processor, name: str) -> None:
        super().__init__(processor)
        self.name = name
        # A template that only the tokenizer has knows no images.
        if getattr(processor, "chat_template", None) is None:
            raise ModelError(
                f"{name} has no chat template for images, so questions cannot be put to it: "
                "use an instruction-tuned checkpoint."
            )

    def video_inputs(self, clip: Clip) -> dict:
        """The processor's arguments for a clip; it neither samples nor dates its frames again.

        At one frame a second, a frame's index is its time, exactly. The sampling rate follows from
        the number of frames that the whole clip would then have.
        """
        times = clip.times
        count = len(clip.frames)
        gap = (times[-1] - times[0]) / (count - 1) if count > 1 else max(clip.duration, 0.001)
        metadata = {
            "total_num_frames": count * gap,
            "fps": 1.0,
            "duration": clip.duration,
            "frames_indices": list(times),
        }
        return {
            "videos": [[list(clip.frames)]],
            "video_metadata": [metadata],
            "do_sample_frames": False,
        }

    def prepare(
        self,
        images: Sequence[Image.Image],
        question: str,
        *,
        system: str = "",
        clip: Clip | None = None,
        as_frames: bool = False,
    ) -> Inputs:
        """A question in the words of the chat template, with the processor's tensors.

        as_frames: show the clip as images, as it always is where the family has no video path.
        Raises SampleError where the question or an image does not fit the model.
        """
        _check_shapes([*images, *(clip.frames if clip is not None else ())])
        if clip is not None and (not self.has_video or (images and not self.mixes)):
            as_frames = True
        parts = message_parts(question, len(images), clip is not None)
        content, pictures, visuals = _shown(parts, images, clip, as_frames=as_frames)
        chat = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
        chat.append({"role": "user", "content": content})
        prompt = write_prompt(self.apply_template, chat)
        tensors, instruction, order = self._tokenized(prompt, pictures, None if as_frames else clip)
        # A template may show images and videos in another order than the question.
        images_left = (visual for visual in visuals if visual.kind == "image")
        videos_left = (visual for visual in visuals if visual.kind == "video")
        return Inputs(
            tensors=tensors,
            input_ids=tensors["input_ids"][0],
            instruction=instruction,
            visuals=tuple(next(images_left if kind == "image" else videos_left) for kind in order),
            text=prompt.text,
            words=" ".join(part["text"].strip() for part in parts if part["type"] == "text"),
        )

    def apply_template(self, chat: list[dict]) -> str:
        """The prompt of a chat. Raises SampleError where the template does not write it."""
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
    def mark_ids(self) -> set[int]:
        """The ids of marks, which no user's characters may become.

        Without the id for unknown tokens, which marks that the vocabulary lacks share with words.
        """
        return set(self._marks.values()) - {self.processor.tokenizer.unk_token_id}

    def _tokenized(
        self, prompt: PromptText, pictures: Sequence[Image.Image], clip: Clip | None
    ) -> tuple[dict[str, Tensor], Tensor, list[str]]:
        """The tensors, the instruction's rows, and `image` or `video` in the prompt's order."""
        tokenizer = self.processor.tokenizer
        safe = hide_marks(prompt, self._marks)
        options: dict[str, Any] = {"add_special_tokens": not has_start(tokenizer, safe.text)}
        self._check_length(prompt.text, **options)
        self._check_placeholders(safe.text, images=len(pictures), videos=int(clip is not None))
        if clip is not None:
            options |= self.video_inputs(clip)
        for part, arguments in (
            ("image_processor", "images_kwargs"),
            ("video_processor", "videos_kwargs"),
        ):
            if self.arithmetic_of(part) is not None:
                options[arguments] = {"do_rescale": False, "do_normalize": False}
        batch = self.processor(
            text=[safe.text],
            images=[pictures] if pictures else None,
            return_tensors="pt",
            return_offsets_mapping=tokenizer.is_fast,
            return_text_replacement_offsets=True,
            **options,
        )
        offsets = batch.pop("offset_mapping", None)
        replacements = batch.pop("text_replacement_offsets", ())
        replacements = list(replacements[0]) if len(replacements) else []
        tensors = self.as_bytes(
            {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        )
        # Without offsets, the rows of the user's words are unknown.
        instruction = torch.empty(0, dtype=torch.long)
        if offsets is not None:
            kept, instruction = token_rows(
                with_replacements(safe, replacements),
                tensors["input_ids"][0],
                offsets[0],
                self.mark_ids,
            )
            tensors |= {name: tensors[name][:, kept] for name in TEXT_TENSORS if name in tensors}
        return tensors, instruction, [replacement["type"] for replacement in replacements]

    def _check_placeholders(self, text: str, **num_shown: int) -> None:
        """Raises SampleError where the template does not write one placeholder for each image.

        It may leave out an image, or write a placeholder that the processor does not look for.
        """
        for media, count in num_shown.items():
            placeholder = getattr(self.processor, f"{media.removesuffix('s')}_token", None)
            if placeholder and (num_written := text.count(placeholder)) != count:
                raise SampleError(
                    f"the chat template of {self.name} writes {num_written} places "
                    f"({placeholder}) for {count} {media}: ask with as many "
                    "as it knows, or use another checkpoint."
                )

    def _check_length(self, text: str, **options) -> None:
        """Raises SampleError where the words alone need more positions than the model has.

        A placeholder counts as one token here, so no prompt that fits is refused.
        """
        # A character is four tokens at most.
        if self.num_positions is None or 4 * len(text) <= self.num_positions:
            return
        count = len(self.processor.tokenizer(text, verbose=False, **options).input_ids)
        if count > self.num_positions:
            raise SampleError(
                f"the question is too long: with the chat template it has {count:,} tokens, "
                "and the model has "
                f"{self.num_positions:,} positions; ask a shorter one."
            )


def _shown(
    parts: Sequence[dict], images: Sequence[Image.Image], clip: Clip | None, *, as_frames: bool
) -> tuple[list[dict], list[Image.Image], list[Visual]]:
    """The parts of a message as they are shown, the pictures among them, and their Visuals."""
    content: list[dict] = []
    pictures: list[Image.Image] = []
    visuals: list[Visual] = []
    images_left = iter(images)
    for part in parts:
        if part["type"] == "video" and as_frames:
            content += [{"type": "image"}] * len(clip.frames)
            pictures += clip.frames
            visuals += [
                Visual("image", frame.size, frame=number)
                for number, frame in enumerate(clip.frames)
            ]
            continue
        content.append(part)
        if part["type"] == "video":
            visuals.append(Visual("video", (clip.width, clip.height), clip.times))
        elif part["type"] == "image":
            pictures.append(next(images_left))
            visuals.append(Visual("image", pictures[-1].size))
    return content, pictures, visuals


def _check_shapes(images: Sequence[Image.Image]) -> None:
    """Raises SampleError for an image so long and thin that a processor would blow it up.

    Some processors scale an image by its shorter side.
    """
    for width, height in {image.size for image in images}:
        if max(width, height) > LONGEST_SHAPE * min(width, height):
            raise SampleError(
                f"a picture of {width} x {height} pixels is more than {LONGEST_SHAPE} times "
                "as long as it is wide: crop it first."
            )
