"""The records of a batch on its way through the engine."""

from collections.abc import Sequence
from dataclasses import dataclass

from trimtok_cli.data import Kept, Sample, Seconds
from trimtok_cli.prepare.sample import Prepared
from trimtok_cli.tokens import Prompt, VisualTokens


@dataclass(frozen=True)
class Encoded:
    """A batch behind the vision tower: everything that is the same whatever is pruned."""

    prepared: Sequence[Prepared]
    tokens: Sequence[VisualTokens]
    prompts: Sequence[Prompt]
    seconds: float


@dataclass(frozen=True)
class Waiting:
    """A sample behind the pruner, ready for the language model. tokens: only where the pruner goes
    on inside of it.

    positions: those of the model that its prompt takes.
    """

    prepared: Prepared
    prompt: Prompt
    kept: tuple[Kept, ...]
    num_visual: int
    grid: tuple[int, ...]
    seconds: Seconds
    positions: int
    tokens: VisualTokens | None = None
    number: int = 0

    @property
    def sample(self) -> Sample:
        return self.prepared.sample


@dataclass(frozen=True)
class Lost:
    """A sample that does not reach the language model."""

    sample: Sample
    number: int
