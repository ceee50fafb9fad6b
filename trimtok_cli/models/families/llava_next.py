"""LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision: an overview tile, tiles of the image at its own
shape, newline tokens.

"LLaVA-NeXT: Improved reasoning, OCR, and world knowledge" (2024); "LLaVA-OneVision", arXiv
2408.03326. The image is fitted into the best of a list of resolutions, padded, cut into tiles;
tokens of the padding are dropped, and behind every row of the rest stands a newline token. Newlines
are candidates like any other token and show no place. Positions are 1-D.
"""

import math

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from trimtok_cli.models.families.llava import ClipAdapter
from trimtok_cli.models.preprocessor import Inputs, Visual
from trimtok_cli.models.vision.token_layout import (
    WHOLE,
    TokenLayout,
    boxes_between,
    grid_boxes,
    no_boxes,
    per_frame,
    source_blocks,
)


class LlavaNext(ClipAdapter):
    """`llava_next`: base tile of 576, then up to 2,304 tokens of tiles and a newline a row."""

    on_host = ("image_sizes", "batch_num_images")

    def image_layout(self, inputs: Inputs, number: int, visual: Visual) -> TokenLayout:
        side = self._side
        height, width = self._best_resolution(visual.size)
        y, x = self._canvas(height), self._canvas(width)
        rows, columns = len(y) - 1, len(x) - 1
        cut_y, cut_x = self._padding(rows, columns, visual.size)
        edges_y, edges_x = self._edges(y, x, (cut_y, cut_x), (height, width), visual.size)
        tiled = boxes_between(edges_y, edges_x).reshape(
            len(edges_y) - 1, len(edges_x) - 1, 4
        )  # a very long image may have no rows
        lines = torch.cat([tiled, no_boxes(len(tiled))[:, None]], 1).reshape(-1, 4)
        # The tower's tokens come tile by tile; here they lie as in the whole grid.
        whole = (
            torch.arange(rows * columns)
            .reshape(rows // side, columns // side, side, side)
            .transpose(1, 2)
        )
        kept = (
            whole.reshape(rows, columns)[cut_y : rows - cut_y, cut_x : columns - cut_x]
            + side * side
        )
        made_of = (
            kept[..., None] if kept.shape == tiled.shape[:2] else _spread(kept, *tiled.shape[:2])
        )
        behind = torch.nn.functional.pad(made_of, (0, 0, 0, 1), value=-1).flatten(0, 1)
        overview = torch.arange(side * side)[:, None].expand(-1, behind.shape[1])
        return TokenLayout(
            torch.cat([grid_boxes(side, side), lines]),
            source=torch.cat([overview, behind]),
            tower=rows * columns + side * side,
            tiles=rows * columns // side**2 + 1,
        )

    def video_layout(self, inputs: Inputs, visual: Visual) -> TokenLayout:
        stride = self.model.config.spatial_pool_stride
        side = self._side // stride
        return per_frame(
            grid_boxes(side, side),
            len(visual.times),
            (side, side),
            source=source_blocks(side, side, stride),
        )

    @property
    def _side(self) -> int:
        vision = self.model.config.vision_config
        return vision.image_size // vision.patch_size

    def _best_resolution(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the listed resolutions that the processor fits the image into."""
        return tuple(select_best_resolution(size[::-1], self.model.config.image_grid_pinpoints))

    def _canvas(self, pixels: int) -> Tensor:
        """Edges of the token cells along one side of the padded canvas, in pixels. A tile's
        remainder falls to its last cell.
        """
        vision, side = self.model.config.vision_config, self._side
        count = pixels // vision.image_size * side
        cell = torch.arange(count + 1)
        return (cell // side * vision.image_size + cell % side * vision.patch_size).float()

    @staticmethod
    def _padding(rows: int, columns: int, size: tuple[int, int]) -> tuple[int, int]:
        """Rows that the model drops at the top and at the bottom, columns at the left and at the
        right, as padding.
        """
        width, height = size
        if width / height > columns / rows:
            return (rows - int(round(height * (columns / width), 7))) // 2, 0
        return 0, (columns - int(round(width * (rows / height), 7))) // 2

    def _edges(
        self,
        y: Tensor,
        x: Tensor,
        cut: tuple[int, int],
        canvas: tuple[int, int],
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """The edges that are left when the padding is dropped, as shares of the image."""
        width, height = size
        # How the processor lays the image into the canvas, in pixels: it rounds in its own way, not
        # in the model's.
        scale_x, scale_y = canvas[1] / width, canvas[0] / height
        if scale_x < scale_y:
            wide, tall = canvas[1], min(math.ceil(height * scale_x), canvas[0])
        else:
            wide, tall = min(math.ceil(width * scale_y), canvas[1]), canvas[0]
        y, x = y[cut[0] : len(y) - cut[0]], x[cut[1] : len(x) - cut[1]]
        return (y - (canvas[0] - tall) // 2) / tall, (x - (canvas[1] - wide) // 2) / wide


class LlavaOnevision(LlavaNext):
    """`llava_onevision`: SigLIP, at most nine tiles' worth of tokens; of several images each is one
    tile; pooled video frames.
    """

    def image_layout(self, inputs: Inputs, number: int, visual: Visual) -> TokenLayout:
        if sum(each.kind == "image" for each in inputs.visuals) == 1:
            return super().image_layout(inputs, number, visual)
        (width, height), square = visual.size, max(visual.size)
        view = (-(square - width) // 2 / width, -(square - height) // 2 / height)
        padded = grid_boxes(
            self._side, self._side, (*view, view[0] + square / width, view[1] + square / height)
        )
        return TokenLayout(torch.cat([padded, no_boxes(1)]))

    def video_layout(self, inputs: Inputs, visual: Visual) -> TokenLayout:
        side = math.ceil(self._side / 2)
        frames = per_frame(grid_boxes(side, side, WHOLE), len(visual.times), (side, side))
        return TokenLayout(
            torch.cat([frames.box, no_boxes(1)]), (), torch.cat([frames.frame, frames.frame[-1:]])
        )

    def _edges(
        self,
        y: Tensor,
        x: Tensor,
        cut: tuple[int, int],
        canvas: tuple[int, int],
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """More than nine tiles' worth is shrunk, in token space."""
        y, x = super()._edges(y, x, cut, canvas, size)
        rows, columns = len(y) - 1, len(x) - 1
        most = int(self.model.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * columns / (most * self._side**2))
        return (
            (_shrunk(y, int(rows // ratio)), _shrunk(x, int(columns // ratio)))
            if ratio > 1.1
            else (y, x)
        )


def _spread(grid: Tensor, rows: int, columns: int) -> Tensor:
    """(rows, columns, 4): the cells of a larger grid that lie around the middle of each cell of a
    smaller one.
    """

    def around(count: int, of: int) -> tuple[Tensor, Tensor]:
        low = ((torch.arange(count) + 0.5) * of / count - 0.5).clamp(min=0).long()
        return low, (low + 1).clamp(max=of - 1)

    y, x = around(rows, len(grid)), around(columns, grid.shape[1])
    return torch.stack([grid[a][:, b] for a in y for b in x], -1)


def _shrunk(edges: Tensor, count: int) -> Tensor:
    """`count` cells over the span of as many as there are edges."""
    at = torch.linspace(0, len(edges) - 1, count + 1)
    low = at.floor().long().clamp(max=len(edges) - 2)
    return edges[low] + (at - low) * (edges[low + 1] - edges[low])
