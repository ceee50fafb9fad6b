"""Decode steps over caches whose length changes between two decoder layers.

Knows how a decoder layer is called, as decoder_stages.py does; no pruner, and no family by name.
"""

import inspect
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from trimtok_cli.pruners.base import Pruner

Embeddings = tuple[Tensor, Tensor]


def stage_layers(pruner: Pruner, num_layers: int, deepstack_layers: int) -> list[int]:
    """The layers in front of which a pruner reduces inside the decoder, ascending.

    Deepstack features are added to all visual rows behind the first layers, so every stage comes
    after these layers.
    """
    first = max(deepstack_layers, 1)
    return sorted({max(layer, first) for layer in pruner.stages(num_layers) if layer > 0})


class Rotary:
    """The rotary embeddings of a decoder, which may have one for each type of layer."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.by_kind = "layer_type" in inspect.signature(decoder.rotary_emb.forward).parameters

    def kind(self, layer: Any) -> tuple[str, ...]:
        """The type of a layer, where embeddings differ between types."""
        types = self.decoder.config.layer_types if self.by_kind else None
        return (types[layer.self_attn.layer_idx],) if types else ()

    def __call__(self, layer: Any, hidden: Tensor, positions: Tensor) -> Embeddings:
        return self.decoder.rotary_emb(hidden, positions, *self.kind(layer))


@contextmanager
def behind_stages(
    rotary: Rotary,
    groups: Sequence[int],
    masks: Sequence[Tensor | dict[str, Tensor]],
    positions: Sequence[Tensor],
) -> Iterator[None]:
    """A block in which a pass is a decode step whose groups of layers have caches of their own.

    groups: the first layer of each; the pass itself is that of the first group. masks: one for each
    group, or none, where each new token sees the whole cache. positions: those of the new tokens
    (B, 1) in each group behind the first, or none, where they are the pass's own.
    """
    decoder, known = rotary.decoder, {}

    def hook(number: int) -> Callable[..., Any]:
        group = bisect(groups, number) - 1

        def before_layer(layer: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
            mask = masks[group] if masks else None
            if isinstance(mask, dict):
                mask = mask[decoder.config.layer_types[number]]
            kwargs = kwargs | {"attention_mask": mask}
            if positions:
                key = (group, *rotary.kind(layer))
                if key not in known:
                    known[key] = rotary(layer, args[0], positions[group - 1])
                kwargs["position_embeddings"] = known[key]
            return args, kwargs

        return before_layer

    hooks = [
        layer.register_forward_pre_hook(hook(number), with_kwargs=True)
        for number, layer in enumerate(decoder.layers)
        if len(groups) > 1 and number >= groups[1]
    ]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()
