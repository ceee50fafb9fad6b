"""LLaVA-1.5 (`llava`): CLIP tower, two-layer projector, 24 x 24 visual tokens for each image.

"Improved Baselines with Visual Instruction Tuning", arXiv 2310.03744. Positions are 1-D:
kept tokens are renumbered.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import torch
from torch import Tensor

from trimtok_cli.device import on_device
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.inputs import Inputs, Visual
from trimtok_cli.models.preprocessor import Preprocessor
from trimtok_cli.models.vision.recorded_tower import RecordedTower
from trimtok_cli.models.vision.token_layout import TokenLayout, no_boxes, single_grid
from trimtok_cli.models.vision.tower_run import truncated
from trimtok_cli.models.vision.tower_signals import TowerRecorder


class ClipAdapter(Adapter):
    """A family with a CLIP or SigLIP tower, each of whose tokens becomes one visual token.

    The projector reads the hidden states of one or several layers. A `llava` may also have
    Pixtral's tower, which lays images of all sizes into one row: it offers no signals.
    """

    def tower(self) -> TowerRecorder:
        if not hasattr(self._vision, "encoder"):
            return TowerRecorder()
        layers = self._layers
        num_read = max(self._states_read)
        return TowerRecorder(
            {"": layers[num_read - 1].self_attn, "last_": layers[-1].self_attn},
            self.model.model.multi_modal_projector,
            has_cls=self._has_cls,
            layers=layers[:num_read],
            behind=layers[num_read:],
        )

    def early_exit(self) -> AbstractContextManager:
        # With this setting, the last hidden state is not the output of the last layer.
        if getattr(self._vision.config, "tie_last_hidden_states", None):
            return nullcontext()
        return truncated(self._vision, self._layers, self._states_read)

    def recording(self, recorder: TowerRecorder) -> AbstractContextManager:
        if not hasattr(self._vision, "encoder"):
            return nullcontext()
        return self._recorded_tower.running(self._vision, recorder)

    @cached_property
    def _recorded_tower(self) -> RecordedTower:
        return RecordedTower(self.device)

    @property
    def _has_cls(self) -> bool:
        return self.model.config.vision_config.model_type == "clip_vision_model"

    @property
    def _vision(self) -> torch.nn.Module:
        return self.model.model.vision_tower

    @property
    def _layers(self) -> Sequence[torch.nn.Module]:
        vision = self._vision
        return (vision.encoder if hasattr(vision, "encoder") else vision.transformer).layers

    @property
    def _states_read(self) -> set[int]:
        """The numbers of the hidden states that are read; 0 is the input of the first layer."""
        read = self.model.config.vision_feature_layer
        all_states = range(len(self._layers) + 1)
        return {all_states[number] for number in (read if isinstance(read, list) else [read])}


class LlavaPreprocessor(Preprocessor):
    """Pads images of different sizes as Pixtral's processor does."""

    def normalized(self, media: dict[str, Tensor]) -> dict[str, Tensor]:
        """As `Preprocessor.normalized`, with zeros for padding.

        Pixtral's processor pads smaller images with zeros after normalization.
        """
        normalized = super().normalized(media)
        if "image_sizes" in media and media["pixel_values"].dtype == torch.uint8:
            pixels = normalized["pixel_values"]
            height, width = on_device(media["image_sizes"], pixels.device).T
            below = torch.arange(pixels.shape[2], device=pixels.device) >= height[:, None]
            beside = torch.arange(pixels.shape[3], device=pixels.device) >= width[:, None]
            pixels.masked_fill_((below[:, :, None] | beside[:, None, :])[:, None], 0)
        return normalized


class Llava(ClipAdapter):
    """`llava`, also with Pixtral's tower, which takes images of any size.

    Pixtral's processor adds `image_sizes` to the tensors.
    """

    preprocessing = LlavaPreprocessor
    host_tensors = ("image_sizes",)

    def image_layout(self, inputs: Inputs, number: int, visual: Visual) -> TokenLayout:
        patch = self.model.config.vision_config.patch_size
        height, width = inputs.tensors["pixel_values"].shape[-2:]
        if "image_sizes" in inputs.tensors:
            height, width = inputs.tensors["image_sizes"][number].tolist()
        grid = single_grid(height // patch, width // patch, 1, self._view(visual.size))
        drops_first = self.model.config.vision_feature_select_strategy == "default"
        if self._has_cls and not drops_first:
            return TokenLayout(box=torch.cat([no_boxes(1), grid.box]))
        # A tower without a CLS token then loses its first patch.
        if drops_first and not self._has_cls:
            return TokenLayout(box=grid.box[1:])
        return grid

    def image_sizes(self, tensors: Mapping[str, Tensor]) -> list[tuple[int, int]]:
        if "image_sizes" not in tensors:
            return super().image_sizes(tensors)
        return [(width, height) for height, width in tensors["image_sizes"].tolist()]

    def _view(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """The processor's center crop: xyxy in shares of the image, beyond 0 and 1 as padding."""
        images = self.processor.image_processor
        crop = images.crop_size if getattr(images, "do_center_crop", False) else None
        if not crop:
            return 0.0, 0.0, 1.0, 1.0
        width, height = self._resized(size)
        left = (width - crop["width"]) / 2 / width
        top = (height - crop["height"]) / 2 / height
        return left, top, 1 - left, 1 - top

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of an image after the processor's resize."""
        width, height = size
        images = self.processor.image_processor
        if not getattr(images, "do_resize", False):
            return size
        short = images.size.get("shortest_edge")
        if short:
            if width <= height:
                return short, int(short * height / width)
            return int(short * width / height), short
        if images.size.get("height") and images.size.get("width"):
            return images.size["width"], images.size["height"]
        return size
