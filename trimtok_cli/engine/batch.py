"""A batch on its way: encoded, then pruned and ready for the language model."""

from dataclasses import dataclass

from trimtok_cli.data import Kept, Sample, Seconds
from trimtok_cli.generation.types import Request
from trimtok_cli.prepare.sample import Prepared
from trimtok_cli.tokens import Prompt, VisualTokens


@dataclass(frozen=True)
class Encoded:
    """A sample behind the vision tower, before a pruner: the same for every method and budget."""

    prepared: Prepared
    tokens: VisualTokens
    prompt: Prompt
    seconds: Seconds


@dataclass(frozen=True, kw_only=True)
class Pruned(Request):
    """A sample behind the pruner, which is a request to the language model.

    positions: the number of the model's positions that its prompt takes. tokens: the dense visual
    tokens, only if the pruner goes on inside the decoder.
    """

    prepared: Prepared
    kept: tuple[Kept, ...]
    num_visual: int
    grid: tuple[int, ...]
    seconds: Seconds
    positions: int
    tokens: VisualTokens | None = None

    @property
    def sample(self) -> Sample:
        return self.prepared.sample
