"""The token loop that a run takes, and the simple loop of methods that prune inside the decoder."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from trimtok_cli.data import Seconds
from trimtok_cli.engine.batch import Pruned
from trimtok_cli.engine.decoder_stages import RunningStages
from trimtok_cli.engine.staged_loop import StagedLoop, dense_tokens, shape_of
from trimtok_cli.generation.capacity import batch_limit_for
from trimtok_cli.generation.continuous import Continuous
from trimtok_cli.generation.plain import Plain, generate
from trimtok_cli.generation.retry import in_halves
from trimtok_cli.generation.rules import Rules
from trimtok_cli.generation.types import Finished, Loop
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.base import Pruner


def rules_for(adapter: Adapter, ask: Ask, *, stop: bool = True) -> Rules:
    """The checkpoint's generation settings, overruled by the Ask. `stop`: see `Rules`."""
    return Rules(
        adapter.model,
        adapter.processor.tokenizer,
        name=adapter.name,
        end_ids=adapter.end_ids,
        max_new_tokens=ask.max_new_tokens,
        sampling=ask.sampling if stop else None,
        stop=stop,
    )


def prunes_in_decoder(adapter: Adapter, pruner: Pruner | None) -> bool:
    return pruner is not None and any(layer > 0 for layer in pruner.stages(adapter.num_layers))


def loop_for(
    adapter: Adapter,
    pruner: Pruner | None,
    rules: Rules,
    *,
    decode: str = "continuous",
    batch_limit: int | None = 1,
    keep_logits: bool = False,
    retries: bool = True,
) -> Loop:
    """The token loop of a run; its requests are `Pruned`.

    A pruner that goes on inside the decoder leaves caches of unequal lengths, layer by layer, and
    has a loop of its own. decode: a key of LOOPS. retries: whether a batch that breaks is run again
    in smaller ones; its error is raised otherwise.
    """
    options: dict[str, Any] = {
        "batch_limit": batch_limit,
        "keep_logits": keep_logits,
        "retries": retries,
    }
    _ = adapter.faster  # lays weights out anew, before a loop shares out the memory that is left
    if pruner is not None and prunes_in_decoder(adapter, pruner):
        return STAGED_LOOPS[decode](adapter, pruner, rules, **options)
    return LOOPS[decode](adapter, rules, **options)


# Requests that wait for each that runs, so that prompts of one shape find each other.
GATHERED = 4


class Layerwise:
    """Batches of prompts of one shape, under a pruner that reduces inside the decoder.

    Prompts with equal numbers of rows and of visual tokens have equal numbers of rows behind every
    stage, and so caches of one length in each layer. Each batch runs to its last answer. A
    `batch_limit` of None takes as many as memory allows, once the first prompt shows how much one
    answer takes. retries: False raises the error of a batch that breaks. This loop is the oracle of
    staged_loop.py.
    """

    def __init__(
        self,
        adapter: Adapter,
        pruner: Pruner,
        rules: Rules,
        *,
        batch_limit: int | None = 1,
        keep_logits: bool = False,
        retries: bool = True,
    ) -> None:
        self.adapter, self.pruner, self.rules = adapter, pruner, rules
        self.batch_limit, self.keep_logits, self.retries = batch_limit, keep_logits, retries
        self.waiting: list[Pruned] = []

    @property
    def busy(self) -> bool:
        return bool(self.waiting)

    def room(self) -> int:
        """The number of requests that may be added now: enough for a batch of one shape."""
        limit = self.batch_limit or 1
        most = GATHERED * limit if limit > 1 else 1
        return most - len(self.waiting) if len(self.waiting) < limit else 0

    def add(self, requests: Sequence[Pruned]) -> None:
        self.waiting += requests
        if self.batch_limit is None and requests:
            longest = len(requests[0].prompt)
            self.batch_limit = batch_limit_for(self.adapter, self.rules, longest)

    def step(self) -> list[Finished]:
        """Runs a batch from its prefill to its last token: the first request and others like it.

        A request returns with the tokens that every stage kept; its seconds include its share of
        the pruner's choices. A batch that breaks is run again in halves.
        """
        shape = shape_of(self.waiting[0])
        batch = [each for each in self.waiting if shape_of(each) == shape][: self.batch_limit]
        chosen = set(map(id, batch))
        self.waiting = [each for each in self.waiting if id(each) not in chosen]
        if not self.retries:
            return self._answer(batch)
        return [
            Finished(request, None, error=made) if isinstance(made, Exception) else made
            for request, made in in_halves(self._answer, batch, self.adapter.device)
        ]

    def _answer(self, requests: list[Pruned]) -> list[Finished]:
        size = len(requests)
        with RunningStages(
            self.adapter.model.get_decoder(),
            self.pruner,
            [request.prompt for request in requests],
            dense_tokens(requests),
            renumber=self.adapter.renumbers,
        ) as stages:
            answers, seconds = generate(
                self.adapter, stages.plain, self.rules, keep_logits=self.keep_logits
            )
        pruning = Seconds(prune=stages.seconds / size)
        share = Seconds(
            prefill=(seconds.prefill - stages.seconds) / size, decode=seconds.decode / size
        )
        return [
            Finished.of(
                replace(request, kept=tuple(kept), seconds=request.seconds + pruning),
                generated,
                share,
                size,
            )
            for request, kept, generated in zip(requests, stages.kept, answers, strict=True)
        ]


LOOPS: dict[str, Callable[..., Loop]] = {"continuous": Continuous, "simple": Plain}
"""The loops, keyed by the values of --decode."""

STAGED_LOOPS: dict[str, Callable[..., Loop]] = {"continuous": StagedLoop, "simple": Layerwise}
"""The loops of methods that prune inside the decoder, by the same keys."""
