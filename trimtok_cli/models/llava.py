"""LLaVA-1.5 (`model_type: llava`): CLIP tower, two-layer projector, 576 visual tokens an image on a 24 x 24 grid.

Paper: "Improved Baselines with Visual Instruction Tuning", arXiv 2310.03744. Positions are 1-D: survivors are renumbered.
"""

import torch
from torch import Tensor

from trimtok_cli.models.base import Adapter, Inputs, Visual
from trimtok_cli.models.places import Places, nowhere, plain
from trimtok_cli.models.preprocessor import Preprocessor
from trimtok_cli.models.taps import Tower


def clip_tower(model, *, has_cls: bool) -> Tower:
    """CLIP or SigLIP in front of a projector that takes one tower token for one visual token."""
    vision, layer = model.model.vision_tower, model.config.vision_feature_layer
    if not hasattr(vision, "encoder"):  # Pixtral: attention over whatever sizes the images have, all in one row
        return Tower({}, None, has_cls=False)
    layer = layer[-1] if isinstance(layer, list) else layer
    layers = vision.encoder.layers
    number = range(len(layers))[layer if layer < 0 else layer - 1]  # hidden_states[0] is what enters the first layer
    attention = {"": layers[number].self_attn, "last_": layers[-1].self_attn}
    return Tower(attention, model.model.multi_modal_projector, has_cls=has_cls, layers=layers[: number + 1])


class LlavaPreprocessor(Preprocessor):
    def normalized(self, media: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pixtral's processor fills smaller images up with zeros behind its normalization, so they are zeros again here."""
        found = super().normalized(media)
        if "image_sizes" in media and media["pixel_values"].dtype == torch.uint8:
            pixels, (height, width) = found["pixel_values"], media["image_sizes"].T
            below = torch.arange(pixels.shape[2], device=pixels.device) >= height[:, None]
            beside = torch.arange(pixels.shape[3], device=pixels.device) >= width[:, None]
            pixels.masked_fill_((below[:, :, None] | beside[:, None, :])[:, None], 0)
        return found


class Llava(Adapter):
    """Also Pixtral, which is `llava` with a tower that takes images of any size: its processor adds `image_sizes`."""

    preprocessing = LlavaPreprocessor

    def image_places(self, inputs: Inputs, number: int, visual: Visual) -> Places:
        patch, pixels = self.model.config.vision_config.patch_size, inputs.tensors["pixel_values"].shape[-2:]
        if "image_sizes" in inputs.tensors:
            pixels = inputs.tensors["image_sizes"][number].tolist()
        rows, columns = pixels[0] // patch, pixels[1] // patch
        place = plain(rows, columns, 1, self._view(visual.size))
        if self.model.config.vision_feature_select_strategy == "full" and self._has_cls:
            return Places(torch.cat([nowhere(1), place.box]))
        return place

    def tower(self) -> Tower:
        return clip_tower(self.model, has_cls=self._has_cls)

    @property
    def _has_cls(self) -> bool:
        return self.model.config.vision_config.model_type == "clip_vision_model"

    def _view(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """xyxy of the processor's center crop, as shares of the image; beyond 0 and 1 where it pads."""
        images = self.processor.image_processor
        crop = images.crop_size if getattr(images, "do_center_crop", False) else None
        if not crop:
            return 0.0, 0.0, 1.0, 1.0
        width, height = size
        if getattr(images, "do_resize", False):
            wanted = images.size
            if wanted.get("shortest_edge"):
                short = wanted["shortest_edge"]
                width, height = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
            elif wanted.get("height") and wanted.get("width"):
                width, height = wanted["width"], wanted["height"]
        left, top = (width - crop["width"]) / 2 / width, (height - crop["height"]) / 2 / height
        return left, top, 1 - left, 1 - top
