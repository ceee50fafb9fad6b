"""The scores of one column's cells: values, intervals, and paired tests on the same samples.

Pure functions on samples and answers. Knows no file and no model.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.datasets.base import Dataset
from trimtok_cli.evaluation.statistics import (
    Difference,
    Interval,
    drawn_difference,
    halves,
    mean_interval,
    paired,
    pictures_of,
    share_interval,
    spread,
)
from trimtok_cli.wording import brief, suggestion

Texts = Sequence[str | None]
"""An answer for each sample, in order; None where it was not asked yet."""


@dataclass(frozen=True)
class Score:
    """The score of one cell. values: every metric by name. count: the samples that it counts.

    texts: the answers, of one run or of one for each seed. each: the score of each sample, the mean
    over runs, where the metric is their mean.
    """

    metric: str
    value: float
    values: dict[str, float]
    texts: tuple[Texts, ...]
    chosen: tuple[int, ...]
    each: np.ndarray | None = field(default=None, repr=False)

    @property
    def count(self) -> int:
        return len(self.chosen)


class Scorer:
    """Scores answers to the samples of one data set.

    metric: the data set's headline if it is empty. What a score cost to work out is kept, as every
    row is held against the same one or two.
    """

    def __init__(self, dataset: Dataset, samples: Sequence[Sample], metric: str = "") -> None:
        self.dataset, self.samples, self.metric = dataset, samples, metric
        self.groups = [pictures_of(sample) for sample in samples]
        self.drawn: dict[tuple[tuple[int, ...], tuple[int, ...]], Any] = {}

    def score(self, *texts: Texts) -> Score | None:
        """The score of the samples that all runs have asked; None where there is none."""
        chosen = tuple(
            number
            for number in range(len(self.samples))
            if all(run[number] is not None for run in texts)
        )
        return self._score(texts, chosen) if chosen else None

    def interval(self, score: Score) -> Interval:
        """The score's interval; the exact one where every sample is right, or every one wrong."""
        if score.each is None:
            return spread(score.value, self._draws(score))
        groups = self._groups(score.chosen)
        if set(np.unique(score.each)) not in ({0.0}, {100.0}):
            return mean_interval(score.each, groups)
        share = share_interval(score.each / 100, groups)
        return Interval(score.value, 100 * share.low, 100 * share.high)

    def difference(self, first: Score, second: Score) -> Difference:
        """The difference on the samples that both have; a paired test of none."""
        common = tuple(sorted(set(first.chosen) & set(second.chosen)))
        one, two = (
            score if score.chosen == common else self._score(score.texts, common)
            for score in (first, second)
        )
        if one.each is not None and two.each is not None:
            return paired(one.each, two.each, self._groups(common))
        return drawn_difference(one.value - two.value, self._draws(one), self._draws(two))

    def _score(self, texts: tuple[Texts, ...], chosen: tuple[int, ...]) -> Score:
        runs = [self._scores(run, chosen) for run in texts]
        metric = self.metric or runs[0].main
        if metric not in runs[0].values:
            raise UsageError(
                f"{self.dataset.name} has no metric {brief(metric)}"
                f"{suggestion(metric, runs[0].values)}; it has {', '.join(runs[0].values)}."
            )
        values = {
            name: sum(run.values[name] for run in runs) / len(runs) for name in runs[0].values
        }
        single = [run.each for run in runs if run.each is not None and metric == run.main]
        each = np.mean(np.array(single, dtype=np.float64), axis=0) if single else None
        return Score(metric, values[metric], values, texts, chosen, each)

    def _scores(self, run: Texts, chosen: Sequence[int]) -> Any:
        return self.dataset.score([(self.samples[i], run[i] or "") for i in chosen])

    def _groups(self, chosen: Sequence[int]) -> list[Hashable]:
        return [self.groups[number] for number in chosen]

    def _draws(self, score: Score) -> Any:
        """The score of random halves of its samples."""
        key = (tuple(map(id, score.texts)), score.chosen)
        if key not in self.drawn:
            places = np.array(score.chosen)

            def value(half: Any) -> float:
                return self._score(score.texts, tuple(places[half].tolist())).value

            # The texts are kept beside the draws, as no other texts may get their ids.
            drawn = halves(value, score.count, self._groups(score.chosen))
            self.drawn[key] = (drawn, score.texts)
        return self.drawn[key][0]
