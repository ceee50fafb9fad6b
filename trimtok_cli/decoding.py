"""The token loop: a batch of prompts of unequal length, prefill, then one token at a time. Knows no pruner and no image.

Prompts are left-padded with an explicit mask and explicit positions, so that a batch gives what its singles give. It is the
oracle of continuous.py, and what methods run under that prune inside the model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from trimtok_cli.memory import in_halves, rows_for
from trimtok_cli.models.base import Adapter
from trimtok_cli.timing import Clock
from trimtok_cli.tokens import Prompt


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; else softmax at that temperature among the fewest tokens that hold `top_p` of it.

    Every sample draws from a generator of its own, so that its answer does not depend on its batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Generated:
    """ids without the end token; steps counts it. finish: stop or length. logits (steps, V) only where asked for."""

    ids: tuple[int, ...]
    steps: int
    finish: str
    logits: Tensor | None = None


@dataclass(frozen=True)
class Times:
    prefill: float
    decode: float


@dataclass(frozen=True)
class Done:
    """One answer, or the error that a prompt ends in even alone. beside: the most answers that ran with it, itself counted."""

    key: Any
    said: Generated | None
    times: Times
    beside: int
    error: Exception | None = None


Take = Callable[[int], Sequence[tuple[Any, Prompt | Exception]]]
"""take(count) hands over up to `count` prompts, each with a key to know it by, or what became of one instead; none at the end."""


def apart(taken: Sequence[tuple[Any, Prompt | Exception]]) -> tuple[list[tuple[Any, Prompt]], list[Done]]:
    """The prompts, and those that are lost already."""
    lost = [Done(key, None, Times(0.0, 0.0), 1, found) for key, found in taken if isinstance(found, Exception)]
    return [(key, found) for key, found in taken if not isinstance(found, Exception)], lost


@torch.inference_mode()
def generate(
    adapter: Adapter, prompts: Sequence[Prompt], *, max_new_tokens: int, sampling: Sampling | None = None,
    stop: bool = True, keep_logits: bool = False,
) -> tuple[list[Generated], Times]:  # fmt: skip
    """Answers for a batch of prompts. `stop` False ignores the end token: a fixed number of steps, for measuring."""
    clock = Clock(adapter.device)
    embeds, mask, positions = pad_left(prompts)
    cache = DynamicCache(config=adapter.model.get_decoder().config)
    ends = torch.tensor(adapter.end_ids if stop else (), device=adapter.device)
    sampling = sampling or Sampling()
    dice = [torch.Generator(adapter.device).manual_seed(sampling.seed) for _ in prompts] if sampling.temperature else []
    logits = adapter.forward(embeds, mask, positions, cache, prompts)
    chosen, kept_logits = [choose(logits, sampling, dice)], [logits] if keep_logits else []
    finished = torch.isin(chosen[-1], ends)
    prefill = clock.mark()
    for _ in range(max_new_tokens - 1):
        if bool(finished.all()):
            break
        positions = positions[..., -1:] + 1
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        logits = adapter.forward(adapter.embed_ids(chosen[-1][:, None]), mask, positions, cache)
        chosen.append(choose(logits, sampling, dice))
        finished |= torch.isin(chosen[-1], ends)
        if keep_logits:
            kept_logits.append(logits)
    all_logits = torch.stack(kept_logits, 1) if keep_logits else None
    rows = torch.stack(chosen, 1).tolist()
    answers = [_cut(row, set(ends.tolist()), None if all_logits is None else all_logits[i]) for i, row in enumerate(rows)]
    return answers, Times(prefill, clock.mark())


class Batches:
    """The plain loop over a stream: batches of `rows`, each to its last answer before the next one begins.

    None takes as many as memory allows.
    """

    def __init__(self, adapter: Adapter, *, rows: int | None, max_new_tokens: int, sampling: Sampling | None = None) -> None:
        self.adapter, self.rows, self.options = adapter, rows, {"max_new_tokens": max_new_tokens, "sampling": sampling}

    def run(self, take: Take) -> Iterator[Done]:
        """As `Continuous.run`. A batch that breaks is run again in halves."""
        while taken := take(self.rows or 1):  # the first prompt shows what one takes
            group, lost = apart(taken)
            yield from lost
            if group and self.rows is None:
                self.rows = rows_for(self.adapter, len(group[0][1]), self.options["max_new_tokens"])
            for (key, _), made in in_halves(self._answer, group, self.adapter.device):
                if isinstance(made, Exception):
                    yield Done(key, None, Times(0.0, 0.0), 1, made)
                else:
                    yield made

    def _answer(self, group: list[tuple[Any, Prompt]]) -> list[Done]:
        size = len(group)
        answers, times = generate(self.adapter, [prompt for _, prompt in group], **self.options)
        share = Times(times.prefill / size, times.decode / size)
        return [Done(key, said, share, size) for (key, _), said in zip(group, answers, strict=True)]


def pad_left(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor | None, Tensor]:
    """embeds (B, S, D), mask (B, S) of ones and zeros, or None where nothing is padded, positions (B, S) or (3, B, S)."""
    longest = max(len(prompt) for prompt in prompts)
    first = prompts[0]
    embeds = first.embeds.new_zeros(len(prompts), longest, first.embeds.shape[-1])
    positions = first.positions.new_zeros(*first.positions.shape[:-1], len(prompts), longest)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=embeds.device)
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt)
        embeds[row, start:] = prompt.embeds
        positions[..., row, start:] = prompt.positions
        mask[row, start:] = 1
    # Without padding there is no mask: attention kernels are faster, and the library builds the causal one itself.
    return embeds, None if all(len(prompt) == longest for prompt in prompts) else mask, positions


def choose(logits: Tensor, sampling: Sampling, dice: Sequence[torch.Generator | None]) -> Tensor:
    """(B, V) -> (B,) token ids."""
    if not sampling.temperature:
        return logits.argmax(-1)
    shares, ids = (logits.float() / sampling.temperature).softmax(-1).sort(-1, descending=True)
    shares[shares.cumsum(-1) - shares > sampling.top_p] = 0
    # As torch.multinomial draws one, which checks its shares on the host and so waits for the device.
    times = torch.stack([torch.empty_like(row).exponential_(generator=die) for row, die in zip(shares, dice, strict=True)])
    return ids.gather(-1, (shares / times).argmax(-1, keepdim=True)).squeeze(-1)


def _cut(row: list[int], ends: set[int], logits: Tensor | None) -> Generated:
    """Up to the first end token; what a finished row went on to say beside its batch does not count."""
    end = next((i for i, token in enumerate(row) if token in ends), None)
    steps = len(row) if end is None else end + 1
    return Generated(
        tuple(row if end is None else row[:end]),
        steps,
        "length" if end is None else "stop",
        None if logits is None else logits[:steps],
    )
