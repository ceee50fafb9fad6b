"""The tensors that models and pruners share: visual tokens, the prompt, a pruner's choice.

A sample has no batch axis: its visual tokens are (N, D), its prompt is (S, D). This module knows no
model, no method and no file, and imports nothing heavier than torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


class TowerSignals:
    """The signals of the vision tower that a method may read; each is computed on first use.

    A family passes one function for each signal that it can offer. Signals are read as attributes.
    Their rows are in the order of the visual tokens, and zero for a token that shows no part of
    the image. The layer that is *read* is the one whose output enters the projector.

    saliency (N,): attention that the token receives in the layer that is read, from its CLS token,
    or on average over all tokens where the tower has none.
    keys (N, d): keys of that layer, mean over heads.
    last_saliency (N,), last_keys (N, d): the same of the last layer, its heads taken as one.
    features (N, F): what enters the projector; project: (K, F) -> (K, D), the projector itself.
    blocks: the tower's layers, for a method that runs them in its own way.
    tile (N,): number of the tile of its image that holds the token, -1 for none.
    relevance (N,): cosine to the question by CLIP's text tower, where one was loaded.
    cls (images, F): output of the layer that is read at the CLS token of each image, of its
    overview where it is cut into tiles, or of the first frame of a clip.
    """

    def __init__(self, **offers: Callable[..., Tensor]) -> None:
        self._offers = offers
        self._computed: dict[str, Tensor] = {}

    def offers(self, name: str) -> bool:
        """Whether the tower has this signal."""
        return name in self._offers

    def offering(self, **signals: Callable[..., Tensor]) -> "TowerSignals":
        """The same signals and further ones."""
        return TowerSignals(**self._offers, **signals)

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_") or name not in self._offers:
            raise AttributeError(f"the vision tower offers no {name}")
        if name not in self._computed:
            self._computed[name] = self._offers[name]()
        return self._computed[name]

    def project(self, features: Tensor) -> Tensor:
        """(K, F) tower features -> (K, D) visual tokens."""
        return self._offers["project"](features)


@dataclass(frozen=True)
class VisualTokens:
    """The dense visual tokens of one sample, projected, in prompt order.

    embeds (N, D).
    visual_index (N,): number of the image or video that the token shows, and so of its budget.
    box (N, 4): xyxy in [0, 1] of the upright image, all zero for a token that shows no part of it.
    frame (N,): number of the token's frame within its video.
    grids: (rows, columns) of every image that is one plain grid, () of the others.
    deepstack (L, N, D): added to the visual rows behind each of the first L layers (Qwen3-VL).

    visual_index, box and frame are on the CPU.
    """

    embeds: Tensor
    visual_index: Tensor
    box: Tensor
    frame: Tensor | None = None
    grids: tuple[tuple[int, ...], ...] = ()
    signals: TowerSignals = field(default_factory=TowerSignals)
    deepstack: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embeds)


@dataclass(frozen=True)
class Selection:
    """The tokens that a pruner chose.

    kept (K,): ascending indices into the tokens that the pruner was shown.
    embeds (K, D): replaces the kept rows where merging changed them.
    extra (E, D): new tokens, inserted behind the last kept one.
    """

    kept: Tensor
    embeds: Tensor | None = None
    extra: Tensor | None = None


@dataclass(frozen=True)
class Prompt:
    """The input of the language model for one sample.

    embeds (S, D); positions (S,), or (3, S) under M-RoPE.
    visual (N,): rows of embeds that are visual tokens.
    alive (N,): their numbers in the dense prompt; extra tokens count on from the dense number.
    instruction (M,): rows that hold the user's own words.
    deepstack (L, N, D): added to the visual rows behind each of the first L decoder layers.
    ids: token ids of the dense prompt, placeholders included, also after pruning.
    seed: the sample's own, for methods and sampling that draw at random.
    """

    embeds: Tensor
    positions: Tensor
    visual: Tensor
    alive: Tensor
    instruction: Tensor
    deepstack: Tensor | None = None
    ids: Tensor | None = None
    seed: int = 0

    def __len__(self) -> int:
        return len(self.embeds)

    def reduced(self, selection: Selection, *, num_dense: int, renumber: bool) -> "Prompt":
        """The prompt with only the visual tokens of `selection`, and its extra ones.

        num_dense: visual tokens of the dense prompt. renumber: positions close the gaps.
        """
        device, length = self.embeds.device, len(self.embeds)
        kept = selection.kept.to(device)
        stays = torch.ones(length, dtype=torch.bool, device=device)
        # A value written by index would be copied to the device, which the host waits for.
        stays.index_fill_(0, self.visual, False)
        stays.index_fill_(0, self.visual[kept], True)
        embeds = self.embeds
        if selection.embeds is not None:
            embeds = embeds.clone()
            embeds[self.visual[kept]] = selection.embeds.to(embeds.dtype)
        # The number of rows is known without the device; `nonzero` would make the host wait for it.
        num_rows = length - len(self.visual) + len(kept)
        rows = stays.int().sort(descending=True, stable=True).indices[:num_rows]
        new_row = stays.long().cumsum(0) - 1
        prompt = replace(
            self,
            embeds=embeds[rows],
            positions=self.positions[..., rows],
            visual=new_row[self.visual[kept]],
            alive=self.alive[kept],
            instruction=new_row[self.instruction],
            deepstack=None if self.deepstack is None else self.deepstack[:, kept],
        )
        if selection.extra is not None and len(selection.extra):
            prompt = prompt._with_extra(selection.extra, num_dense)
        if renumber:
            prompt = replace(prompt, positions=torch.arange(len(prompt), device=device))
        return prompt

    def _with_extra(self, extra: Tensor, num_dense: int) -> "Prompt":
        """The prompt with visual tokens `extra` (E, D) behind the last visual token.

        Where that is lies on the device, and the host does not wait for it.
        """
        count, device = len(extra), self.embeds.device
        start = self._first_row_behind_visual()
        new = torch.arange(count, device=device)

        def shifted(rows: Tensor) -> Tensor:
            return torch.where(rows >= start, rows + count, rows)

        old_rows = shifted(torch.arange(len(self), device=device))
        new_rows = start + new
        embeds = self.embeds.new_empty(len(self) + count, self.embeds.shape[-1])
        embeds[old_rows] = self.embeds
        embeds[new_rows] = extra.to(embeds.dtype)
        positions = self.positions.new_empty(*self.positions.shape[:-1], len(embeds))
        positions[..., old_rows] = self.positions
        # Extra tokens have the position of the token in front of them.
        before = (start - 1).clamp(min=0)[None]
        positions[..., new_rows] = self.positions[..., before].expand(
            *self.positions.shape[:-1], count
        )
        numbers = new + num_dense
        if len(self.alive):
            numbers = new + (self.alive.max() + 1).clamp(min=num_dense)
        deepstack = self.deepstack
        if deepstack is not None:
            deepstack = torch.nn.functional.pad(deepstack, (0, 0, 0, count))
        return replace(
            self,
            embeds=embeds,
            positions=positions,
            visual=torch.cat([shifted(self.visual), new_rows]),
            alive=torch.cat([self.alive, numbers]),
            instruction=shifted(self.instruction),
            deepstack=deepstack,
        )

    def _first_row_behind_visual(self) -> Tensor:
        """() the row behind the last visual token; without any, the instruction's first."""
        if len(self.visual):
            return self.visual[-1] + 1
        if len(self.instruction):
            return self.instruction[0]
        return torch.full((), len(self), device=self.embeds.device)
