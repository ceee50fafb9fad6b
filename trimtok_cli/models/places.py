"""Where visual tokens lie: boxes over an image, in the order of its tokens. Knows no model."""

from dataclasses import dataclass

import torch
from torch import Tensor

WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Places:
    """The tokens of one image or video. box (n, 4): xyxy in [0, 1] of it, all zero where a token shows no place.

    grid: (rows, columns) where they form one plain grid, else (). frame (n,): which frame of a video.
    """

    box: Tensor
    grid: tuple[int, ...] = ()
    frame: Tensor | None = None


def raster(rows: int, columns: int, view: tuple[float, float, float, float] = WHOLE) -> Tensor:
    """(rows * columns, 4) equal cells in raster order over `view`, clamped to the image."""
    left, top, right, bottom = view
    return cells(torch.linspace(top, bottom, rows + 1), torch.linspace(left, right, columns + 1))


def cells(y: Tensor, x: Tensor) -> Tensor:
    """Cells between the edges y (rows + 1,) and x (columns + 1,), in raster order, clamped to the image."""
    rows, columns = len(y) - 1, len(x) - 1
    boxes = torch.stack([x[:-1].expand(rows, -1), y[:-1, None].expand(-1, columns),
                         x[1:].expand(rows, -1), y[1:, None].expand(-1, columns)], -1)  # fmt: skip
    return boxes.reshape(-1, 4).clamp(0, 1)


def nowhere(count: int) -> Tensor:
    """Tokens that show no place: newlines, a CLS row."""
    return torch.zeros(count, 4)


def tiles(rows: int, columns: int, side: int) -> Tensor:
    """An image cut into rows x columns tiles of side x side tokens each, tile by tile."""
    return torch.cat([raster(side, side, (c / columns, r / rows, (c + 1) / columns, (r + 1) / rows))
                      for r in range(rows) for c in range(columns)])  # fmt: skip


def per_frame(box: Tensor, frames: int, grid: tuple[int, ...] = (), step: int = 1) -> Places:
    """The same boxes for each of `frames`, of which every one stands for `step` frames of the clip."""
    return Places(box.repeat(frames, 1), grid, torch.arange(frames).repeat_interleave(len(box)) * step)
