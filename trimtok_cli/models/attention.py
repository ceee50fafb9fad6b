"""Attention recomputed from what entered a module, for the rows that a method asks for: the model
stays on its fast kernels.

The module's own code works out queries and keys, with whatever norms and rotary positions it has;
only where it would attend, they are noted, with what else it would attend by. Knows no family and
no method.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AttentionInterface

_NAME = "trimtok_note"


@dataclass(frozen=True)
class Call:
    """What a module gives its attention function: query and key (B, H, S, d), rotated.

    window: how many rows a row looks back over, itself counted, None for all. softcap: scores s
    become c tanh(s / c). sinks (H,): for each query head the score of a place beyond the rows,
    which takes its share of the softmax.
    """

    query: Tensor
    key: Tensor
    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


def _note(
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
    module.noted.append(Call(query, key, scaling, sliding_window, softcap, s_aux))
    return query.transpose(1, 2), None


def attention_calls(attention, *args, **kwargs) -> list[Call]:
    """How an attention module of the library would attend if it were called so.

    One entry for every call of its attention function: towers with images of any size attend image
    by image.
    """
    AttentionInterface.register(_NAME, _note)
    probe = copy.copy(attention)  # shares the weights; only its configuration is its own
    probe.config = copy.copy(attention.config)
    probe.config._attn_implementation = _NAME
    probe.noted = []
    probe.forward(
        *args, **kwargs
    )  # not a call: hooks of the module's own runs are no business of this one
    return probe.noted


def queries_and_keys(attention, *args, **kwargs) -> list[tuple[Tensor, Tensor, float]]:
    """The queries, keys and scales of `attention_calls`."""
    return [
        (call.query, call.key, call.scaling) for call in attention_calls(attention, *args, **kwargs)
    ]


def window_of(layer, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> int | None:
    """How many rows a row of decoder `layer` looks back over, itself counted; None for all. hidden
    (1, S, D) would enter it.
    """
    first = tuple(each[..., :1, :] for each in position_embeddings)
    (call,) = attention_calls(
        layer.self_attn, hidden[:, :1], position_embeddings=first, attention_mask=None
    )
    return call.window


def seen(
    rows: Tensor, length: int, window: int | None = None, blocks: Tensor | None = None
) -> Tensor:
    """Which rows each of `rows` (R,) sees in a sequence of `length` -> (R, length) bool. The one
    definition of it.

    A row sees itself, those before it, and those of its own block, as far as its window reaches
    back. Windows count the rows that are there, whatever positions they carry: so the model counts
    in a prompt that never had the others. blocks (length,): the number of a row's block, -1 for
    none; None where no family's block sees itself in both directions.
    """
    places = torch.arange(length, device=rows.device)
    found = places <= rows[:, None]
    if blocks is not None:
        own = blocks[rows][:, None]
        found |= (own == blocks) & (own >= 0)
    if window is not None:
        found &= places > rows[:, None] - window
    return found


def attention_rows(
    layer,
    hidden: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    rows: Tensor,
    blocks: Tensor | None = None,
) -> Tensor:
    """hidden (S, D) that enters decoder `layer`, rows (R,) places in it -> (H, R, S) probabilities,
    float32.

    Equals `output_attentions` of an eager forward pass without padding: windows, soft caps and
    sinks are the module's own, blocks are those of `seen`.
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
    """(B, H, S, d) twice -> (B, S) float32: attention each place gets, mean over heads.

    From the first place alone (a tower's CLS token), or as the mean over all places, one of the
    batch at a time.
    """
    if from_first:
        return (query[:, :, :1].float() @ key.float().mT * scaling).softmax(-1).mean(1)[:, 0]
    return torch.stack(
        [
            (q.float() @ k.float().mT * scaling).softmax(-1).mean((0, 1))
            for q, k in zip(query, key, strict=True)
        ]
    )
