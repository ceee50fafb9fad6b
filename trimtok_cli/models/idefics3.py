"""Idefics3 and SmolVLM (`idefics3`, `smolvlm`): tiles of equal token count between row and column marks, then an overview.

"Building and better understanding vision-language models", arXiv 2408.12637; "SmolVLM", arXiv 2504.05299. The image is
stretched to whole tiles. SmolVLM's video frames are one tile each. Positions are 1-D.
"""

from trimtok_cli.models.base import Adapter, Inputs, Visual
from trimtok_cli.models.places import Places, blocks, per_frame, plain, raster, tiled
from trimtok_cli.models.preprocessor import Preprocessor
from trimtok_cli.models.taps import Tower


class IdeficsPreprocessor(Preprocessor):
    mixes = False  # SmolVLM's processor writes images and video frames to the same place


class Idefics3(Adapter):
    media_axis = 1  # (1, tiles, 3, H, W)
    preprocessing = IdeficsPreprocessor

    def image_places(self, inputs: Inputs, number: int, visual: Visual) -> Places:
        width, height = visual.size
        _, rows, columns = self.processor.image_processor.get_number_of_image_patches(height, width, {})
        if rows * columns <= 1:
            return plain(self._side, self._side, self.model.config.scale_factor)
        return tiled(rows, columns, self._side, self.model.config.scale_factor)

    def video_places(self, inputs: Inputs, visual: Visual) -> Places:
        side = self._side
        source = blocks(side, side, self.model.config.scale_factor)
        return per_frame(raster(side, side), len(visual.times), (side, side), source=source)

    def tower(self) -> Tower:
        return Tower({"": self.model.model.vision_model.encoder.layers[-1].self_attn}, None, has_cls=False)

    @property
    def _side(self) -> int:
        """Tokens along a tile's side, behind the pixel shuffle."""
        config = self.model.config
        return config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
