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

from trimtok_cli.choosing import Chooser
from trimtok_cli.memory import in_halves, rows_for
from trimtok_cli.models.base import Adapter
from trimtok_cli.rules import Answer, Rules
from trimtok_cli.sampling import Sampling
from trimtok_cli.timing import Clock
from trimtok_cli.tokens import Prompt


@dataclass(frozen=True)
class Generated:
    """ids without the end token; steps counts it. finish: stop, length or error. logits (steps, V) only where asked for."""

    ids: tuple[int, ...]
    steps: int
    finish: str
    logits: Tensor | None = None
    error: Exception | None = None


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


def apart(
    taken: Sequence[tuple[Any, Prompt | Exception]], rules: Rules | None = None
) -> tuple[list[tuple[Any, Prompt]], list[Done]]:
    """The prompts, and those that are lost already, or by `rules` leave no room for an answer."""
    prompts, lost = [], []
    for key, found in taken:
        try:
            if isinstance(found, Exception):
                raise found
            if rules is not None:
                rules.limit(found)
            prompts.append((key, found))
        except Exception as error:
            lost.append(Done(key, None, Times(0.0, 0.0), 1, error))
    return prompts, lost


def done_of(key: Any, said: Generated, times: Times, beside: int) -> Done:
    """What became of a prompt: its answer, or what kept it from one."""
    return Done(key, None if said.error else said, times, beside, said.error)


def generated(answer: Answer, logits: Tensor | None = None) -> Generated:
    """logits: (at least so many steps, V); what a finished answer went on to say beside its batch does not count."""
    steps = len(answer.ids)
    return Generated(answer.said, steps, answer.finish, None if logits is None else logits[:steps], answer.error)


@torch.inference_mode()
def generate(
    adapter: Adapter, prompts: Sequence[Prompt], *, max_new_tokens: int | None = None, sampling: Sampling | None = None,
    stop: bool = True, keep_logits: bool = False, rules: Rules | None = None,
) -> tuple[list[Generated], Times]:  # fmt: skip
    """Answers for a batch of prompts. `stop` False ignores the end token: a fixed number of steps, for measuring.

    rules: the generation settings, where they were made before; else they are made of the others. logits are the model's own.
    SampleError where a prompt leaves no room for an answer; an answer that fails on its way carries its error.
    """
    clock = Clock(adapter.device)
    rules = rules or Rules(adapter, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop)
    answers, chooser = [rules.answer(prompt) for prompt in prompts], Chooser(rules)
    chooser.admit(answers)
    embeds, mask, positions = pad_left(prompts)
    cache = DynamicCache(config=adapter.model.get_decoder().config)
    logits = adapter.forward(embeds, mask, positions, cache, prompts)
    chosen, kept_logits = chooser(logits), [logits] if keep_logits else []
    under_way = _take(answers, chosen)
    prefill = clock.mark()
    while under_way:
        positions = positions[..., -1:] + 1
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        logits = adapter.forward(adapter.embed_ids(chosen.clamp(min=0)[:, None]), mask, positions, cache)
        chosen = chooser(logits)
        under_way = _take(answers, chosen)
        if keep_logits:
            kept_logits.append(logits)
    all_logits = torch.stack(kept_logits, 1) if keep_logits else [None] * len(answers)
    said = [generated(answer, of_it) for answer, of_it in zip(answers, all_logits, strict=True)]
    return said, Times(prefill, clock.mark())


def _take(answers: Sequence[Answer], chosen: Tensor) -> bool:
    """A token for each answer that goes on; whether any goes on still."""
    for answer, token in zip(answers, chosen.tolist(), strict=True):
        if not answer.finish:
            answer.take(token)
    return not all(answer.finish for answer in answers)


class Batches:
    """The plain loop over a stream: batches of `rows`, each to its last answer before the next one begins.

    None takes as many as memory allows.
    """

    def __init__(
        self, adapter: Adapter, *, rows: int | None, max_new_tokens: int | None = None, sampling: Sampling | None = None
    ) -> None:
        self.adapter, self.rows, self.rules = adapter, rows, Rules(adapter, max_new_tokens=max_new_tokens, sampling=sampling)

    def run(self, take: Take) -> Iterator[Done]:
        """As `Continuous.run`. A batch that breaks is run again in halves."""
        while taken := take(self.rows or 1):  # the first prompt shows what one takes
            group, lost = apart(taken, self.rules)
            yield from lost
            if group and self.rows is None:
                self.rows = rows_for(self.adapter, len(group[0][1]), likely_length(self.adapter, self.rules, group[0][1]))
            for (key, _), made in in_halves(self._answer, group, self.adapter.device):
                if isinstance(made, Exception):
                    yield Done(key, None, Times(0.0, 0.0), 1, made)
                else:
                    yield made

    def _answer(self, group: list[tuple[Any, Prompt]]) -> list[Done]:
        size = len(group)
        answers, times = generate(self.adapter, [prompt for _, prompt in group], rules=self.rules)
        share = Times(times.prefill / size, times.decode / size)
        return [done_of(key, said, share, size) for (key, _), said in zip(group, answers, strict=True)]


def likely_length(adapter: Adapter, rules: Rules, prompt: Prompt) -> int:
    """New tokens that memory is counted for: no more than the model has positions for, however many are allowed."""
    places = getattr(adapter.model.get_decoder().config, "max_position_embeddings", None) or rules.most
    return min(rules.most, max(places - len(prompt), 1))


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
