"""The tensors that models and pruners share: visual tokens, the prompt, a pruner's choice.

A sample has no batch axis: its visual tokens are (N, D), its prompt is (S, D). This module knows no
model, no method and no file, and imports nothing heavier than torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor

from trimtok_cli.device import on_device


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
        (prompt,) = reduced_together([self], [selection], num_dense=[num_dense], renumber=renumber)
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


def reduced_together(
    prompts: Sequence[Prompt],
    selections: Sequence[Selection],
    *,
    num_dense: Sequence[int],
    renumber: bool,
) -> list[Prompt]:
    """Each prompt as `Prompt.reduced` says it; the results are views of tensors that they share.

    The prompts stand one behind the other, so that their numbers are found by a few operations for
    all of them. Their sizes are known without the device, and the host does not wait for it.
    """
    device = prompts[0].embeds.device
    kept = [selection.kept.to(device) for selection in selections]
    lengths = [len(prompt) for prompt in prompts]
    dense = [len(prompt.visual) for prompt in prompts]
    counts = [len(each) for each in kept]
    words = [len(prompt.instruction) for prompt in prompts]
    left = [
        length - gone + count for length, gone, count in zip(lengths, dense, counts, strict=True)
    ]
    # What each sample's numbers are away from those of the whole row, before and behind.
    dense_away, kept_away, new_away, words_away, new_words_away, rows_away = _starts(
        (lengths, dense),
        (dense, counts),
        (left, counts),
        (lengths, words),
        (left, words),
        (lengths, left),
        device=device,
    )
    visual = torch.cat([prompt.visual for prompt in prompts]) + dense_away
    places = torch.cat(kept) + kept_away
    # A value written by index would be copied to the device, which the host waits for.
    stays = torch.ones(sum(lengths), dtype=torch.long, device=device)
    stays.index_fill_(0, visual, 0)
    stays.index_fill_(0, visual[places], 1)
    ends = stays.cumsum(0)
    # The row that is the n-th to stay; `nonzero` would make the host wait for their number.
    rows = torch.searchsorted(ends, torch.arange(1, sum(left) + 1, device=device))
    new_row = ends - 1
    instruction = torch.cat([prompt.instruction for prompt in prompts]) + words_away
    positions = torch.cat([prompt.positions for prompt in prompts], -1)[..., rows].split(left, -1)
    fields = zip(
        (rows - rows_away).split(left),
        positions,
        (new_row[visual[places]] - new_away).split(counts),
        torch.cat([prompt.alive for prompt in prompts])[places].split(counts),
        (new_row[instruction] - new_words_away).split(words),
        strict=True,
    )
    numbers = torch.arange(max(left), device=device)
    return [
        _reduced(prompt, replace(selection, kept=own), parts, count, numbers if renumber else None)
        for prompt, selection, own, parts, count in zip(
            prompts, selections, kept, fields, num_dense, strict=True
        )
    ]


def _starts(
    *pairs: tuple[Sequence[int], Sequence[int]], device: torch.device
) -> tuple[Tensor, ...]:
    """For each (sizes, counts): where a sample begins in a row of samples of these sizes, as often
    as its count says. All pairs are one copy to the device.
    """
    starts = [
        torch.repeat_interleave(torch.tensor([0, *accumulate(sizes)][:-1]), torch.tensor(counts))
        for sizes, counts in pairs
    ]
    return on_device(torch.cat(starts), device).split([len(each) for each in starts])


def _reduced(
    prompt: Prompt,
    selection: Selection,
    fields: Sequence[Tensor],
    num_dense: int,
    numbers: Tensor | None,
) -> Prompt:
    """The prompt of its rows that stay, with these `fields`.

    numbers: 0, 1, 2, ... where positions close the gaps.
    """
    rows, positions, visual, alive, instruction = fields
    embeds = prompt.embeds[rows]
    if selection.embeds is not None:
        embeds[visual] = selection.embeds.to(embeds.dtype)
    reduced = replace(
        prompt,
        embeds=embeds,
        positions=positions,
        visual=visual,
        alive=alive,
        instruction=instruction,
        deepstack=None if prompt.deepstack is None else prompt.deepstack[:, selection.kept],
    )
    if selection.extra is not None and len(selection.extra):
        reduced = reduced._with_extra(selection.extra, num_dense)
    if numbers is None:
        return reduced
    if len(reduced) > len(numbers):  # of its extra tokens
        numbers = torch.arange(len(reduced), device=embeds.device)
    return replace(reduced, positions=numbers[: len(reduced)])
