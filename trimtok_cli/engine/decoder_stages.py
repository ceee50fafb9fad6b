"""Stages inside the decoder: a pruner reduces the visual rows between two decoder layers.

This is the only file that knows how a decoder layer is called. Knows no method and no family by
name. Hooks live for one answer and are removed whatever happens; nothing of the model is patched.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trimtok_cli.data import Kept
from trimtok_cli.device import Clock
from trimtok_cli.models.attention import attention_rows, seen, window_of
from trimtok_cli.pruners.base import Pruner, Stage
from trimtok_cli.tokens import Prompt, VisualTokens

Arguments = dict[str, Any]  # a decoder layer's arguments, by name
Replaced = tuple[tuple[Tensor], Arguments]  # the arguments that a hook gives a layer instead


class RunningStages:
    """Reduces one prompt inside the decoder. A context manager around the prompt's generation.

    The visual rows that a stage drops leave the hidden states between two layers of the prefill.
    The layers behind the stage see shorter sequences and have shorter caches; in decoding their
    masks and positions are their own. There is one prompt and no padding: the samples of a batch
    would each need caches of their own lengths. Afterwards `kept` holds the visual tokens that each
    stage left, and `seconds` the time of the pruner's choices.
    """

    def __init__(
        self, decoder: Any, pruner: Pruner, prompt: Prompt, tokens: VisualTokens, *, renumber: bool
    ) -> None:
        self.decoder, self.pruner, self.tokens = decoder, pruner, tokens
        self.renumber = renumber and pruner.renumbers
        first = len(prompt.deepstack) if prompt.deepstack is not None else 1
        wanted = sorted(layer for layer in set(pruner.stages(len(decoder.layers))) if layer > 0)
        # Deepstack features are added to all visual rows behind the first layers, so every stage
        # comes after these layers.
        self.layers = sorted({max(layer, first) for layer in wanted})
        self.prompt, self.start = prompt, prompt
        self.kept: list[Kept] = [Kept(0, tuple(prompt.alive.tolist()))]
        self.seconds, self.steps = 0.0, -1
        self.lengths: dict[int, int] = {}  # rows in the prefill of each layer behind a stage
        self.before: Tensor | None = None
        # Each layer has two masks: the model's own for the whole prompt, and one for the rows that
        # are left.
        self.masks: dict[int, Tensor | None] = {}
        self.shorter: dict[tuple[int, int], Tensor] = {}
        self.kinded = "layer_type" in inspect.signature(decoder.rotary_emb.forward).parameters
        self.known: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    @property
    def plain(self) -> Prompt:
        """The prompt for the decoder, without deepstack features, which `_prefill` adds."""
        return replace(self.start, deepstack=None)

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
        deep = self.prompt.deepstack
        self.masks[number] = kwargs.get("attention_mask")
        if deep is not None and 0 < number <= len(deep):
            hidden = hidden.clone()
            hidden[0, self.prompt.visual] += deep[number - 1].to(hidden.dtype)
        if number in self.layers and len(self.prompt.visual):
            hidden = self._reduce(number, layer, hidden)
        if len(self.kept) > 1:
            kwargs = self._shortened(number, layer, hidden, kwargs)
            self.lengths[number] = len(hidden[0])
        self.before = hidden
        return (hidden,), kwargs

    def _reduce(self, number: int, layer: Any, hidden: Tensor) -> Tensor:
        clock, last = Clock(hidden.device), self.before
        shape, name = self.prompt, len(self.kept)
        spots = self._embeddings(layer, hidden, shape.positions, name)

        def attention(rows: Tensor, of: int) -> Tensor:
            if of == number:
                return attention_rows(layer, hidden[0], spots, rows, self._blocks(of))
            if of == number - 1 and last is not None:
                ran = self.decoder.layers[of]
                return attention_rows(
                    ran,
                    last[0],
                    self._embeddings(ran, last, shape.positions, name),
                    rows,
                    self._blocks(of),
                )
            raise LookupError(
                f"in front of layer {number} there is attention of layers {number - 1} and "
                f"{number}, not of {of}"
            )

        selection = self.pruner.select(
            Stage(number, hidden[0], shape, self.tokens, attention, len(self.decoder.layers))
        )
        moved = replace(shape, embeds=hidden[0]).reduced(
            selection, num_dense=len(self.tokens), renumber=self.renumber
        )
        words = shape.reduced(
            replace(selection, embeds=None), num_dense=len(self.tokens), renumber=self.renumber
        )
        self.prompt = replace(moved, embeds=words.embeds)
        self.kept.append(Kept(number, tuple(self.prompt.alive.tolist())))
        self.seconds += clock.mark()
        return moved.embeds[None]

    def _shortened(self, number: int, layer: Any, hidden: Tensor, kwargs: Arguments) -> Arguments:
        """The layer's arguments for the rows that are left."""
        positions = self.prompt.positions
        kwargs = kwargs | {
            "position_embeddings": self._embeddings(layer, hidden, positions, len(self.kept))
        }
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = positions[None] if positions.dim() == 1 else positions[:, None]
        kwargs["attention_mask"] = self._mask(number, layer, hidden, kwargs["position_embeddings"])
        return kwargs

    def _mask(
        self, number: int, layer: Any, hidden: Tensor, embeddings: tuple[Tensor, Tensor]
    ) -> Tensor | None:
        """The mask (1, 1, S, S) of the rows that are left, in the form of the model's own.

        Layers that share the model's mask share this one. A mask of None, which leaves masking to
        the kernel, stays None: the rows left are still causal, and a window is still wide enough.
        """
        given, length = self.masks[number], hidden.shape[1]
        if given is None and (
            length <= len(self.start) or self.decoder.config._attn_implementation != "sdpa"
        ):
            return None
        key = (number if given is None else id(given), len(self.kept))
        if key not in self.shorter:
            rows = torch.arange(length, device=hidden.device)
            found = seen(rows, length, window_of(layer, hidden, embeddings), self._blocks(number))[
                None, None
            ]
            if given is not None and given.dtype != torch.bool:
                found = torch.where(found, 0.0, torch.finfo(given.dtype).min).to(given.dtype)
            self.shorter[key] = found
        return self.shorter[key]

    def _blocks(self, number: int) -> Tensor | None:
        """Block numbers (S,) for `seen`, or None where the model's mask is causal throughout.

        Each run of visual rows is a block if the mask lets rows see later rows.
        """
        given = self.masks[number]
        if given is None or not bool(
            ((given if given.dtype == torch.bool else given == 0)[0, 0].triu(1)).any()
        ):
            return None
        blocks = torch.full((len(self.prompt),), -1, device=given.device)
        visual = self.prompt.visual
        # The difference is equal along a run, and only there.
        blocks[visual] = visual - torch.arange(len(visual), device=visual.device)
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
            kwargs["position_embeddings"] = self._embeddings(layer, hidden, position, position)
        return (hidden,), kwargs

    def _embeddings(
        self, layer: Any, hidden: Tensor, positions: Tensor | int, name: int
    ) -> tuple[Tensor, Tensor]:
        """Rotary embeddings of `positions`. The layers of one step share them by `name`."""
        more = (self.decoder.config.layer_types[layer.self_attn.layer_idx],) if self.kinded else ()
        key = (self.steps, name, *more)
        if key not in self.known:
            if self.known and next(iter(self.known))[0] != self.steps:
                self.known.clear()
            if isinstance(positions, int):
                positions = torch.tensor([positions], device=hidden.device)
            ids = positions[None] if positions.dim() == 1 else positions[:, None]
            self.known[key] = self.decoder.rotary_emb(hidden, ids, *more)
        return self.known[key]
