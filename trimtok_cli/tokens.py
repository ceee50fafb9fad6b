"""What the model's parts hand to each other: visual tokens, the prompt as embeddings, and a
pruner's choice. torch only.

No batch axis: a sample's visual tokens are (N, D), its prompt (S, D). Knows no model, no method, no
file.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


class TowerSignals:
    """What a method may ask of the vision tower besides its output; nothing is computed before it
    is asked for.

    A family hands over the functions that it can offer, in the order of the visual tokens. Read
    them as attributes: saliency (N,): attention received in the tower layer whose output is read,
    from its CLS token or else on the mean; keys (N, d): that layer's keys, mean over heads;
    last_saliency, last_keys: of the tower's last layer, all heads as one; features (N, F): what
    enters the projector; project((K, F)) -> (K, D); blocks: the tower's layers, to be run
    otherwise; tile (N,): which of its image's tiles a token is of, -1 for none, where images are
    cut in tiles. relevance (N,): cosine to the question by CLIP's own text tower, where one was
    loaded; cls (images, F): what left that layer at each image's (or its overview's, or a clip's
    first frame's) CLS token. A token that shows no place has zeros.
    """

    def __init__(self, **offers: Callable[..., Tensor]) -> None:
        self._offers, self._known = offers, {}

    def offers(self, name: str) -> bool:
        return name in self._offers

    def offering(self, **more: Callable[..., Tensor]) -> "TowerSignals":
        """The same with further offers."""
        return TowerSignals(**self._offers, **more)

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_") or name not in self._offers:
            raise AttributeError(f"the vision tower offers no {name}")
        if name not in self._known:
            self._known[name] = self._offers[name]()
        return self._known[name]

    def project(self, features: Tensor) -> Tensor:
        return self._offers["project"](features)


@dataclass(frozen=True)
class VisualTokens:
    """The dense visual tokens of one sample, projected, in prompt order.

    embeds (N, D). visual_index (N,): which image or video a token is of, and so which budget it
    falls under; frame (N,) counts within a video. box (N, 4): xyxy in [0, 1] of the upright image,
    all zero where a token shows no place (a newline). grids: (rows, columns) for every image that
    is one plain grid, () for the others. deepstack (L, N, D): what Qwen3-VL adds to the visual rows
    behind each of its first L decoder layers. visual_index, box and frame are on the CPU.
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
    """A pruner's answer: kept (K,) ascending, as places among the tokens it was shown.

    embeds (K, D) replaces the kept rows where merging changed them; extra (E, D) are added tokens,
    set behind the last kept one.
    """

    kept: Tensor
    embeds: Tensor | None = None
    extra: Tensor | None = None


@dataclass(frozen=True)
class Prompt:
    """What the language model reads. embeds (S, D); positions (S,), or (3, S) under M-RoPE.

    visual (N,): the rows of embeds that are visual tokens; alive (N,): their numbers in the dense
    prompt (added tokens count on from the dense number). instruction (T,): the rows that hold the
    user's own words. deepstack (L, N, D): what is added to the visual rows behind each of the first
    L decoder layers, where a family does that. ids: those of the dense prompt, placeholders
    included, whatever is pruned. seed: what this sample's lots are drawn by.
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
        """Without the visual tokens that `selection` left out; with `renumber` the positions close
        the gaps.
        """
        device, length = self.embeds.device, len(self.embeds)
        kept = selection.kept.to(device)
        stays = torch.ones(length, dtype=torch.bool, device=device)
        stays[self.visual] = False
        stays[self.visual[kept]] = True
        embeds = self.embeds
        if selection.embeds is not None:
            embeds = embeds.clone()
            embeds[self.visual[kept]] = selection.embeds.to(embeds.dtype)
        # In place of nonzero, whose size the host would have to wait for: how many rows stay is
        # known without the device.
        rows = (
            stays.int()
            .sort(descending=True, stable=True)
            .indices[: length - len(self.visual) + len(kept)]
        )
        new_place = stays.long().cumsum(0) - 1
        prompt = replace(
            self,
            embeds=embeds[rows],
            positions=self.positions[..., rows],
            visual=new_place[self.visual[kept]],
            alive=self.alive[kept],
            instruction=new_place[self.instruction],
            deepstack=None if self.deepstack is None else self.deepstack[:, kept],
        )
        if selection.extra is not None and len(selection.extra):
            prompt = prompt._with_extra(selection.extra, num_dense)
        if renumber:
            prompt = replace(prompt, positions=torch.arange(len(prompt), device=device))
        return prompt

    def _with_extra(self, extra: Tensor, num_dense: int) -> "Prompt":
        count, device = len(extra), self.embeds.device
        at = (
            int(self.visual[-1]) + 1
            if len(self.visual)
            else int(self.instruction[0])
            if len(self.instruction)
            else len(self)
        )
        position = self.positions[
            ..., max(at - 1, 0) : max(at - 1, 0) + 1
        ]  # added tokens stand where the last kept one stands

        def shift(rows):
            return torch.where(rows >= at, rows + count, rows)

        new = torch.arange(count, device=device)
        return replace(
            self,
            embeds=torch.cat([self.embeds[:at], extra.to(self.embeds.dtype), self.embeds[at:]]),
            positions=torch.cat(
                [
                    self.positions[..., :at],
                    position.expand(*position.shape[:-1], count),
                    self.positions[..., at:],
                ],
                -1,
            ),
            visual=torch.cat([shift(self.visual), at + new]),
            alive=torch.cat(
                [
                    self.alive,
                    max(num_dense, int(self.alive.max()) + 1 if len(self.alive) else 0) + new,
                ]
            ),
            instruction=shift(self.instruction),
            deepstack=None
            if self.deepstack is None
            else torch.nn.functional.pad(self.deepstack, (0, 0, 0, count)),
        )
