"""The part of a model family that needs no network: chat template, image and video processor, and how bytes become floats.

A Preprocessor is small and can be pickled, so that samples may be prepared in other processes. Pixels stay bytes until they lie
on the model's device, where they are rescaled and normalized in the image processor's own arithmetic. Knows no pruning method.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from trimtok_cli.errors import ModelError
from trimtok_cli.media.video import Clip
from trimtok_cli.models.chat import has_start, instruction_rows, message_parts


@dataclass(frozen=True)
class Visual:
    """An image or a video of a prompt: kind, (width, height), and the times in seconds of a video's frames.

    frame: its number where it is one frame of a clip that is shown as images; None where it is an image of its own.
    """

    kind: str
    size: tuple[int, int]
    times: tuple[float, ...] = ()
    frame: int | None = None


@dataclass(frozen=True)
class Inputs:
    """One prepared question. tensors: what the family's processor made, batch axis 1, on the CPU; input_ids (S,).

    instruction (T,): rows of the user's words. visuals: images and videos in the prompt's order; text: the prompt as sent;
    words: the user's own.
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
        return tuple("image" if v.kind == "image" and v.frame is None else "video" for v in self.visuals if not v.frame)


class Preprocessor:
    """A family's processor. Raises ModelError where its checkpoint cannot be asked questions."""

    mixes = True  # images and a video may stand in one prompt; elsewhere the video is then shown as frames

    def __init__(self, processor, name: str) -> None:
        self.processor, self.name = processor, name
        if getattr(processor, "chat_template", None) is None:  # a tokenizer's own knows no images
            raise ModelError(
                f"{name} has no chat template for images, so questions cannot be put to it: use an instruction-tuned checkpoint."
            )

    @property
    def has_video(self) -> bool:
        """Whether videos have a path of their own in this family; elsewhere their frames are shown as images."""
        return getattr(self.processor, "video_processor", None) is not None

    def video_inputs(self, clip: Clip) -> dict:
        """What the processor is given for a video whose frames were chosen already: it may neither sample nor date them again.

        The rate is that of the frames given, and a frame's index is its time in that rate, whole or not.
        """
        count, times = len(clip.frames), clip.times
        gap = (times[-1] - times[0]) / (count - 1) if count > 1 else max(clip.duration, 0.001)
        facts = {"total_num_frames": count, "fps": 1 / gap, "duration": clip.duration, "frames_indices": [t / gap for t in times]}
        return {"videos": [[list(clip.frames)]], "video_metadata": [facts], "do_sample_frames": False}

    def prepare(
        self, images: Sequence[Image.Image], question: str, *, system: str = "", clip: Clip | None = None, as_frames: bool = False
    ) -> Inputs:
        """Chat template, processor, and where the user's words are. SampleError where the question does not fit.

        as_frames shows a clip as so many images, as it always is where the family has no video path.
        """
        as_frames = clip is not None and (as_frames or not self.has_video or (bool(images) and not self.mixes))
        content = message_parts(question, len(images), clip is not None)
        chat = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
        pictures, visuals, shown, rest = [], [], [], iter(images)
        for part in content:
            if part["type"] == "video" and as_frames:
                pictures += clip.frames
                visuals += [Visual("image", frame.size, (), i) for i, frame in enumerate(clip.frames)]
                shown += [{"type": "image"}] * len(clip.frames)
                continue
            if part["type"] == "video":
                visuals.append(Visual("video", (clip.width, clip.height), clip.times))
            elif part["type"] == "image":
                pictures.append(next(rest))
                visuals.append(Visual("image", pictures[-1].size))
            shown.append(part)
        text = self.processor.apply_chat_template([*chat, {"role": "user", "content": shown}], add_generation_prompt=True)
        more = self.video_inputs(clip) if clip is not None and not as_frames else {}
        batch = self.processor(
            text=[text], images=[pictures] if pictures else None, return_tensors="pt",
            add_special_tokens=not has_start(self.processor.tokenizer, text), **more,
        )  # fmt: skip
        tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
        ids = tensors["input_ids"][0]
        words = [part["text"] for part in content if part["type"] == "text"]
        rows = instruction_rows(self.processor.tokenizer, text, words, ids)
        return Inputs(tensors, ids, rows, tuple(visuals), text, " ".join(words))
