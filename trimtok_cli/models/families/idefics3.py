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
from trimtok_cli.models.vision.token_layout import Places, blocks, per_frame, plain, raster, tiled
from trimtok_cli.models.vision.tower_signals import Tower


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

    def image_places(self, inputs: Inputs, number: int, visual: Visual) -> Places:
        width, height = visual.size
        _, rows, columns = self.processor.image_processor.get_number_of_image_patches(
            height, width, {}
        )
        if rows * columns <= 1:
            return plain(self._side, self._side, self.model.config.scale_factor)
        return tiled(rows, columns, self._side, self.model.config.scale_factor)

    def video_places(self, inputs: Inputs, visual: Visual) -> Places:
        side = self._side
        source = blocks(side, side, self.model.config.scale_factor)
        return per_frame(raster(side, side), len(visual.times), (side, side), source=source)

    def tower(self) -> Tower:
        return Tower(
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
