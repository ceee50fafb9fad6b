"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: images at their own resolution, 2 x 2 patches a token, M-RoPE.

"Qwen2-VL", arXiv 2409.12191; "Qwen2.5-VL", arXiv 2502.13923; "Qwen3-VL", arXiv 2511.21631. The
position of a token is (time, row, column). Kept tokens keep their positions and the answer goes on
where it would in the dense prompt: nothing is renumbered.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from trimtok_cli.media.frames import Clip
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.inputs import Inputs, Visual
from trimtok_cli.models.preprocessor import Preprocessor
from trimtok_cli.models.vision.packed_tower import packed
from trimtok_cli.models.vision.token_layout import TokenLayout, grid_boxes
from trimtok_cli.models.vision.tower_signals import TowerRecorder
from trimtok_cli.tokens import Prompt

# The processor's tensors that `get_rope_index` computes positions from.
_FOR_POSITIONS = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")


class QwenPreprocessor(Preprocessor):
    """Pixels as rows of patches; video frames in pairs."""

    def to_floats(self, name: str, pixels: Tensor) -> Tensor:
        """(patches, 3 * frames * side * side) uint8 -> float32; colour is outermost."""
        by_channel = pixels.reshape(len(pixels), 3, 1, -1)
        return super().to_floats(name, by_channel).reshape(pixels.shape)

    def video_inputs(self, clip: Clip) -> dict:
        """As `Preprocessor.video_inputs`, but a single frame is shown twice.

        Two frames make one layer of tokens; the processors themselves repeat a last odd frame.
        """
        inputs = super().video_inputs(clip)
        if len(clip.frames) == 1:
            metadata = inputs["video_metadata"][0]
            inputs["videos"] = [[list(clip.frames * 2)]]
            twice = {name: metadata[name] * 2 for name in ("total_num_frames", "frames_indices")}
            inputs["video_metadata"] = [metadata | twice]
        return inputs


class Qwen2VL(Adapter):
    """`qwen2_vl` and `qwen2_5_vl`. Two frames of a video make one layer of tokens."""

    renumbers = False
    preprocessing = QwenPreprocessor
    host_tensors = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")

    def image_layout(self, inputs: Inputs, number: int, visual: Visual) -> TokenLayout:
        _, rows, columns = self._grid(inputs.tensors["image_grid_thw"][number])
        return replace(self._layers(1, rows, columns), frame=None)

    def video_layout(self, inputs: Inputs, visual: Visual) -> TokenLayout:
        layers, rows, columns = self._grid(inputs.tensors["video_grid_thw"][0])
        return self._layers(layers, rows, columns)

    def image_sizes(self, tensors: Mapping[str, Tensor]) -> list[tuple[int, int]]:
        side = self.model.config.vision_config.patch_size
        grids = tensors["image_grid_thw"].tolist()
        return [(columns * side, rows * side) for _, rows, columns in grids]

    def tower(self) -> TowerRecorder:
        return TowerRecorder({"": self.model.model.visual.blocks[-1].attn}, None, has_cls=False)

    def packing(self) -> AbstractContextManager:
        return packed(self.model.model.visual, self.dtype, self.to_device)

    def positions(self, inputs: Inputs) -> Tensor:
        """(3, S): time, row and column of every token, by the model's own code.

        That code reads numbers one by one, so it runs on the CPU.
        """
        known = {name: inputs.tensors[name] for name in _FOR_POSITIONS if name in inputs.tensors}
        ids = inputs.input_ids[None]
        positions, _ = self.model.model.get_rope_index(
            ids, attention_mask=torch.ones_like(ids), **known
        )
        return self.to_device(positions[:, 0])

    def _layers(self, layers: int, rows: int, columns: int) -> TokenLayout:
        """The layout of layers of rows x columns tokens.

        The processor puts the patches of a token one after the other.
        """
        patches = torch.arange(self._merge**2)
        source = self._tower_order(layers, rows, columns)[:, None] * len(patches) + patches
        frames_per_layer = self.model.config.vision_config.temporal_patch_size
        return TokenLayout(
            box=grid_boxes(rows, columns).repeat(layers, 1),
            grid=(rows, columns),
            frame=torch.arange(layers).repeat_interleave(rows * columns) * frames_per_layer,
            source=source,
            num_tower_tokens=source.numel(),
        )

    def _tower_order(self, layers: int, rows: int, columns: int) -> Tensor:
        """The index of each token in the tower's order.

        Qwen2.5's tower goes window by window, layer by layer; the others go in raster order.
        """
        vision = self.model.config.vision_config
        numbers = torch.arange(layers * rows * columns)
        if not getattr(vision, "window_size", 0):
            return numbers
        side = vision.window_size // vision.patch_size // self._merge
        padding = (0, -columns % side, 0, -rows % side)
        grid = torch.nn.functional.pad(numbers.reshape(layers, rows, columns), padding, value=-1)
        windows = grid.reshape(layers, grid.shape[1] // side, side, -1, side).transpose(2, 3)
        in_order = windows.flatten()
        return in_order[in_order >= 0].argsort()

    def _grid(self, thw: Tensor) -> tuple[int, int, int]:
        """(layers, rows, columns) of tokens, from the processor's grid of patches."""
        layers, rows, columns = thw.tolist()
        return layers, rows // self._merge, columns // self._merge

    @property
    def _merge(self) -> int:
        """Patches along the side of a visual token."""
        return self.model.config.vision_config.spatial_merge_size


class Qwen3VL(Qwen2VL):
    """`qwen3_vl`: with deepstack.

    Features of earlier tower layers are added to the visual rows behind the first decoder layers.
    """

    @property
    def deepstack_layers(self) -> int:
        return len(self.model.config.vision_config.deepstack_visual_indexes)

    def prefill_extras(self, embeds: Tensor, prompts: Sequence[Prompt]) -> dict:
        """The deepstack layers of all prompts, and a mask (B, S) of the rows they are added to."""
        deepstack = [prompt.deepstack for prompt in prompts if prompt.deepstack is not None]
        if not deepstack:
            return {}
        mask = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        for row, prompt in enumerate(prompts):
            mask[row, prompt.visual] = True
        return {"visual_pos_masks": mask, "deepstack_visual_embeds": list(torch.cat(deepstack, 1))}
