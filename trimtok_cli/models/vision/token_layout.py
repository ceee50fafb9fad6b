"""TokenLayout: where the visual tokens of an image or a video lie. Knows no model.

A *box* is the part of the image that a token shows. A *source* is the tower tokens that a visual
token is made of: one where the projector keeps the grid, several where it merges or pools.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

# The whole image as a view: xyxy as shares of its width and height.
WHOLE = (0.0, 0.0, 1.0, 1.0)

# A run's images have few sizes, and a grid takes longer to write out than to launch the tower's
# first layer. Nobody writes into a layout.
KNOWN = 128


@dataclass(frozen=True)
class TokenLayout:
    """The visual tokens of one image or video, in their order.

    box (N, 4): xyxy in [0, 1] of the image, all zero for a token that shows no part of it.
    grid: (rows, columns) where the tokens form one plain grid, else ().
    frame (N,): number of the token's frame in a video.
    source (N, G): indices of the tower tokens that a token is made of, -1 for none. They count the
    tower tokens of this image or video, without CLS tokens. None where they are unknown.
    num_tower_tokens: tower tokens of this image or video, without CLS tokens.
    num_tiles: equal tiles that those are of.
    """

    box: Tensor
    grid: tuple[int, ...] = ()
    frame: Tensor | None = None
    source: Tensor | None = None
    num_tower_tokens: int = 0
    num_tiles: int = 1


@lru_cache(KNOWN)
def grid_boxes(rows: int, columns: int, view: tuple[float, float, float, float] = WHOLE) -> Tensor:
    """(rows * columns, 4) boxes of equal cells over `view`, in raster order, within the image."""
    left, top, right, bottom = view
    return boxes_between(
        torch.linspace(top, bottom, rows + 1), torch.linspace(left, right, columns + 1)
    )


def boxes_between(y: Tensor, x: Tensor) -> Tensor:
    """(rows * columns, 4) boxes of the cells between edges, in raster order, clamped to the image.

    y (rows + 1,) and x (columns + 1,): the edges, as shares of the image.
    """
    rows, columns = len(y) - 1, len(x) - 1
    boxes = torch.stack(
        [
            x[:-1].expand(rows, -1),
            y[:-1, None].expand(-1, columns),
            x[1:].expand(rows, -1),
            y[1:, None].expand(-1, columns),
        ],
        -1,
    )
    return boxes.reshape(-1, 4).clamp(0, 1)


def no_boxes(count: int) -> Tensor:
    """(count, 4) boxes of tokens that show no part of the image: newlines, a CLS token."""
    return torch.zeros(count, 4)


def tile_boxes(rows: int, columns: int, side: int) -> Tensor:
    """Boxes of an image cut into rows x columns tiles of side x side tokens, tile by tile."""
    views = [
        (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]
    return torch.cat([grid_boxes(side, side, view) for view in views])


def per_frame(
    box: Tensor, num_frames: int, grid: tuple[int, ...] = (), source: Tensor | None = None
) -> TokenLayout:
    """The layout of a video whose frames all have the same boxes.

    box (n, 4), source (n, G): of one frame. Each frame has tower tokens of its own, and every one
    of them is in its source.
    """
    frame = torch.arange(num_frames).repeat_interleave(len(box))
    boxes = box.repeat(num_frames, 1)
    if source is None:
        return TokenLayout(box=boxes, grid=grid, frame=frame)
    sources = source.repeat(num_frames, 1) + frame[:, None] * source.numel()
    return TokenLayout(
        box=boxes, grid=grid, frame=frame, source=sources, num_tower_tokens=sources.numel()
    )


@lru_cache(KNOWN)
def source_blocks(rows: int, columns: int, side: int = 1, tile: int = 0) -> Tensor:
    """(rows * columns, side * side) sources of a grid whose tokens merge side x side tower tokens.

    Tower tokens are in raster order. tile: number of this grid among equal tiles.
    """
    width = columns * side
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    first = (row * side * width + column * side).reshape(-1, 1)
    inner = (torch.arange(side)[:, None] * width + torch.arange(side)).reshape(1, -1)
    return first + inner + tile * rows * columns * side * side


@lru_cache(KNOWN)
def single_grid(
    rows: int, columns: int, side: int = 1, view: tuple[float, float, float, float] = WHOLE
) -> TokenLayout:
    """The layout of one grid over `view`, whose tokens merge side x side tower tokens."""
    source = source_blocks(rows, columns, side)
    return TokenLayout(
        box=grid_boxes(rows, columns, view),
        grid=(rows, columns),
        source=source,
        num_tower_tokens=source.numel(),
    )


@lru_cache(KNOWN)
def tiled_layout(rows: int, columns: int, side: int, merge: int) -> TokenLayout:
    """The layout of rows x columns tiles of side x side tokens, then a tile of the whole image.

    merge: tower tokens along the side of a visual token.
    """
    num_tiles = rows * columns + 1
    source = torch.cat([source_blocks(side, side, merge, tile) for tile in range(num_tiles)])
    return TokenLayout(
        box=torch.cat([tile_boxes(rows, columns, side), grid_boxes(side, side)]),
        source=source,
        num_tower_tokens=source.numel(),
        num_tiles=num_tiles,
    )
