"""Inputs: one prepared question, with the images and videos that its prompt shows.

Plain records between a Preprocessor and an Adapter; knows no processor and no model.
"""

from dataclasses import dataclass

from torch import Tensor

# The processor's tensors that have one number for each token; all others hold images and videos.
TEXT_TENSORS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class Visual:
    """An image or a video of a prompt.

    kind: `image` or `video`.
    size: (width, height) in pixels.
    times: of a video's frames, in seconds.
    frame: number of a frame of a clip that is shown as images; None for an image of its own.
    tiles: (rows, columns) where the prompt tells how the image was cut, and not its size.
    """

    kind: str
    size: tuple[int, int]
    times: tuple[float, ...] = ()
    frame: int | None = None
    tiles: tuple[int, int] | None = None


@dataclass(frozen=True)
class Inputs:
    """One prepared question.

    tensors: the processor's, for a batch of one, on the CPU. Pixels are uint8 where
    `Preprocessor.normalized` makes floats of them, float32 where the processor did.
    input_ids (S,).
    instruction (M,): rows of the user's own words.
    visuals: images and videos in the prompt's order.
    text: the prompt as sent; words: the user's own.
    """

    tensors: dict[str, Tensor]
    input_ids: Tensor
    instruction: Tensor
    visuals: tuple[Visual, ...]
    text: str
    words: str = ""

    @property
    def media_tensors(self) -> dict[str, Tensor]:
        """The tensors of images and videos: the inputs of the vision tower."""
        return {name: tensor for name, tensor in self.tensors.items() if name not in TEXT_TENSORS}

    @property
    def kinds(self) -> tuple[str, ...]:
        """`image` or `video` for each value of a visual token's `visual_index`.

        The frames of a clip that is shown as images are one video.
        """
        return tuple(
            "image" if visual.kind == "image" and visual.frame is None else "video"
            for visual in self.visuals
            if not visual.frame
        )
