"""What a data set is: its samples, how its questions are asked, and how its answers are scored.

Knows no model and no command. A data set of your own is a Dataset; no registration is needed to
score with it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from trimtok_cli.data import Sample

# A sample with the answer that was given to it; "" is an answer that is missing or failed.
Pair = tuple[Sample, str]


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one set of answers.

    main: the name of the headline metric. values: every metric by name, in per cent unless the
    README's table says otherwise; `PART/METRIC` is a metric over a part of the samples, such as
    `random/f1`. each: the headline of each pair, in order and in the same unit, where the headline
    is their mean; None where it is no mean over samples, so that an interval of it needs the pairs
    drawn anew and scored again. notes: what a reader of the numbers should know, in sentences.
    """

    main: str
    values: Mapping[str, float]
    each: Sequence[float] | None = None
    notes: Sequence[str] = ()

    @property
    def headline(self) -> float:
        return self.values[self.main]


class Samples(Protocol):
    """Reads the samples of a data set."""

    def __call__(
        self, folder: Path, *, split: str = "", images: Path | None = None
    ) -> Iterable[Sample]: ...


@dataclass(frozen=True, slots=True)
class Dataset:
    """One data set in its published layout.

    layout: the files that are looked for in its folder, in a line. prompt: how a question is asked,
    as LLaVA's evaluation asks it; `{question}` stands for the question. max_new_tokens: how long
    an answer may be. splits: the values of `split`, the first of which is the default.

    `samples(folder, split=..., images=...)` reads the files and opens no picture: `question` holds
    the prompt as it is asked, `extra["question"]` the question alone, `answers` the references,
    and `extra` whatever else the metric needs. images: the folder of the pictures, if they do not
    lie in their published place. UsageError where a file is missing or broken.

    `score(pairs)` scores any part of the samples.
    """

    name: str
    title: str
    layout: str
    samples: Samples
    score: Callable[[Sequence[Pair]], Scores]
    prompt: str = "{question}"
    max_new_tokens: int = 16
    splits: tuple[str, ...] = field(default=("",))


# The suffixes with which LLaVA's evaluation asks.
SHORT_ANSWER = "{question}\nAnswer the question using a single word or phrase."
LETTER_ANSWER = "{question}\nAnswer with the option's letter from the given choices directly."
