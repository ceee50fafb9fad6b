"""LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision: overview, tiles, newline tokens.

"LLaVA-NeXT: Improved reasoning, OCR, and world knowledge" (2024); "LLaVA-OneVision", arXiv
2408.03326. The image is fitted into the best of a list of resolutions, padded to a canvas and cut
into tiles. The tokens of the padding are dropped, and a newline token is put behind every row of
the rest. Newlines are candidates like any other token and show no part of the image. Positions are
1-D.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from trimtok_cli.models.families.llava import ClipAdapter
from trimtok_cli.models.inputs import Inputs, Visual
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
    """`llava_next`: an overview of 576 tokens, then up to 2,304 of tiles, and a newline a row."""

    host_tensors = ("image_sizes", "batch_num_images")

    def image_layout(self, inputs: Inputs, number: int, visual: Visual) -> TokenLayout:
        side = self._side
        height, width = self._best_resolution(visual.size)
        y, x = self._canvas(height), self._canvas(width)
        rows, columns = len(y) - 1, len(x) - 1
        cut_y, cut_x = self._padding(rows, columns, visual.size)
        edges_y, edges_x = self._edges(y, x, (cut_y, cut_x), (height, width), visual.size)
        # A very long image may have no rows.
        boxes = boxes_between(edges_y, edges_x).reshape(len(edges_y) - 1, len(edges_x) - 1, 4)
        lines = torch.cat([boxes, no_boxes(len(boxes))[:, None]], 1).reshape(-1, 4)
        # Tower tokens come tile by tile, behind those of the overview; here they lie as on the
        # canvas.
        tiles = torch.arange(rows * columns).reshape(rows // side, columns // side, side, side)
        canvas = tiles.transpose(1, 2).reshape(rows, columns) + side * side
        kept = canvas[cut_y : rows - cut_y, cut_x : columns - cut_x]
        if kept.shape == boxes.shape[:2]:
            source = kept[..., None]
        else:
            source = _spread(kept, *boxes.shape[:2])
        with_newlines = torch.nn.functional.pad(source, (0, 0, 0, 1), value=-1).flatten(0, 1)
        overview = torch.arange(side * side)[:, None].expand(-1, with_newlines.shape[1])
        return TokenLayout(
            box=torch.cat([grid_boxes(side, side), lines]),
            source=torch.cat([overview, with_newlines]),
            num_tower_tokens=rows * columns + side * side,
            num_tiles=rows * columns // side**2 + 1,
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

    def image_sizes(self, tensors: Mapping[str, Tensor]) -> list[tuple[int, int]]:
        return [(width, height) for height, width in tensors["image_sizes"].tolist()]

    @property
    def _side(self) -> int:
        """Tower tokens along a tile's side."""
        vision = self.model.config.vision_config
        return vision.image_size // vision.patch_size

    def _best_resolution(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the listed resolution that the processor fits the image into."""
        return tuple(select_best_resolution(size[::-1], self.model.config.image_grid_pinpoints))

    def _canvas(self, pixels: int) -> Tensor:
        """(cells + 1,) edges of the token cells along a side of the canvas, in pixels.

        The pixels of a tile that fill no cell belong to its last one.
        """
        vision, side = self.model.config.vision_config, self._side
        count = pixels // vision.image_size * side
        cell = torch.arange(count + 1)
        return (cell // side * vision.image_size + cell % side * vision.patch_size).float()

    @staticmethod
    def _padding(rows: int, columns: int, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of padding that the model drops at each end of the canvas."""
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
        """The edges (y, x) that are left without the padding, as shares of the image.

        cut: rows and columns of padding at each end. canvas: (height, width) in pixels.
        """
        width, height = size
        # The image's size on the canvas, in pixels: the processor and the model round differently.
        scale_x, scale_y = canvas[1] / width, canvas[0] / height
        if scale_x < scale_y:
            fitted_width, fitted_height = canvas[1], min(math.ceil(height * scale_x), canvas[0])
        else:
            fitted_width, fitted_height = min(math.ceil(width * scale_y), canvas[1]), canvas[0]
        y, x = y[cut[0] : len(y) - cut[0]], x[cut[1] : len(x) - cut[1]]
        top, left = (canvas[0] - fitted_height) // 2, (canvas[1] - fitted_width) // 2
        return (y - top) / fitted_height, (x - left) / fitted_width


class LlavaOnevision(LlavaNext):
    """`llava_onevision`: SigLIP, at most nine tiles' worth of tokens, pooled video frames.

    In a prompt with several images, each image is one padded tile.
    """

    def image_layout(self, inputs: Inputs, number: int, visual: Visual) -> TokenLayout:
        if sum(other.kind == "image" for other in inputs.visuals) == 1:
            return super().image_layout(inputs, number, visual)
        width, height = visual.size
        square = max(visual.size)
        left = -(square - width) // 2 / width
        top = -(square - height) // 2 / height
        view = (left, top, left + square / width, top + square / height)
        padded = grid_boxes(self._side, self._side, view)
        return TokenLayout(box=torch.cat([padded, no_boxes(1)]))

    def video_layout(self, inputs: Inputs, visual: Visual) -> TokenLayout:
        side = math.ceil(self._side / 2)
        frames = per_frame(grid_boxes(side, side, WHOLE), len(visual.times), (side, side))
        return TokenLayout(
            box=torch.cat([frames.box, no_boxes(1)]),
            frame=torch.cat([frames.frame, frames.frame[-1:]]),
        )

    def _edges(
        self,
        y: Tensor,
        x: Tensor,
        cut: tuple[int, int],
        canvas: tuple[int, int],
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """As `LlavaNext._edges`; a grid of more than nine tiles' worth of tokens is shrunk."""
        y, x = super()._edges(y, x, cut, canvas, size)
        rows, columns = len(y) - 1, len(x) - 1
        most = int(self.model.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * columns / (most * self._side**2))
        if ratio <= 1.1:
            return y, x
        return _shrunk(y, int(rows // ratio)), _shrunk(x, int(columns // ratio))


def _spread(grid: Tensor, rows: int, columns: int) -> Tensor:
    """(rows, columns, 4) entries of a larger grid around the middle of each cell of a smaller one.

    They are the four that bilinear interpolation reads.
    """

    def around(count: int, num_cells: int) -> tuple[Tensor, Tensor]:
        low = ((torch.arange(count) + 0.5) * num_cells / count - 0.5).clamp(min=0).long()
        return low, (low + 1).clamp(max=num_cells - 1)

    near_rows, near_columns = around(rows, len(grid)), around(columns, grid.shape[1])
    return torch.stack([grid[y][:, x] for y in near_rows for x in near_columns], -1)


def _shrunk(edges: Tensor, count: int) -> Tensor:
    """(count + 1,) edges of fewer cells over the same span."""
    index = torch.linspace(0, len(edges) - 1, count + 1)
    low = index.floor().long().clamp(max=len(edges) - 2)
    return edges[low] + (index - low) * (edges[low + 1] - edges[low])
