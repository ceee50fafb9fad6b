"""Samples prepared and encoded once, for all the settings that answer them in turn.

What stands in front of a pruner is the same for every method and budget. Each setting is given the
same tokens, with the times of their one pass. Knows no pruner.
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace

from trimtok_cli.data import Failed, Sample
from trimtok_cli.device import free_bytes
from trimtok_cli.engine.answer import encode
from trimtok_cli.engine.batch import Encoded
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.sample import Ask, Prepared, attempt

LEFT_FREE = 0.5  # of the memory that is free at the beginning


class Shared:
    """The prepared and encoded samples of one model and one Ask, by the samples' keys.

    Nothing is kept of samples that fail, nor once half of the free memory is taken: those samples
    are prepared and encoded again for each setting. Holds what the tower's signals are computed
    from, too, so it is not for towers whose memory is written anew by the next pass.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.least = LEFT_FREE * free_bytes(adapter.device)
        self.prepared: dict[str, Prepared] = {}
        self.encoded: dict[str, Encoded] = {}

    def prepare(self, samples: Iterable[Sample], ask: Ask) -> Generator[Prepared | Failed]:
        """Each sample prepared or failed, in order."""
        for sample in samples:
            found = self.prepared.get(sample.key) or attempt(self.adapter.preprocessor, sample, ask)
            if isinstance(found, Prepared) and self._has_room():
                self.prepared[sample.key] = found
            yield found

    def encode(self, prepared: Sequence[Prepared]) -> list[Encoded]:
        """As `answer.encode` with signals; numbers and seeds are those of `prepared`."""
        new = [each for each in prepared if each.sample.key not in self.encoded]
        made = {each.prepared.sample.key: each for each in encode(self.adapter, new)} if new else {}
        if self._has_room():
            for key, each in made.items():
                # Pixels are not needed any more.
                bare = replace(each.prepared, inputs=replace(each.prepared.inputs, tensors={}))
                self.encoded[key] = replace(each, prepared=bare)
                self.prepared[key] = bare
        return [self._of(each, made) for each in prepared]

    def _of(self, prepared: Prepared, made: dict[str, Encoded]) -> Encoded:
        key = prepared.sample.key
        found = made[key] if key in made else self.encoded[key]
        return replace(found, prepared=prepared, prompt=replace(found.prompt, seed=prepared.seed))

    def _has_room(self) -> bool:
        return free_bytes(self.adapter.device) > self.least
