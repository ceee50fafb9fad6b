"""LLaVA-1.5 (`model_type: llava`): CLIP tower, two-layer projector, 576 visual tokens an image on a
24 x 24 grid.

Paper: "Improved Baselines with Visual Instruction Tuning", arXiv 2310.03744. Positions are 1-D:
survivors are renumbered.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.preprocessor import Inputs, Preprocessor, Visual
from trimtok_cli.models.vision.token_layout import TokenLayout, no_boxes, single_grid
from trimtok_cli.models.vision.tower_run import truncated
from trimtok_cli.models.vision.tower_signals import TowerRecorder


class ClipAdapter(Adapter):
    """CLIP or SigLIP, of which some layers' hidden states are read, before a projector that makes
    each token one visual token.

    `llava` may also have Pixtral's tower, where attention goes over whatever sizes the images have,
    all in one row: it has no signals.
    """

    def tower(self) -> TowerRecorder:
        if not hasattr(self._vision, "encoder"):
            return TowerRecorder()
        layers, last = self._layers, max(self._states_read)
        attention = {"": layers[last - 1].self_attn, "last_": layers[-1].self_attn}
        projector = self.model.model.multi_modal_projector
        return TowerRecorder(
            attention, projector, has_cls=self._has_cls, layers=layers[:last], behind=layers[last:]
        )

    def reading(self) -> AbstractContextManager:
        if getattr(self._vision.config, "tie_last_hidden_states", None):
            return nullcontext()  # then the last hidden state is not what leaves the last layer
        return truncated(self._vision, self._layers, self._states_read)

    @property
    def _has_cls(self) -> bool:
        return self.model.config.vision_config.model_type == "clip_vision_model"

    @property
    def _vision(self) -> torch.nn.Module:
        return self.model.model.vision_tower

    @property
    def _layers(self) -> Sequence[torch.nn.Module]:
        return (
            self._vision.encoder if hasattr(self._vision, "encoder") else self._vision.transformer
        ).layers

    @property
    def _states_read(self) -> set[int]:
        """Numbers of hidden states, 0 for what enters the first layer."""
        read = self.model.config.vision_feature_layer
        return {
            range(len(self._layers) + 1)[number]
            for number in (read if isinstance(read, list) else [read])
        }


class LlavaPreprocessor(Preprocessor):
    def normalized(self, media: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pixtral's processor fills smaller images up with zeros behind its normalization, so they
        are zeros again here.
        """
        found = super().normalized(media)
        if "image_sizes" in media and media["pixel_values"].dtype == torch.uint8:
            pixels, (height, width) = (
                found["pixel_values"],
                media["image_sizes"].to(found["pixel_values"].device).T,
            )
            below = torch.arange(pixels.shape[2], device=pixels.device) >= height[:, None]
            beside = torch.arange(pixels.shape[3], device=pixels.device) >= width[:, None]
            pixels.masked_fill_((below[:, :, None] | beside[:, None, :])[:, None], 0)
        return found


class Llava(ClipAdapter):
    """Also Pixtral, which is `llava` with a tower that takes images of any size: its processor adds
    `image_sizes`.
    """

    preprocessing = LlavaPreprocessor

    def image_layout(self, inputs: Inputs, number: int, visual: Visual) -> TokenLayout:
        patch, pixels = (
            self.model.config.vision_config.patch_size,
            inputs.tensors["pixel_values"].shape[-2:],
        )
        if "image_sizes" in inputs.tensors:
            pixels = inputs.tensors["image_sizes"][number].tolist()
        rows, columns = pixels[0] // patch, pixels[1] // patch
        place = single_grid(rows, columns, 1, self._view(visual.size))
        drops = self.model.config.vision_feature_select_strategy == "default"
        if self._has_cls and not drops:
            return TokenLayout(torch.cat([no_boxes(1), place.box]))
        # A tower without a class token loses its first patch where the checkpoint drops one all the
        # same.
        return TokenLayout(place.box[1:]) if drops and not self._has_cls else place

    def _view(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """xyxy of the processor's center crop, as shares of the image; beyond 0 and 1 where it
        pads.
        """
        images = self.processor.image_processor
        crop = images.crop_size if getattr(images, "do_center_crop", False) else None
        if not crop:
            return 0.0, 0.0, 1.0, 1.0
        width, height = size
        if getattr(images, "do_resize", False):
            wanted = images.size
            if wanted.get("shortest_edge"):
                short = wanted["shortest_edge"]
                width, height = (
                    (short, int(short * height / width))
                    if width <= height
                    else (int(short * width / height), short)
                )
            elif wanted.get("height") and wanted.get("width"):
                width, height = wanted["width"], wanted["height"]
        left, top = (width - crop["width"]) / 2 / width, (height - crop["height"]) / 2 / height
        return left, top, 1 - left, 1 - top
