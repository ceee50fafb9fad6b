"""Which token loop a run takes."""

from collections.abc import Iterator
from dataclasses import replace

from trimtok_cli.device import forget_frames
from trimtok_cli.engine.batch import Waiting
from trimtok_cli.engine.decoder_stages import RunningStages
from trimtok_cli.errors import ModelError
from trimtok_cli.generation.continuous import Continuous
from trimtok_cli.generation.plain import Batches, generate
from trimtok_cli.generation.rules import Rules
from trimtok_cli.generation.types import Done, Take, Times, apart, done_of
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.tokens import Prompt

LOOPS = {"continuous": Continuous, "simple": Batches}


def goes_inside(adapter: Adapter, pruner: Pruner | None) -> bool:
    return pruner is not None and any(layer > 0 for layer in pruner.stages(adapter.num_layers))


def language_model(adapter: Adapter, pruner: Pruner | None, ask: Ask, *, rows: int | None):
    """The token loop of a run: its `run(take)` turns waiting prompts into answers as they end.

    A pruner that goes on inside the model leaves caches of unequal lengths, layer by layer: its
    samples run one at a time.
    """
    if goes_inside(adapter, pruner):
        return _Inside(adapter, pruner, ask)
    return LOOPS[ask.decode](
        adapter, rows=rows, max_new_tokens=ask.max_new_tokens, sampling=ask.sampling
    )


class _Inside:
    """Prompts one by one, under a pruner that reduces inside the language model."""

    def __init__(self, adapter: Adapter, pruner: Pruner, ask: Ask) -> None:
        self.adapter, self.pruner = adapter, pruner
        self.rules = Rules(adapter, max_new_tokens=ask.max_new_tokens, sampling=ask.sampling)

    def run(self, take: Take) -> Iterator[Done]:
        while taken := take(1):
            group, lost = apart(taken)
            yield from lost
            for each, prompt in group:
                try:
                    yield self._one(each, prompt)
                except ModelError:
                    raise
                except Exception as error:
                    yield Done(each, None, Times(0.0, 0.0), 1, forget_frames(error))

    def _one(self, each: Waiting, prompt: Prompt) -> Done:
        decoder, renumber = self.adapter.model.get_decoder(), self.adapter.renumbers
        with RunningStages(decoder, self.pruner, prompt, each.tokens, renumber=renumber) as stages:
            (said,), times = generate(self.adapter, [stages.plain], rules=self.rules)
        spent = replace(each.seconds, prune=each.seconds.prune + stages.seconds)
        key = replace(each, kept=tuple(stages.kept), seconds=spent)
        return done_of(key, said, Times(times.prefill - stages.seconds, times.decode), 1)
