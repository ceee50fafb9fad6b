"""The scores of one column's cells: values, intervals, and paired tests on the same samples.

Pure functions on samples and answers. Knows no file and no model.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.datasets.base import Dataset, Scores
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

if TYPE_CHECKING:  # numpy: not for `--help`
    import numpy as np

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

    What a score cost to work out is kept, as every row is held against the same one or two, and
    one column's metric may be another's as well.
    """

    def __init__(self, dataset: Dataset, samples: Sequence[Sample]) -> None:
        self.dataset, self.samples = dataset, samples
        self.groups = [pictures_of(sample) for sample in samples]
        self.drawn: dict[tuple[tuple[int, ...], tuple[int, ...]], Any] = {}

    def score(self, *texts: Texts, metric: str = "") -> Score | None:
        """The score of the samples that all runs have asked; None where there is none.

        metric: the data set's headline if it is empty. Raises UsageError for an unknown one.
        """
        chosen = tuple(
            number
            for number in range(len(self.samples))
            if all(run[number] is not None for run in texts)
        )
        return self._score(texts, chosen, metric) if chosen else None

    def interval(self, score: Score) -> Interval:
        """The score's interval; the exact one where every sample is right, or every one wrong."""
        import numpy as np

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
            score if score.chosen == common else self._score(score.texts, common, score.metric)
            for score in (first, second)
        )
        if one.each is not None and two.each is not None:
            return paired(one.each, two.each, self._groups(common))
        return drawn_difference(one.value - two.value, self._draws(one), self._draws(two))

    def _score(self, texts: tuple[Texts, ...], chosen: tuple[int, ...], metric: str) -> Score:
        import numpy as np

        runs = [self._scores(run, chosen) for run in texts]
        metric = metric or runs[0].main
        if metric not in runs[0].values:
            raise UsageError(
                f"{self.dataset.name} has no metric {brief(metric)}"
                f"{suggestion(metric, runs[0].values)}; it has {', '.join(runs[0].values)}."
            )
        single = [run.each for run in runs if run.each is not None and metric == run.main]
        each = np.mean(np.array(single, dtype=np.float64), axis=0) if single else None
        values = _means(runs)
        return Score(metric, values[metric], values, texts, chosen, each)

    def _scores(self, run: Texts, chosen: Sequence[int]) -> Scores:
        return self.dataset.score([(self.samples[i], run[i] or "") for i in chosen])

    def _groups(self, chosen: Sequence[int]) -> list[Hashable]:
        return [self.groups[number] for number in chosen]

    def _draws(self, score: Score) -> Any:
        """The metric of random halves of the score's samples; 0 where a half does not have it."""
        import numpy as np

        key = (tuple(map(id, score.texts)), score.chosen)
        if key not in self.drawn:
            places = np.array(score.chosen)
            values = [
                _means([self._scores(run, places[half].tolist()) for run in score.texts])
                for half in halves(score.count, self._groups(score.chosen))
            ]
            # The texts are kept beside the draws, as no other texts may get their ids.
            self.drawn[key] = (values, score.texts)
        return np.array([values.get(score.metric, 0.0) for values in self.drawn[key][0]])


def _means(runs: Sequence[Scores]) -> dict[str, float]:
    """Every metric that all runs have, as the mean over runs."""
    names = [name for name in runs[0].values if all(name in run.values for run in runs)]
    return {name: fmean(run.values[name] for run in runs) for name in names}
