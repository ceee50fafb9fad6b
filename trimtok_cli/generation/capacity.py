"""The number of answers that fit in a device's memory beside the model. Knows no method."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trimtok_cli.device import free_bytes, passing_bytes
from trimtok_cli.generation.kv_slots import in_grains
from trimtok_cli.generation.recorded_prefills import MOST_TOKENS
from trimtok_cli.generation.rules import Rules
from trimtok_cli.generation.slot_attention import heads_and_width
from trimtok_cli.generation.types import LanguageModel

# Answers at once on each type of device. On CUDA memory decides: short prompts leave room for many.
MOST_AT_ONCE = {"cuda": 512, "mps": 16, "cpu": 8}
# Samples that are prepared ahead for a batch whose size memory decides: they lie in the host's
# memory.
MOST_AHEAD = 64
# Tokens of one prefill, padding counted: enough to fill a GPU, with small activations. Fewer keep a
# CPU busy, and their activations need no fresh memory from the system in each layer.
PREFILL_TOKENS = {"cuda": 16_384, "mps": 16_384, "cpu": 2_048}
SHARE = 0.85  # share of the free memory that is used; the rest is left to the allocator
SURPLUS = 2  # places behind an answer's last token that its slot has
RECORDINGS = 4  # recorded steps whose logits are in memory at once, about


@dataclass(frozen=True)
class Room:
    """free: the bytes that the cache and all work beside it may take.

    passing: the bytes that one sample took for a while before it was a prompt, in the vision tower
    and the pruner.
    """

    free: int
    passing: int = 0

    @classmethod
    def of(cls, device: torch.device) -> "Room":
        """The room that there is now; the sample is the one encoded last."""
        return cls(free_bytes(device), passing_bytes(device))


def batch_limit_for(
    model: LanguageModel,
    rules: Rules,
    longest: int,
    room: Room | None = None,
    held: Sequence[int] = (),
    most: int | None = None,
) -> int:
    """The number of answers that run at once if no prompt is longer than `longest`.

    held: the most rows of a prompt in each layer, where layers do not hold whole prompts. most: a
    limit of the user's; by default that of the device.
    """
    new_tokens = likely_length(model.num_positions, rules, longest)
    fit = answers_that_fit(
        model.config,
        model.dtype,
        model.device,
        length=longest + new_tokens,
        in_layers=[rows + new_tokens for rows in held],
        room=room,
    )
    return min(fit, MOST_AT_ONCE.get(model.device.type, 8) if most is None else most)


def prefill_tokens_on(device: torch.device) -> int:
    """The most tokens of a prefill of several prompts on a device, padding counted."""
    return PREFILL_TOKENS.get(device.type, 2_048)


def most_ahead(device: torch.device) -> int:
    """The samples that are prepared ahead for a batch whose size memory decides."""
    return min(MOST_AT_ONCE.get(device.type, 8), MOST_AHEAD)


def likely_length(positions: int | None, rules: Rules, length: int) -> int:
    """The new tokens that memory is counted for behind a prompt of `length` tokens.

    They are at most as many as the model has positions for, None where that is unknown.
    """
    return rules.most if positions is None else min(rules.most, max(positions - length, 1))


def places_of(length: int) -> int:
    """The places of a slot for an answer of `length` tokens, its prompt counted."""
    return in_grains(length + SURPLUS)


def slot_bytes(config: Any, dtype: torch.dtype, lengths: Sequence[int]) -> int:
    """Bytes of a slot for an answer that has so many tokens in each layer."""
    places = sum(map(places_of, lengths))
    return places * cache_bytes(config, dtype) // config.num_hidden_layers


def cache_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of keys and values that one token takes in a decoder of this config."""
    heads, width = heads_and_width(config)
    return 2 * config.num_hidden_layers * heads * width * dtype.itemsize


def answers_that_fit(
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    *,
    length: int,
    in_layers: Sequence[int] = (),
    prefill_tokens: int | None = None,
    room: Room | None = None,
) -> int:
    """The number of answers of `length` tokens that can be under way at once; at least 1.

    An answer needs its slot, which is rounded up and has places for steps behind its end; one layer
    more while the cache grows, which it does layer by layer; its prompt while it waits; the logits
    of recorded steps and their copies in float32. A quarter of the answers may be taken in at once,
    each through the vision tower. A prefill of `prefill_tokens` (None: as many as the device takes,
    or one long prompt) needs a layer's activations: about three times the MLP's width and eight
    times the model's. Recorded prefills keep as much for themselves, on CUDA. in_layers: the tokens
    of an answer in each layer, where that is not `length`.
    """
    room = room or Room.of(device)
    lengths = in_layers or [length] * config.num_hidden_layers
    slot = slot_bytes(config, dtype, [*lengths, max(lengths)])
    logits = (getattr(config, "vocab_size", None) or 0) * (RECORDINGS * dtype.itemsize + 2 * 4)
    waiting = length * config.hidden_size * dtype.itemsize + room.passing // 4
    width = 3 * config.intermediate_size + 8 * config.hidden_size
    recorded = MOST_TOKENS if device.type == "cuda" else 0
    tokens = prefill_tokens or max(prefill_tokens_on(device), length)
    prefill = (tokens + recorded) * width * dtype.itemsize
    return max(1, int((SHARE * room.free - prefill) / (slot + logits + waiting)))
