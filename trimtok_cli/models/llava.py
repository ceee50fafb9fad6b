"""LLaVA-1.5 (`model_type: llava`): CLIP tower, two-layer projector, 576 visual tokens an image on a 24 x 24 grid.

Paper: "Improved Baselines with Visual Instruction Tuning", arXiv 2310.03744. Positions are 1-D: survivors are renumbered.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtok_cli.models.base import Adapter, Inputs
from trimtok_cli.tokens import VisualTokens


class Llava(Adapter):
    """Also Pixtral, which is `llava` with a tower that takes images of any size: its processor adds `image_sizes`."""

    def encode_many(self, batch: Sequence[Inputs]) -> list[VisualTokens]:
        features: list[list[Tensor]] = [[] for _ in batch]
        for members in self._groups(batch):
            pixels = torch.cat([batch[i].tensors["pixel_values"] for i in members]).to(self.device, self.dtype)
            sizes = batch[members[0]].tensors.get("image_sizes")
            more = {} if sizes is None else {"image_sizes": sizes}
            rows = iter(self.model.get_image_features(pixels, **more).pooler_output)
            for i in members:
                features[i] = [next(rows) for _ in batch[i].sizes]
        return [self._tokens(rows, inputs) for rows, inputs in zip(features, batch, strict=True)]

    def _groups(self, batch: Sequence[Inputs]) -> list[list[int]]:
        """Samples whose images go through the tower together: those of one size; alone where sizes are the tower's business."""
        groups: dict[tuple, list[int]] = {}
        for i, inputs in enumerate(batch):
            if "pixel_values" in inputs.tensors:
                alone = i if "image_sizes" in inputs.tensors else -1
                groups.setdefault((alone, *inputs.tensors["pixel_values"].shape[1:]), []).append(i)
        return list(groups.values())

    def _tokens(self, features: list[Tensor], inputs: Inputs) -> VisualTokens:
        if not features:
            width = self.model.get_input_embeddings().weight.shape[1]
            empty = torch.empty(0, width, device=self.device, dtype=self.dtype)
            return VisualTokens(empty, torch.empty(0, dtype=torch.long, device=self.device), torch.empty(0, 4))
        counts = torch.tensor([len(rows) for rows in features], device=self.device)
        index = torch.arange(len(features), device=self.device).repeat_interleave(counts)
        patch = self.model.config.vision_config.patch_size
        shared = [list(inputs.tensors["pixel_values"].shape[-2:])] * len(features)
        pixels = inputs.tensors["image_sizes"].tolist() if "image_sizes" in inputs.tensors else shared
        grids = [(height // patch, width // patch) for height, width in pixels]
        boxes = [self._boxes(len(rows), grid, size) for rows, grid, size in zip(features, grids, inputs.sizes, strict=True)]
        whole = tuple(grid if len(rows) == grid[0] * grid[1] else () for rows, grid in zip(features, grids, strict=True))
        return VisualTokens(torch.cat(features), index, torch.cat(boxes), grids=whole)

    def _boxes(self, count: int, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """(count, 4) in raster order over the part of the image that the processor's crop left in view."""
        rows, columns = grid
        left, top, right, bottom = self._view(size)
        x = torch.linspace(left, right, columns + 1)
        y = torch.linspace(top, bottom, rows + 1)
        boxes = torch.stack([x[:-1].expand(rows, -1), y[:-1, None].expand(-1, columns),
                             x[1:].expand(rows, -1), y[1:, None].expand(-1, columns)], -1)  # fmt: skip
        boxes = boxes.reshape(-1, 4).clamp(0, 1)
        # With strategy "full" the CLS row comes first and shows no place.
        return torch.cat([boxes.new_zeros(max(count - len(boxes), 0), 4), boxes])[:count]

    def _view(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """xyxy of the processor's center crop, as shares of the image; beyond 0 and 1 where it pads."""
        images = self.processor.image_processor
        crop = images.crop_size if getattr(images, "do_center_crop", False) else None
        if not crop:
            return 0.0, 0.0, 1.0, 1.0
        width, height = size
        if getattr(images, "do_resize", False):
            wanted = images.size
            if wanted.get("shortest_edge"):
                short = wanted["shortest_edge"]
                width, height = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
            elif wanted.get("height") and wanted.get("width"):
                width, height = wanted["width"], wanted["height"]
        left, top = (width - crop["width"]) / 2 / width, (height - crop["height"]) / 2 / height
        return left, top, 1 - left, 1 - top
