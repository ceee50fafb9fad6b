"""Visual tokens as the model's own code makes them: its forward pass, stopped in front of the language model.

Tower, projector, tiling, newlines, pooling and deepstack stay the library's, whatever its version. Knows no family.
"""

import torch
from torch import Tensor


class _Captured(Exception):
    """Ends a forward pass whose first half was all that was wanted."""


def capture(model, ids: Tensor, media: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """ids (N,), placeholders only -> what belongs in their rows, (N, D), and a deepstack family's layers (L, N, D) or None.

    The prompt is one row of nothing but placeholders, which needs no padding; it is given positions, as those that the
    model would work out for it mean nothing.
    """
    caught: dict = {}

    def stop(module, args, kwargs):
        caught.update(kwargs)
        raise _Captured

    hook = model.get_decoder().register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model.model(input_ids=ids[None], position_ids=torch.zeros_like(ids)[None], use_cache=False, **media)
    except _Captured:
        pass
    finally:
        hook.remove()
    layers = caught.get("deepstack_visual_embeds")
    return caught["inputs_embeds"][0], torch.stack(list(layers)) if layers else None
