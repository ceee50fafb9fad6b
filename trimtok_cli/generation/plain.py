"""The token loop: a batch of prompts of unequal length, prefill, then one token at a time. Knows no
pruner and no image.

Prompts are left-padded with an explicit mask and explicit positions, so that a batch gives what its
singles give. It is the oracle of continuous.py, and what methods run under that prune inside the
model.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from trimtok_cli.data import Sampling
from trimtok_cli.device import Clock
from trimtok_cli.generation.capacity import likely_length, rows_for
from trimtok_cli.generation.choosing import Chooser
from trimtok_cli.generation.padding import pad_left
from trimtok_cli.generation.retry import in_halves
from trimtok_cli.generation.rules import Answer, Rules
from trimtok_cli.generation.types import Done, Generated, Take, Times, apart, done_of, generated
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.tokens import Prompt


@torch.inference_mode()
def generate(
    adapter: Adapter,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    stop: bool = True,
    keep_logits: bool = False,
    rules: Rules | None = None,
) -> tuple[list[Generated], Times]:
    """Answers for a batch of prompts. `stop` False ignores the end token: a fixed number of steps,
    for measuring.

    rules: the generation settings, where they were made before; else they are made of the others.
    logits are the model's own. SampleError where a prompt leaves no room for an answer; an answer
    that fails on its way carries its error.
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
        logits = adapter.forward(
            adapter.embed_ids(chosen.clamp(min=0)[:, None]), mask, positions, cache
        )
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
    """The plain loop over a stream: batches of `rows`, each to its last answer before the next one
    begins.

    None takes as many as memory allows.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        rows: int | None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        self.adapter, self.rows, self.rules = (
            adapter,
            rows,
            Rules(adapter, max_new_tokens=max_new_tokens, sampling=sampling),
        )

    def run(self, take: Take) -> Iterator[Done]:
        """As `Continuous.run`. A batch that breaks is run again in halves."""
        while taken := take(self.rows or 1):  # the first prompt shows what one takes
            group, lost = apart(taken, self.rules)
            yield from lost
            if group and self.rows is None:
                self.rows = rows_for(
                    self.adapter,
                    len(group[0][1]),
                    likely_length(self.adapter, self.rules, group[0][1]),
                )
            for (key, _), made in in_halves(self._answer, group, self.adapter.device):
                if isinstance(made, Exception):
                    yield Done(key, None, Times(0.0, 0.0), 1, made)
                else:
                    yield made

    def _answer(self, group: list[tuple[Any, Prompt]]) -> list[Done]:
        size = len(group)
        answers, times = generate(self.adapter, [prompt for _, prompt in group], rules=self.rules)
        share = Times(times.prefill / size, times.decode / size)
        return [
            done_of(key, said, share, size) for (key, _), said in zip(group, answers, strict=True)
        ]
