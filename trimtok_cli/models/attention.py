"""Attention probabilities of single rows, recomputed from the input of an attention module.

The model itself stays on its fast kernels. The module's own code computes queries and keys, with
its norms and rotary positions; in place of attending, it records them and its window, soft cap and
sinks. Knows no family and no method.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AttentionInterface

_RECORDING = "trimtok_note"


@dataclass(frozen=True)
class Call:
    """The arguments of one call of an attention function: query and key (B, H, S, d), rotated.

    window: rows that a row sees, itself and those before it; None for all.
    softcap c: scores s become c tanh(s / c).
    sinks (H,): score of a sink beside the rows, which takes its share of each head's softmax.
    """

    query: Tensor
    key: Tensor
    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


def _record(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    sliding_window=None,
    softcap=None,
    s_aux=None,
    **_,
):
    scaling = module.head_dim**-0.5 if scaling is None else scaling
    module.recorded.append(Call(query, key, scaling, sliding_window, softcap, s_aux))
    return query.transpose(1, 2), None


def attention_calls(attention, *args, **kwargs) -> list[Call]:
    """The calls of its attention function that a module would make for these arguments.

    Towers for images of any size make one call for each image; other modules make one in all.
    """
    AttentionInterface.register(_RECORDING, _record)
    probe = copy.copy(attention)  # shares the weights; only its configuration is its own
    probe.config = copy.copy(attention.config)
    probe.config._attn_implementation = _RECORDING
    probe.recorded = []
    # `forward` runs no hooks: those of the module are for the model's own runs.
    probe.forward(*args, **kwargs)
    return probe.recorded


def queries_and_keys(attention, *args, **kwargs) -> list[tuple[Tensor, Tensor, float]]:
    """The query, key and scaling of each of the `attention_calls`."""
    return [
        (call.query, call.key, call.scaling) for call in attention_calls(attention, *args, **kwargs)
    ]


def window_of(layer, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> int | None:
    """The rows that a row of a decoder layer sees, itself and those before it; None for all.

    hidden (1, S, D): any input of the layer.
    """
    first = tuple(embedding[..., :1, :] for embedding in position_embeddings)
    (call,) = attention_calls(
        layer.self_attn, hidden[:, :1], position_embeddings=first, attention_mask=None
    )
    return call.window


def seen(
    rows: Tensor, length: int, window: int | None = None, blocks: Tensor | None = None
) -> Tensor:
    """(R, length) bool: the rows of a sequence that each of `rows` (R,) sees. Its only definition.

    A row sees itself, the rows before it and the rows of its own block, as far back as the window
    reaches. The window counts the rows that are left after pruning, whatever their positions, as
    the model does in a prompt that never had the others.
    blocks (length,): number of each row's block, -1 for none. The rows of a block see each other in
    both directions (Gemma 3's images).
    """
    columns = torch.arange(length, device=rows.device)
    visible = columns <= rows[:, None]
    if blocks is not None:
        own = blocks[rows][:, None]
        visible |= (own == blocks) & (own >= 0)
    if window is not None:
        visible &= columns > rows[:, None] - window
    return visible


def attention_rows(
    layer,
    hidden: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    rows: Tensor,
    blocks: Tensor | None = None,
) -> Tensor:
    """(H, R, S) float32 attention probabilities of `rows` (R,) in a decoder layer.

    hidden (S, D): the layer's input. blocks: as in `seen`. Equals `output_attentions` of an eager
    forward pass without padding, with the module's own window, soft cap and sinks.
    """
    normed = layer.input_layernorm(hidden[None])
    (call,) = attention_calls(
        layer.self_attn, normed, position_embeddings=position_embeddings, attention_mask=None
    )
    key = call.key[0].repeat_interleave(call.query.shape[1] // call.key.shape[1], 0)
    scores = call.query[0, :, rows].float() @ key.float().mT * call.scaling
    if call.softcap is not None:
        scores = call.softcap * (scores / call.softcap).tanh()
    scores = scores.masked_fill(~seen(rows, len(hidden), call.window, blocks), -torch.inf)
    if call.sinks is None:
        return scores.softmax(-1)
    sinks = call.sinks.float()[:, None, None].expand(-1, len(rows), 1)
    return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]


def attention_received(query: Tensor, key: Tensor, scaling: float, *, from_first: bool) -> Tensor:
    """(B, S) float32: attention that each token receives, mean over heads.

    query, key (B, H, S, d). from_first: from the first token alone (a tower's CLS token); else the
    mean over all tokens, computed for one of the batch at a time to save memory.
    """
    if from_first:
        return (query[:, :, :1].float() @ key.float().mT * scaling).softmax(-1).mean(1)[:, 0]
    return torch.stack(
        [
            (q.float() @ k.float().mT * scaling).softmax(-1).mean((0, 1))
            for q, k in zip(query, key, strict=True)
        ]
    )
