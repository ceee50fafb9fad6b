"""InternVL (`model_type: internvl`, the checkpoints named -hf): tiles of 256 tokens, and last an
overview of them all.

"InternVL3", arXiv 2504.10479. Frames of a video are one tile each. Positions are 1-D.
"""

import sys

import torch.nn.functional as F

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


class InternVLPreprocessor(Preprocessor):
    shares = True


class InternVL(Adapter):
    preprocessing = InternVLPreprocessor

    def image_layout(self, inputs: Inputs, number: int, visual: Visual) -> TokenLayout:
        images, side = self.processor.image_processor, self._side
        if self._tile_counts(inputs)[inputs.visuals.index(visual)] == 1:
            return single_grid(side, side, self._merge)
        # The processor's own choice of rows and columns, a function beside its class.
        choose = sys.modules[type(images).__module__].get_optimal_tiled_canvas
        size = (images.size["height"], images.size["width"])
        columns, rows = choose(visual.size[::-1], size, images.min_patches, images.max_patches)
        return tiled_layout(rows, columns, side, self._merge)

    def _tile_counts(self, inputs: Inputs) -> list[int]:
        """Tiles of every image in the prompt's order, overview included; whether it was tiled at
        all only the prompt says.
        """
        visual = F.pad(self._is_visual(inputs.input_ids).int(), (1, 1)).diff()
        runs = iter(((visual < 0).nonzero() - (visual > 0).nonzero()).flatten().tolist())
        return [
            sum(next(runs) for _ in each.times or (0,)) // self._side**2 for each in inputs.visuals
        ]

    def video_layout(self, inputs: Inputs, visual: Visual) -> TokenLayout:
        side = self._side
        return per_frame(
            grid_boxes(side, side),
            len(visual.times),
            (side, side),
            source=source_blocks(side, side, self._merge),
        )

    def tower(self) -> TowerRecorder:
        read = self.model.model.vision_tower.encoder.layer[-1].attention
        return TowerRecorder({"": read}, None, has_cls=True)

    @property
    def _merge(self) -> int:
        """Tower tokens along a visual token's side."""
        return int(1 / self.model.config.downsample_ratio)

    @property
    def _side(self) -> int:
        """Tokens along a tile's side, behind the pixel shuffle."""
        vision = self.model.config.vision_config
        return int(
            vision.image_size[0] // vision.patch_size[0] * self.model.config.downsample_ratio
        )
