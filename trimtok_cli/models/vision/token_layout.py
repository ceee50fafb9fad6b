"""Where visual tokens lie: boxes over an image, in the order of its tokens. Knows no model."""

from dataclasses import dataclass

import torch
from torch import Tensor

WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class TokenLayout:
    """The tokens of one image or video. box (n, 4): xyxy in [0, 1] of it, all zero where a token
    shows no place.

    grid: (rows, columns) where they form one plain grid, else (). frame (n,): which frame of a
    video. source (n, g): which of this image's tower tokens, CLS tokens not counted, each is made
    of, -1 for none; there are `tower` of those, in `tiles` equal tiles.
    """

    box: Tensor
    grid: tuple[int, ...] = ()
    frame: Tensor | None = None
    source: Tensor | None = None
    tower: int = 0
    tiles: int = 1


def grid_boxes(rows: int, columns: int, view: tuple[float, float, float, float] = WHOLE) -> Tensor:
    """(rows * columns, 4) equal cells in raster order over `view`, clamped to the image."""
    left, top, right, bottom = view
    return boxes_between(
        torch.linspace(top, bottom, rows + 1), torch.linspace(left, right, columns + 1)
    )


def boxes_between(y: Tensor, x: Tensor) -> Tensor:
    """Cells between the edges y (rows + 1,) and x (columns + 1,), in raster order, clamped to the
    image.
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
    """Tokens that show no place: newlines, a CLS row."""
    return torch.zeros(count, 4)


def tiles(rows: int, columns: int, side: int) -> Tensor:
    """An image cut into rows x columns tiles of side x side tokens each, tile by tile."""
    return torch.cat(
        [
            grid_boxes(side, side, (c / columns, r / rows, (c + 1) / columns, (r + 1) / rows))
            for r in range(rows)
            for c in range(columns)
        ]
    )


def per_frame(
    box: Tensor,
    frames: int,
    grid: tuple[int, ...] = (),
    step: int = 1,
    source: Tensor | None = None,
) -> TokenLayout:
    """The same boxes for each of `frames`, of which every one stands for `step` frames of the clip.

    source (n, g): of one frame; each frame has tower tokens of its own, all of them in it.
    """
    number = torch.arange(frames).repeat_interleave(len(box))
    if source is None:
        return TokenLayout(box.repeat(frames, 1), grid, number * step)
    whole = source.repeat(frames, 1) + number[:, None] * source.numel()
    return TokenLayout(box.repeat(frames, 1), grid, number * step, whole, whole.numel())


def source_blocks(rows: int, columns: int, side: int = 1, tile: int = 0) -> Tensor:
    """(rows * columns, side * side): tower tokens in raster order that each token of a rows x
    columns grid is made of.

    tile: which of equal tiles, one after the other.
    """
    width = columns * side
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    first = (row * side * width + column * side).reshape(-1, 1)
    inner = (torch.arange(side)[:, None] * width + torch.arange(side)).reshape(1, -1)
    return first + inner + tile * rows * columns * side * side


def single_grid(
    rows: int, columns: int, side: int = 1, view: tuple[float, float, float, float] = WHOLE
) -> TokenLayout:
    """One grid over `view`, each token of side x side tower tokens."""
    source = source_blocks(rows, columns, side)
    return TokenLayout(
        grid_boxes(rows, columns, view), (rows, columns), None, source, source.numel()
    )


def tiled_layout(rows: int, columns: int, side: int, merge: int) -> TokenLayout:
    """rows x columns tiles of side x side tokens, and behind them one of the whole image."""
    box = torch.cat([tiles(rows, columns, side), grid_boxes(side, side)])
    source = torch.cat(
        [source_blocks(side, side, merge, tile) for tile in range(rows * columns + 1)]
    )
    return TokenLayout(box, (), None, source, source.numel(), rows * columns + 1)
