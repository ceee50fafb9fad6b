"""Idefics3 and SmolVLM (`idefics3`, `smolvlm`): tiles of equal token count between row and column marks, then an overview.

"Building and better understanding vision-language models", arXiv 2408.12637; "SmolVLM", arXiv 2504.05299. The image is
stretched to whole tiles. SmolVLM's video frames are one tile each. Positions are 1-D.
"""

import torch

from trimtok_cli.models.base import Adapter, Inputs, Visual
from trimtok_cli.models.places import Places, per_frame, raster, tiles


class Idefics3(Adapter):
    media_axis = 1  # (1, tiles, 3, H, W)
    mixes = False  # SmolVLM's processor writes images and video frames to the same place

    def image_places(self, inputs: Inputs, number: int, visual: Visual) -> Places:
        width, height = visual.size
        _, rows, columns = self.processor.image_processor.get_number_of_image_patches(height, width, {})
        overview = raster(self._side, self._side)
        if rows * columns <= 1:
            return Places(overview, (self._side, self._side))
        return Places(torch.cat([tiles(rows, columns, self._side), overview]))

    def video_places(self, inputs: Inputs, visual: Visual) -> Places:
        return per_frame(raster(self._side, self._side), len(visual.times), (self._side, self._side))

    @property
    def _side(self) -> int:
        """Tokens along a tile's side, behind the pixel shuffle."""
        config = self.model.config
        return config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
