"""Idefics3 and SmolVLM (`idefics3`, `smolvlm`): tiles of equal token count between row and column
marks, then an overview.

"Building and better understanding vision-language models", arXiv 2408.12637; "SmolVLM", arXiv
2504.05299. The image is stretched to whole tiles. SmolVLM's video frames are one tile each.
Positions are 1-D.
"""

import torch
from torch import Tensor

from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.preprocessor import Inputs, Preprocessor, Visual
from trimtok_cli.models.vision.token_layout import (
    TokenLayout,
    grid_boxes,
    per_frame,
    single_grid,
    source_blocks,
    tiled_layout,
)
from trimtok_cli.models.vision.tower_signals import TowerRecorder


class IdeficsPreprocessor(Preprocessor):
    shares, mixes = (
        True,
        False,
    )  # SmolVLM's processor writes images and video frames to the same place, one of the two

    def as_bytes(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The processor lays the bytes of all tiles into one tensor of floats. It pads none: in one
        prompt they are of one size.

        So the model's mark for a missing tile, all zeros, is seen in floats that the processor
        would have made as well.
        """
        if "pixel_values" not in tensors or self._arithmetic("image_processor") is None:
            return tensors
        return tensors | {"pixel_values": tensors["pixel_values"].to(torch.uint8)}


class Idefics3(Adapter):
    media_axis = 1  # (1, tiles, 3, H, W)
    preprocessing = IdeficsPreprocessor

    def image_layout(self, inputs: Inputs, number: int, visual: Visual) -> TokenLayout:
        width, height = visual.size
        _, rows, columns = self.processor.image_processor.get_number_of_image_patches(
            height, width, {}
        )
        if rows * columns <= 1:
            return single_grid(self._side, self._side, self.model.config.scale_factor)
        return tiled_layout(rows, columns, self._side, self.model.config.scale_factor)

    def video_layout(self, inputs: Inputs, visual: Visual) -> TokenLayout:
        side = self._side
        source = source_blocks(side, side, self.model.config.scale_factor)
        return per_frame(grid_boxes(side, side), len(visual.times), (side, side), source=source)

    def tower(self) -> TowerRecorder:
        return TowerRecorder(
            {"": self.model.model.vision_model.encoder.layers[-1].self_attn}, None, has_cls=False
        )

    @property
    def _side(self) -> int:
        """Tokens along a tile's side, behind the pixel shuffle."""
        config = self.model.config
        return (
            config.vision_config.image_size
            // config.vision_config.patch_size
            // config.scale_factor
        )
