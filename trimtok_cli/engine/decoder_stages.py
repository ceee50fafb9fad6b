"""Stages inside the decoder: a pruner reduces the visual rows between two decoder layers.

This file and decoder_steps.py are the only ones that know how a decoder layer is called. Knows no
method and no family by name. Hooks live for one batch and are removed whatever happens; nothing of
the model is patched.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trimtok_cli.data import Kept
from trimtok_cli.device import Clock
from trimtok_cli.engine.decoder_steps import Rotary, stage_layers
from trimtok_cli.models.attention import attention_rows, seen, window_of
from trimtok_cli.pruners.base import Pruner, Stage
from trimtok_cli.tokens import Prompt, VisualTokens

Arguments = dict[str, Any]  # a decoder layer's arguments, by name
Replaced = tuple[tuple[Tensor], Arguments]  # the arguments that a hook gives a layer instead


class Ragged(Exception):
    """The prompts of a batch have unequal lengths behind a stage, so they cannot go on together."""


class RunningStages:
    """Reduces a batch of prompts inside the decoder. A context manager around their generation.

    The visual rows that a stage drops leave the hidden states between two layers of the prefill.
    The layers behind the stage see shorter sequences and have shorter caches; in decoding their
    masks and positions are their own. There is no padding: all prompts have one length and one
    number of visual tokens, and a stage leaves them so or raises Ragged. Afterwards `kept` holds,
    for each prompt, the visual tokens that each stage left, and `seconds` the time of the pruner's
    choices for all.
    """

    def __init__(
        self,
        decoder: Any,
        pruner: Pruner,
        prompts: Sequence[Prompt],
        tokens: Sequence[VisualTokens],
        *,
        renumber: bool,
    ) -> None:
        self.decoder, self.pruner, self.tokens = decoder, pruner, list(tokens)
        self.renumber = renumber and pruner.renumbers
        deepstack = prompts[0].deepstack
        first = len(deepstack) if deepstack is not None else 0
        self.layers = stage_layers(pruner, len(decoder.layers), first)
        self.prompts, self.starts = list(prompts), list(prompts)
        self._check_lengths()
        self.kept = [[Kept(0, tuple(prompt.alive.tolist()))] for prompt in prompts]
        self.seconds, self.steps, self.done = 0.0, -1, 0
        self.lengths: dict[int, int] = {}  # rows in the prefill of each layer behind a stage
        self.before: Tensor | None = None
        # Each layer has two masks: the model's own for the whole prompts, and one for the rows that
        # are left.
        self.masks: dict[int, Tensor | None] = {}
        self.shorter: dict[tuple[int, int], Tensor] = {}
        self.rotary = Rotary(decoder)
        self.known: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    @property
    def plain(self) -> list[Prompt]:
        """The prompts for the decoder, without deepstack features, which `_prefill` adds."""
        return [replace(prompt, deepstack=None) for prompt in self.starts]

    def __enter__(self) -> "RunningStages":
        hooked = self.decoder.layers if self.layers else []
        self.hooks = [
            layer.register_forward_pre_hook(self._hook(number), with_kwargs=True)
            for number, layer in enumerate(hooked)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _check_lengths(self) -> None:
        if len({(len(prompt), len(prompt.visual)) for prompt in self.prompts}) > 1:
            raise Ragged

    def _hook(self, number: int) -> Callable[..., Replaced | None]:
        def before_layer(
            layer: Any, args: tuple[Tensor, ...], kwargs: Arguments
        ) -> Replaced | None:
            hidden = args[0]
            if number == 0:
                self.steps += 1
            if self.steps:
                self.masks.clear()
                return self._decode(number, layer, hidden, kwargs)
            return self._prefill(number, layer, hidden, kwargs)

        return before_layer

    def _prefill(self, number: int, layer: Any, hidden: Tensor, kwargs: Arguments) -> Replaced:
        # No row leaves before the last deepstack feature was added.
        self.masks[number] = kwargs.get("attention_mask")
        hidden = self._with_deepstack(number, hidden)
        if number in self.layers and len(self.prompts[0].visual):
            hidden = self._reduce(number, layer, hidden)
        if self.done:
            kwargs = self._shortened(number, layer, hidden, kwargs)
            self.lengths[number] = hidden.shape[1]
        self.before = hidden
        return (hidden,), kwargs

    def _with_deepstack(self, number: int, hidden: Tensor) -> Tensor:
        deep = self.prompts[0].deepstack
        if deep is None or not 0 < number <= len(deep):
            return hidden
        hidden = hidden.clone()
        for rows, prompt in zip(hidden, self.prompts, strict=True):
            if prompt.deepstack is not None:
                rows[prompt.visual] += prompt.deepstack[number - 1].to(hidden.dtype)
        return hidden

    def _reduce(self, number: int, layer: Any, hidden: Tensor) -> Tensor:
        clock = Clock(hidden.device)
        states = list(zip(hidden, self.prompts, self.tokens, strict=True))
        selections = self.pruner.select_many(
            [
                Stage(
                    number,
                    rows,
                    prompt,
                    tokens,
                    self._attention(number, layer, hidden, row),
                    len(self.decoder.layers),
                )
                for row, (rows, prompt, tokens) in enumerate(states)
            ]
        )
        moved = []
        reduced = []
        for (rows, prompt, tokens), selection in zip(states, selections, strict=True):
            moved.append(
                replace(prompt, embeds=rows).reduced(
                    selection, num_dense=len(tokens), renumber=self.renumber
                )
            )
            words = prompt.reduced(
                replace(selection, embeds=None), num_dense=len(tokens), renumber=self.renumber
            )
            reduced.append(replace(moved[-1], embeds=words.embeds))
        self.prompts = reduced
        self._check_lengths()
        self.done += 1
        for kept, prompt in zip(self.kept, reduced, strict=True):
            kept.append(Kept(number, tuple(prompt.alive.tolist())))
        self.seconds += clock.mark()
        return torch.stack([prompt.embeds for prompt in moved])

    def _attention(
        self, number: int, layer: Any, hidden: Tensor, row: int
    ) -> Callable[[Tensor, int], Tensor]:
        """The attention that a stage in front of layer `number` may ask for, of one prompt."""
        last, positions, done = self.before, self._positions(), self.done
        inputs = {number: (layer, hidden)}
        if last is not None:
            inputs[number - 1] = (self.decoder.layers[number - 1], last)

        def attention(rows: Tensor, of: int) -> Tensor:
            if of not in inputs:
                raise LookupError(
                    f"in front of layer {number} there is attention of layers {number - 1} and "
                    f"{number}, not of {of}"
                )
            ran, states = inputs[of]
            cos, sin = self._embeddings(ran, states, positions, done)
            # The batch's axis stands in front of (S, d), behind M-RoPE's axis of three.
            own = (cos[..., row : row + 1, :, :], sin[..., row : row + 1, :, :])
            return attention_rows(ran, states[row], own, rows, self._blocks(of, row))

        return attention

    def _positions(self) -> Tensor:
        """(B, S) positions of the rows that are left; (3, B, S) under M-RoPE."""
        return torch.stack([prompt.positions for prompt in self.prompts], -2)

    def _shortened(self, number: int, layer: Any, hidden: Tensor, kwargs: Arguments) -> Arguments:
        """The layer's arguments for the rows that are left."""
        positions = self._positions()
        kwargs = kwargs | {
            "position_embeddings": self._embeddings(layer, hidden, positions, self.done)
        }
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = positions
        kwargs["attention_mask"] = self._mask(number, layer, hidden, kwargs["position_embeddings"])
        return kwargs

    def _mask(
        self, number: int, layer: Any, hidden: Tensor, embeddings: tuple[Tensor, Tensor]
    ) -> Tensor | None:
        """The mask (B, 1, S, S) of the rows that are left, in the form of the model's own.

        Layers that share the model's mask share this one. A mask of None, which leaves masking to
        the kernel, stays None: the rows left are still causal, and a window is still wide enough.
        """
        given, length = self.masks[number], hidden.shape[1]
        if given is None and (
            length <= len(self.starts[0]) or self.decoder.config._attn_implementation != "sdpa"
        ):
            return None
        key = (number if given is None else id(given), self.done)
        if key not in self.shorter:
            rows = torch.arange(length, device=hidden.device)
            cosine, sine = embeddings
            first = cosine[..., :1, :, :], sine[..., :1, :, :]
            window = window_of(layer, hidden[:1], first)
            found = torch.stack(
                [
                    seen(rows, length, window, self._blocks(number, row))
                    for row in range(len(hidden))
                ]
            )[:, None]
            if given is not None and given.dtype != torch.bool:
                found = torch.where(found, 0.0, torch.finfo(given.dtype).min).to(given.dtype)
            self.shorter[key] = found
        return self.shorter[key]

    def _blocks(self, number: int, row: int) -> Tensor | None:
        """Block numbers (S,) for `seen`, or None where the model's mask is causal throughout.

        Each run of a prompt's visual rows is a block if the mask lets rows see later rows.
        """
        given = self.masks[number]
        if given is None:
            return None
        own = given[min(row, len(given) - 1), 0]  # one mask may serve all prompts
        if not bool((own if own.dtype == torch.bool else own == 0).triu(1).any()):
            return None
        prompt = self.prompts[row]
        blocks = torch.full((len(prompt),), -1, device=given.device)
        # The difference is equal along a run, and only there.
        blocks[prompt.visual] = prompt.visual - torch.arange(
            len(prompt.visual), device=given.device
        )
        return blocks

    def _decode(
        self, number: int, layer: Any, hidden: Tensor, kwargs: Arguments
    ) -> Replaced | None:
        if number not in self.lengths:
            return None
        # A query that sees its layer's whole cache needs no mask, and the given mask has the length
        # of layer 0's cache.
        kwargs = kwargs | {"attention_mask": None}
        if self.renumber:
            position = self.lengths[number] + self.steps - 1
            ids = torch.full((len(hidden), 1), position, device=hidden.device)
            kwargs["position_embeddings"] = self._embeddings(layer, hidden, ids, position)
        return (hidden,), kwargs

    def _embeddings(
        self, layer: Any, hidden: Tensor, positions: Tensor, name: int
    ) -> tuple[Tensor, Tensor]:
        """Rotary embeddings of `positions`. The layers of one step share them by `name`."""
        key = (self.steps, name, *self.rotary.kind(layer))
        if key not in self.known:
            if self.known and next(iter(self.known))[0] != self.steps:
                self.known.clear()
            self.known[key] = self.rotary(layer, hidden, positions)
        return self.known[key]
