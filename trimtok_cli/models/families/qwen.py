"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: images at their own resolution, 2 x 2 patches to a token, M-RoPE.

"Qwen2-VL", arXiv 2409.12191; "Qwen2.5-VL", arXiv 2502.13923; "Qwen3-VL", arXiv 2511.21631. A
token's position is (time, row, column), so kept tokens keep theirs and text goes on where the dense
prompt would: nothing is renumbered.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trimtok_cli.media.frames import Clip
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.preprocessor import Inputs, Preprocessor, Visual
from trimtok_cli.models.vision.token_layout import TokenLayout, grid_boxes
from trimtok_cli.models.vision.tower_signals import TowerRecorder
from trimtok_cli.tokens import Prompt

_FOR_POSITIONS = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")


class QwenPreprocessor(Preprocessor):
    def _floats(self, name: str, pixels: Tensor) -> Tensor:
        """(patches, 3 * frames * side * side): in a patch, its channels are the outermost axis."""
        return super()._floats(name, pixels.reshape(len(pixels), 3, 1, -1)).reshape(pixels.shape)

    def video_inputs(self, clip: Clip) -> dict:
        """A layer is two frames: a single one is shown twice, as the processors themselves do with
        a last odd one.
        """
        given = super().video_inputs(clip)
        if len(clip.frames) == 1:
            facts = given["video_metadata"][0]
            given["videos"] = [[list(clip.frames * 2)]]
            twice = {name: facts[name] * 2 for name in ("total_num_frames", "frames_indices")}
            given["video_metadata"] = [facts | twice]
        return given


class Qwen2VL(Adapter):
    """`qwen2_vl` and `qwen2_5_vl`. Two frames of a video make one layer of tokens."""

    renumbers = False
    preprocessing = QwenPreprocessor

    def image_layout(self, inputs: Inputs, number: int, visual: Visual) -> TokenLayout:
        _, rows, columns = self._grid(inputs.tensors["image_grid_thw"][number])
        return replace(self._layers(1, rows, columns), frame=None)

    def video_layout(self, inputs: Inputs, visual: Visual) -> TokenLayout:
        layers, rows, columns = self._grid(inputs.tensors["video_grid_thw"][0])
        return self._layers(layers, rows, columns)

    def tower(self) -> TowerRecorder:
        return TowerRecorder({"": self.model.model.visual.blocks[-1].attn}, None, has_cls=False)

    def positions(self, inputs: Inputs) -> Tensor:
        """(3, S): time, row and column of every token, as the model itself works them out for the
        dense prompt.

        On the CPU, as it reads numbers one by one.
        """
        known = {name: inputs.tensors[name] for name in _FOR_POSITIONS if name in inputs.tensors}
        ids = inputs.input_ids[None]
        return self._moved(
            self.model.model.get_rope_index(ids, attention_mask=torch.ones_like(ids), **known)[0][
                :, 0
            ]
        )

    def _layers(self, layers: int, rows: int, columns: int) -> TokenLayout:
        """Layers of rows x columns tokens. The processor lays the patches of a token side by side
        already.
        """
        spots, vision = self._tower_order(layers, rows, columns), self.model.config.vision_config
        source = spots[:, None] * self._merge**2 + torch.arange(self._merge**2)
        frame = torch.arange(layers).repeat_interleave(rows * columns) * vision.temporal_patch_size
        return TokenLayout(
            grid_boxes(rows, columns).repeat(layers, 1),
            (rows, columns),
            frame,
            source,
            source.numel(),
        )

    def _tower_order(self, layers: int, rows: int, columns: int) -> Tensor:
        """Where each token stands in the tower: Qwen2.5's goes window by window, layer by layer;
        the others in raster order.
        """
        vision = self.model.config.vision_config
        numbers = torch.arange(layers * rows * columns)
        if not getattr(vision, "window_size", 0):
            return numbers
        side = vision.window_size // vision.patch_size // self._merge
        more = (0, -columns % side, 0, -rows % side)
        grid = torch.nn.functional.pad(numbers.reshape(layers, rows, columns), more, value=-1)
        windows = (
            grid.reshape(layers, grid.shape[1] // side, side, -1, side).transpose(2, 3).flatten()
        )
        return windows[windows >= 0].argsort()

    def _grid(self, thw: Tensor) -> tuple[int, int, int]:
        layers, rows, columns = thw.tolist()
        return layers, rows // self._merge, columns // self._merge

    @property
    def _merge(self) -> int:
        return self.model.config.vision_config.spatial_merge_size


class Qwen3VL(Qwen2VL):
    """`qwen3_vl`: features of earlier tower layers are added to the visual rows behind the first
    decoder layers (deepstack).
    """

    def prefill_extras(self, embeds: Tensor, prompts: Sequence[Prompt]) -> dict:
        deep = [prompt.deepstack for prompt in prompts if prompt.deepstack is not None]
        if not deep:
            return {}
        mask = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        for row, prompt in enumerate(prompts):
            mask[row, embeds.shape[1] - len(prompt) + prompt.visual] = True
        return {"visual_pos_masks": mask, "deepstack_visual_embeds": list(torch.cat(deep, 1))}
