"""InternVL (`internvl`, the checkpoints named -hf): tiles of 256 tokens, then an overview.

"InternVL3", arXiv 2504.10479. The frames of a video are one tile each. Positions are 1-D.
"""

import re
import sys
from collections.abc import Mapping

from torch import Tensor

from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.inputs import Inputs, Visual
from trimtok_cli.models.preprocessor import Preprocessor
from trimtok_cli.models.told import runs_and_text, runs_of, with_frame
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
        if visual.tiles:
            return tiled_layout(*visual.tiles, side, self._merge)
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
        lengths = iter(stop - start for start, stop in runs_of(self.is_visual(inputs.input_ids)))
        num_runs = [len(visual.times) or 1 for visual in inputs.visuals]
        return [sum(next(lengths) for _ in range(runs)) // self._side**2 for runs in num_runs]

    def shown(
        self, ids: Tensor, tensors: Mapping[str, Tensor], images: int, videos: int
    ) -> tuple[Visual, ...]:
        """As `Family.shown`: each run is an image, or a frame that the words before it number.

        How the tiles of an image lay is not told: their boxes are those of one row.
        """
        found: list[Visual] = []
        runs = runs_and_text(self.processor.tokenizer, ids, self.is_visual(ids))
        for start, stop, before in runs:
            if frame := re.search(r"Frame(\d+):\s*(<[^<>]+>)?$", before):
                found = with_frame(found, first=frame[1] == "1")
            else:
                tiles = (stop - start) // self._side**2
                found.append(Visual("image", (0, 0), tiles=(1, tiles - 1)))
        return tuple(found)

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
