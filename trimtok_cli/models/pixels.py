"""Pixels: bytes while a sample is prepared, floats once they are on the model's device.

Bytes are a quarter of the memory that crosses between processes and to the device. They are
rescaled and normalized there by the processor's own function. Knows no model.
"""

from typing import Any

import torch
from torch import Tensor

_ARITHMETIC = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


class Pixels:
    """How the image and video parts of a processor make floats of bytes."""

    # Images and video frames lie in one tensor.
    one_pixel_tensor = False

    def __init__(self, processor) -> None:
        self.processor = processor

    @property
    def has_video(self) -> bool:
        """Whether the family has a video path of its own; if not, frames are shown as images."""
        return getattr(self.processor, "video_processor", None) is not None

    def as_bytes(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The processor's tensors, with pixels that are not yet normalized as uint8.

        Most processors return them so; a family whose processor does not overrides this.
        """
        return tensors

    def normalized(self, media: dict[str, Tensor]) -> dict[str, Tensor]:
        """The vision tower's inputs, with uint8 pixels normalized to float32, on any device."""
        return {
            name: self.to_floats(name, tensor) if tensor.dtype == torch.uint8 else tensor
            for name, tensor in media.items()
        }

    def to_floats(self, name: str, pixels: Tensor) -> Tensor:
        """(..., 3, H, W) uint8 -> float32, equal to the processor's own result.

        The library's function does the same operations on every number, in any layout.
        """
        part = "video_processor" if name == "pixel_values_videos" else "image_processor"
        processor = getattr(self.processor, part)
        return processor.rescale_and_normalize(pixels, **self.arithmetic_of(part))

    def arithmetic_of(self, part: str) -> dict[str, Any] | None:
        """The settings by which a part of the processor rescales and normalizes.

        None where the part itself has to do so: Pillow's backend calculates in another way, and one
        tensor for images and frames cannot follow two settings.
        """
        images = _arithmetic(getattr(self.processor, "image_processor", None))
        videos = _arithmetic(getattr(self.processor, "video_processor", None))
        if self.one_pixel_tensor and self.has_video and images != videos:
            return None
        return videos if part == "video_processor" else images


def _arithmetic(processor) -> dict[str, Any] | None:
    """A part's settings of `rescale_and_normalize`; None where it has none, or does neither."""
    if not hasattr(processor, "rescale_and_normalize"):
        return None
    if not (processor.do_rescale or processor.do_normalize):
        return None
    settings = {name: getattr(processor, name) for name in _ARITHMETIC}
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
