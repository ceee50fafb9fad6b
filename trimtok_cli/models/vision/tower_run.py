"""Visual tokens as the model's own code makes them: its forward pass, stopped in front of the
language model.

Tower, projector, tiling, newlines, pooling and deepstack stay the library's, whatever its version.
Knows no family.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling


class _Reached(Exception):
    """Ends a forward pass whose first part was all that was wanted."""


def run_tower(model, ids: Tensor, media: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """ids (N,), placeholders only -> what belongs in their rows, (N, D), and a deepstack family's
    layers (L, N, D) or None.

    The prompt is one row of nothing but placeholders, which needs no padding; it is given
    positions, as those that the model would work out for it mean nothing.
    """
    positions = torch.zeros_like(ids)[None]
    run = partial(
        model.model, input_ids=ids[None], position_ids=positions, use_cache=False, **media
    )
    _, caught = inputs_of(model.get_decoder(), run)
    layers = caught.get("deepstack_visual_embeds")
    return caught["inputs_embeds"][0], torch.stack(list(layers)) if layers else None


def inputs_of(module: torch.nn.Module, run: Callable[[], object]) -> tuple[tuple, Mapping]:
    """The arguments that `module` is first called with when run() runs, which ends there."""
    caught: list[tuple[tuple, Mapping]] = []

    def stop(_, args, kwargs):
        caught.append((args, kwargs))
        raise _Reached

    hook = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with suppress(_Reached):
            run()
    finally:
        hook.remove()
    return caught[0]


@contextmanager
def truncated(
    tower: torch.nn.Module, layers: Sequence[torch.nn.Module], read: Collection[int]
) -> Iterator[None]:
    """While it lasts, `tower` ends behind the last of its `layers` whose hidden state is read, and
    hands over no other.

    read: numbers of hidden states as the library counts them, 0 for what enters the first layer, n
    for what leaves layer n. Layers and normalizations behind are not run; afterwards the tower is
    as before, whatever happens.
    """
    states: dict[int, Tensor] = {}
    whole, own = tower.forward, tower.__dict__.get("forward")

    def note(number: int, value: Tensor | tuple[Tensor, ...]) -> None:
        states[number] = value[0] if isinstance(value, tuple) else value
        if number == max(read):
            raise _Reached

    def forward(*args, **kwargs) -> BaseModelOutputWithPooling:
        states.clear()
        with suppress(_Reached):
            whole(*args, **kwargs | {"output_hidden_states": False})
        return BaseModelOutputWithPooling(
            hidden_states=tuple(states.get(number) for number in range(len(layers) + 1))
        )

    hooks = [
        layers[number - 1].register_forward_hook(
            lambda _, args, output, number=number: note(number, output)
        )
        if number
        else layers[0].register_forward_pre_hook(lambda _, args: note(0, args))
        for number in read
    ]
    tower.forward = forward
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        del tower.forward
        if own is not None:
            tower.forward = own
