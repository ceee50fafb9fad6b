"""The token loop that a run takes, and the loop of methods that prune inside the decoder."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from trimtok_cli.data import Seconds
from trimtok_cli.device import forget_frames
from trimtok_cli.engine.batch import Pruned
from trimtok_cli.engine.decoder_stages import RunningStages
from trimtok_cli.errors import ModelError
from trimtok_cli.generation.continuous import Continuous
from trimtok_cli.generation.plain import Plain, generate
from trimtok_cli.generation.rules import Rules
from trimtok_cli.generation.types import Finished, Loop
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.base import Pruner

LOOPS: dict[str, Callable[..., Loop]] = {"continuous": Continuous, "simple": Plain}
"""The loops, keyed by the values of --decode."""


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

    retries: whether a batch that breaks is run again in smaller ones; its error is raised
    otherwise. A pruner that goes on inside the decoder leaves caches of unequal lengths, layer by
    layer: its samples run one at a time.
    """
    if pruner is not None and prunes_in_decoder(adapter, pruner):
        return Layerwise(adapter, pruner, rules, keep_logits=keep_logits)
    return LOOPS[decode](
        adapter, rules, batch_limit=batch_limit, keep_logits=keep_logits, retries=retries
    )


class Layerwise:
    """Requests one by one, under a pruner that reduces inside the decoder."""

    def __init__(
        self, adapter: Adapter, pruner: Pruner, rules: Rules, *, keep_logits: bool = False
    ) -> None:
        self.adapter, self.pruner, self.rules = adapter, pruner, rules
        self.keep_logits = keep_logits
        self.waiting: list[Pruned] = []

    @property
    def busy(self) -> bool:
        return bool(self.waiting)

    def room(self) -> int:
        return 0 if self.waiting else 1

    def add(self, requests: Sequence[Pruned]) -> None:
        self.waiting += requests

    def step(self) -> list[Finished]:
        """Runs one request from its prefill to its last token.

        The request returns with the tokens that every stage kept; its seconds include the time of
        the pruner's choices.
        """
        request = self.waiting.pop(0)
        try:
            return [self._answer(request)]
        except ModelError:
            raise
        except Exception as error:
            return [Finished(request, None, error=forget_frames(error))]

    def _answer(self, request: Pruned) -> Finished:
        decoder, renumber = self.adapter.model.get_decoder(), self.adapter.renumbers
        if request.tokens is None:
            raise LookupError("a pruner that goes on inside the decoder needs the dense tokens")
        with RunningStages(
            decoder, self.pruner, request.prompt, request.tokens, renumber=renumber
        ) as stages:
            (generated,), seconds = generate(
                self.adapter, [stages.plain], self.rules, keep_logits=self.keep_logits
            )
        pruning = Seconds(prune=stages.seconds)
        request = replace(request, kept=tuple(stages.kept), seconds=request.seconds + pruning)
        seconds = replace(seconds, prefill=seconds.prefill - stages.seconds)
        return Finished.of(request, generated, seconds, 1)
