"""The plain loop: a batch of prompts of unequal length, prefill, then one token at a time.

Prompts are padded on the right, with explicit positions, and the steps have explicit masks, so that
a batch gives the same answers as its singles. This loop is the oracle of continuous.py. Knows no
pruner and no image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from trimtok_cli.data import Seconds
from trimtok_cli.device import Clock
from trimtok_cli.generation.capacity import batch_limit_for
from trimtok_cli.generation.choosing import Chooser
from trimtok_cli.generation.masks import step_masks
from trimtok_cli.generation.padding import pad_right
from trimtok_cli.generation.retry import in_halves
from trimtok_cli.generation.rules import Answer, Rules
from trimtok_cli.generation.types import Finished, Generated, LanguageModel
from trimtok_cli.tokens import Prompt


@torch.inference_mode()
def generate(
    model: LanguageModel, prompts: Sequence[Prompt], rules: Rules, *, keep_logits: bool = False
) -> tuple[list[Generated], Seconds]:
    """Answers for a batch of prompts, and the seconds of prefill and decode.

    The logits are the model's own. An answer that fails on its way carries its error. Raises
    SampleError if a prompt leaves no room for an answer.
    """
    clock = Clock(model.device)
    answers, chooser = [rules.answer(prompt) for prompt in prompts], Chooser(rules)
    chooser.admit(answers)
    batch = Steps(model, prompts)
    logits = batch.prefill()
    chosen, kept_logits = chooser(logits), [logits] if keep_logits else []
    under_way = _take(answers, chosen)
    prefill = clock.mark()
    while under_way:
        logits = batch.step(chosen.clamp(min=0))
        chosen = chooser(logits)
        under_way = _take(answers, chosen)
        if keep_logits:
            kept_logits.append(logits)
    all_logits = torch.stack(kept_logits, 1) if keep_logits else [None] * len(answers)
    finished = [Generated.of(*pair) for pair in zip(answers, all_logits, strict=True)]
    return finished, Seconds(prefill=prefill, decode=clock.mark())


class Steps:
    """The passes of the language model over a batch: its prefill, then one token for each answer.

    The padding stays in the cache, between each prompt and its answer, and masks hide it.
    """

    def __init__(self, model: LanguageModel, prompts: Sequence[Prompt]) -> None:
        self.model, self.prompts = model, prompts
        self.embeds, self.positions = pad_right(prompts)
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        self.padded, self.new_tokens = max(map(len, prompts)), 0
        self.used = min(map(len, prompts)) < self.padded
        # The library's windows count the padding, so that a padded cache keeps all keys, and the
        # masks hold the windows.
        self.cache = DynamicCache() if self.used else DynamicCache(config=model.config)

    def prefill(self) -> Tensor:
        """Logits (B, V) of each prompt's last row."""
        prompts, embeds = self.prompts, self.embeds
        # Nothing holds the prompts' rows behind their prefill.
        del self.prompts, self.embeds
        return self.model.forward(embeds, None, self.positions, self.cache, prompts)

    def step(self, ids: Tensor) -> Tensor:
        """Logits (B, V) behind one more token (B,) of each answer."""
        self.positions = self.positions[..., -1:] + 1
        embeds = self.model.embed_ids(ids[:, None])
        return self.model.forward(embeds, self._next_masks(), self.positions, self.cache)

    def _next_masks(self) -> Tensor | dict[str, Tensor] | None:
        """The masks of one more step; None without padding, where the library knows them."""
        self.new_tokens += 1
        if not self.used:
            return None
        lengths = self.lengths[:, None]
        columns = torch.arange(self.padded + self.new_tokens, device=lengths.device)
        ends = lengths + self.new_tokens - 1
        of_prompt = torch.where(columns < lengths, columns, ends + 1)
        places = torch.where(columns < self.padded, of_prompt, columns - self.padded + lengths)
        return step_masks(self.model.config, self.model.dtype, places, ends)


def _take(answers: Sequence[Answer], chosen: Tensor) -> bool:
    """Adds a token to each unfinished answer; returns whether any is still unfinished."""
    for answer, token in zip(answers, chosen.tolist(), strict=True):
        if not answer.finish:
            answer.take(token)
    return not all(answer.finish for answer in answers)


class Plain:
    """Runs batches of `batch_limit` prompts, each to its last answer before the next batch begins.

    A `batch_limit` of None takes as many as memory allows, once the first prompt shows how much one
    answer takes. retries: False raises the error of a batch that breaks.
    """

    def __init__(
        self,
        model: LanguageModel,
        rules: Rules,
        *,
        batch_limit: int | None = 1,
        keep_logits: bool = False,
        retries: bool = True,
    ) -> None:
        self.model, self.rules = model, rules
        self.batch_limit, self.keep_logits = batch_limit, keep_logits
        self.retries = retries
        self.waiting: list[Any] = []

    @property
    def busy(self) -> bool:
        return bool(self.waiting)

    def room(self) -> int:
        return 0 if self.waiting else self.batch_limit or 1

    def add(self, requests: Sequence[Any]) -> None:
        self.waiting += requests
        if self.batch_limit is None and requests:
            self.batch_limit = batch_limit_for(self.model, self.rules, len(requests[0].prompt))

    def step(self) -> list[Finished]:
        """Runs a whole batch; a batch that breaks is run again in halves."""
        finished, fit = [], []
        for request in self.waiting:
            if error := self.rules.refusal(request.prompt):
                finished.append(Finished(request, None, error=error))
            else:
                fit.append(request)
        self.waiting = []
        if fit and not self.retries:
            return finished + self._answer(fit)
        for request, made in in_halves(self._answer, fit, self.model.device):
            if isinstance(made, Exception):
                made = Finished(request, None, error=made)
            finished.append(made)
        return finished

    def _answer(self, requests: list[Any]) -> list[Finished]:
        prompts, size = [request.prompt for request in requests], len(requests)
        answers, seconds = generate(self.model, prompts, self.rules, keep_logits=self.keep_logits)
        share = Seconds(prefill=seconds.prefill / size, decode=seconds.decode / size)
        return [
            Finished.of(request, answer, share, size)
            for request, answer in zip(requests, answers, strict=True)
        ]
