"""Tower run: the model's own forward pass, stopped in front of the language model.

So tower, projector, tiling, newline tokens, pooling and deepstack are those of the installed
transformers. Another thread may call the language model meanwhile. Knows no family.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling


class _Reached(Exception):
    """Ends a forward pass whose first part alone is needed."""


def run_tower(model, ids: Tensor, media: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """The visual tokens (N, D) of `media`, and their deepstack layers (L, N, D) or None.

    ids (N,): placeholders alone, so the prompt is one row without padding. media: the tower's
    inputs. The positions are all 0 and there are no masks, as nothing reads either and the model
    would compute them in vain.
    """
    positions = torch.zeros_like(ids)[None]
    caught: list[dict] = []

    def stop(*_: object, **arguments) -> None:
        caught.append(arguments)
        raise _Reached

    with suppress(_Reached):
        _ending_with(stop, model)(
            input_ids=ids[None],
            attention_mask={},
            position_ids=positions,
            use_cache=False,
            **media,
        )
    arguments = caught[0]
    layers = arguments.get("deepstack_visual_embeds")
    return arguments["inputs_embeds"][0], torch.stack(list(layers)) if layers else None


def _ending_with(stop: Callable, model) -> torch.nn.Module:
    """The outer model with `stop` in place of the language model's forward pass.

    It is a copy that shares all weights and all other modules. A hook on the language model itself
    would also stop the answers that another thread decodes.
    """
    decoder = model.get_decoder()
    stopped, outer = copy.copy(decoder), copy.copy(model.model)
    stopped.forward = stop
    # A library that wraps `forward` has bound it to the original.
    vars(outer).pop("forward", None)
    outer._modules = {
        name: stopped if child is decoder else child for name, child in outer._modules.items()
    }
    return outer


def inputs_of(module: torch.nn.Module, run: Callable[[], object]) -> tuple[tuple, Mapping]:
    """The arguments of the first call of `module` within `run()`, which ends there."""
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
    """Within this context, `tower` ends behind the last of its `layers` whose output is read.

    read: numbers of the hidden states that are read, as the library counts them: 0 is the input of
    the first layer, n the output of layer n. The tower returns those states alone; later layers and
    normalizations do not run. Afterwards the tower is as before, also after an error.
    """
    states: dict[int, Tensor] = {}
    original = tower.forward
    instance_forward = tower.__dict__.get("forward")

    def keep(number: int, state: Tensor | tuple[Tensor, ...]) -> None:
        states[number] = state[0] if isinstance(state, tuple) else state
        if number == max(read):
            raise _Reached

    def forward(*args, **kwargs) -> BaseModelOutputWithPooling:
        states.clear()
        with suppress(_Reached):
            original(*args, **kwargs | {"output_hidden_states": False})
        return BaseModelOutputWithPooling(
            hidden_states=tuple(states.get(number) for number in range(len(layers) + 1))
        )

    hooks = [
        layers[number - 1].register_forward_hook(
            lambda _, args, output, number=number: keep(number, output)
        )
        if number
        else layers[0].register_forward_pre_hook(lambda _, args: keep(0, args))
        for number in read
    ]
    tower.forward = forward
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        del tower.forward
        if instance_forward is not None:
            tower.forward = instance_forward
