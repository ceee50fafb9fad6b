"""Idefics3 and SmolVLM (`idefics3`, `smolvlm`): tiles between row and column marks, an overview.

"Building and better understanding vision-language models", arXiv 2408.12637; "SmolVLM", arXiv
2504.05299. The image is stretched to whole tiles, which have equally many tokens. SmolVLM's video
frames are one tile each. Positions are 1-D.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.inputs import Inputs, Visual
from trimtok_cli.models.preprocessor import Preprocessor
from trimtok_cli.models.told import runs_and_text, with_frame
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
    """Bytes that the processor laid into a tensor of floats are bytes again."""

    # SmolVLM's processor writes either images or video frames to one tensor.
    one_pixel_tensor = True
    mixes = False

    def as_bytes(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors with pixels as uint8.

        The tiles of a prompt have one size, so the processor pads none. The model takes a tile of
        zeros for a missing one; it finds the same zeros as in the processor's own floats.
        """
        if "pixel_values" not in tensors or self.arithmetic_of("image_processor") is None:
            return tensors
        return tensors | {"pixel_values": tensors["pixel_values"].to(torch.uint8)}


class Idefics3(Adapter):
    """`idefics3` and `smolvlm`."""

    media_axis = 1  # (1, tiles, 3, H, W)
    preprocessing = IdeficsPreprocessor

    def image_layout(self, inputs: Inputs, number: int, visual: Visual) -> TokenLayout:
        if visual.tiles:
            rows, columns = visual.tiles
        else:
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

    def shown(
        self, ids: Tensor, tensors: Mapping[str, Tensor], images: int, videos: int
    ) -> tuple[Visual, ...]:
        """As `Family.shown`: marks name each tile, and words before it each frame of a video."""
        found: list[Visual] = []
        rows = columns = 0
        runs = runs_and_text(self.processor.tokenizer, ids, self.is_visual(ids))
        for _, _, before in runs:
            if tile := re.search(r"<row_(\d+)_col_(\d+)>$", before):
                rows, columns = max(rows, int(tile[1])), max(columns, int(tile[2]))
                continue
            if re.search(r"Frame from [\d:]+:\s*(<[^<>]+>)*$", before):
                found = with_frame(found, first="You are provided" in before)
            else:
                found.append(Visual("image", (0, 0), tiles=(rows, columns)))
            rows = columns = 0
        return tuple(found)

    def tower(self) -> TowerRecorder:
        return TowerRecorder(
            {"": self.model.model.vision_model.encoder.layers[-1].self_attn}, None, has_cls=False
        )

    @property
    def _side(self) -> int:
        """Visual tokens along a tile's side, after the pixel shuffle."""
        config = self.model.config
        return (
            config.vision_config.image_size
            // config.vision_config.patch_size
            // config.scale_factor
        )
