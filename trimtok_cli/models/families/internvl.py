"""InternVL (`internvl`, the checkpoints named -hf): tiles of 256 tokens, then an overview.

"InternVL3", arXiv 2504.10479. The frames of a video are one tile each. Positions are 1-D.
"""

import sys

import torch.nn.functional as F

from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.inputs import Inputs, Visual
from trimtok_cli.models.preprocessor import Preprocessor
from trimtok_cli.models.vision.token_layout import (
    TokenLayout,
    grid_boxes,
    per_frame,
    single_grid,
    source_blocks,
    tiled_layout,
)
from trimtok_cli.models.vision.tower_signals import TowerRecorder


class InternVLPreprocessor(Preprocessor):
    """Images and video frames lie in one tensor."""

    one_pixel_tensor = True


class InternVL(Adapter):
    """`internvl`."""

    preprocessing = InternVLPreprocessor

    def image_layout(self, inputs: Inputs, number: int, visual: Visual) -> TokenLayout:
        images, side = self.processor.image_processor, self._side
        if self._tile_counts(inputs)[inputs.visuals.index(visual)] == 1:
            return single_grid(side, side, self._merge)
        # The processor chooses rows and columns by a function beside its class.
        choose_canvas = sys.modules[type(images).__module__].get_optimal_tiled_canvas
        size = (images.size["height"], images.size["width"])
        columns, rows = choose_canvas(
            visual.size[::-1], size, images.min_patches, images.max_patches
        )
        return tiled_layout(rows, columns, side, self._merge)

    def _tile_counts(self, inputs: Inputs) -> list[int]:
        """The number of tiles of each visual, overview included, counted in the prompt.

        Only the prompt says whether an image was tiled. Each image, and each frame of a video, is
        one run of placeholders.
        """
        edges = F.pad(self.is_visual(inputs.input_ids).int(), (1, 1)).diff()
        lengths = iter(((edges < 0).nonzero() - (edges > 0).nonzero()).flatten().tolist())
        num_runs = [len(visual.times) or 1 for visual in inputs.visuals]
        return [sum(next(lengths) for _ in range(runs)) // self._side**2 for runs in num_runs]

    def video_layout(self, inputs: Inputs, visual: Visual) -> TokenLayout:
        side = self._side
        return per_frame(
            grid_boxes(side, side),
            len(visual.times),
            (side, side),
            source=source_blocks(side, side, self._merge),
        )

    def tower(self) -> TowerRecorder:
        attention = self.model.model.vision_tower.encoder.layer[-1].attention
        return TowerRecorder({"": attention}, None, has_cls=True)

    @property
    def _merge(self) -> int:
        """Tower tokens along the side of a visual token."""
        return int(1 / self.model.config.downsample_ratio)

    @property
    def _side(self) -> int:
        """Visual tokens along a tile's side, after the pixel shuffle."""
        vision = self.model.config.vision_config
        return int(
            vision.image_size[0] // vision.patch_size[0] * self.model.config.downsample_ratio
        )
