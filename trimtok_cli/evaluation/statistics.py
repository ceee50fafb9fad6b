"""Intervals and tests on the scores of samples: bootstraps, halves, and McNemar's exact test.

Every function takes a value for each sample and draws from a generator with a seed, so that the
same scores give the same figures. Samples of one `group`, such as the questions about one picture,
are no independent evidence: they are drawn together. Knows no metric and no model.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from trimtok_cli.data import Sample

if TYPE_CHECKING:  # numpy: not for `--help`
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Indices = NDArray[np.intp]
    Values = Sequence[float] | Numbers

DRAWS, LEVEL, SEED = 2000, 0.95, 0

# Halves of a statistic that has to be worked out anew for each: so many samples in all, in bounds.
HALVED, FEWEST, MOST = 1_000_000, 100, 400

_AT_ONCE = 1 << 22  # indices that are held at once


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate between the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference of two settings on the same samples, with the p value of a test of none.

    test: `mcnemar`, `bootstrap`, or `halves` for what is no mean. wins, losses: the samples on
    which the first setting scores more, and less; 0 where single samples have no score.
    """

    interval: Interval
    p: float
    test: str
    wins: int = 0
    losses: int = 0


def pictures_of(sample: Sample) -> Hashable:
    """The group of a sample: its pictures, or itself where it has none."""
    return (*sample.images, *((sample.video,) if sample.video else ())) or (str(sample.id),)


def mean_interval(
    values: Values,
    groups: Sequence[Hashable] | None = None,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = SEED,
) -> Interval:
    """The mean, with its bootstrap interval (percentiles). Raises ValueError for no values."""
    numbers = _numbers(values)
    means = _drawn_means(numbers, groups, draws, seed)
    return _interval(float(numbers.mean()), means, level)


def share_interval(
    values: Values, groups: Sequence[Hashable] | None = None, *, level: float = LEVEL
) -> Interval:
    """The mean of values in [0, 1], where all of them may be 0 or all 1.

    Draws of equal values never differ, which is no certainty: the open end of the interval is then
    the exact one of as many groups.
    """
    found = mean_interval(values, groups, level=level)
    count = len(set(groups)) if groups is not None else len(values)
    open_end = ((1 - level) / 2) ** (1 / count)
    if min(values) == 1:
        return Interval(1.0, open_end, 1.0)
    return Interval(0.0, 0.0, 1 - open_end) if max(values) == 0 else found


def halves(
    count: int, groups: Sequence[Hashable] | None = None, *, draws: int = 0, seed: int = SEED
) -> Iterator[Indices]:
    """Random halves of the samples, whole groups at a time, for statistics that are no mean.

    Half of the samples, drawn without replacement, spread a mean as widely as all of them drawn
    with replacement do, and hold no sample twice: a benchmark's own rule may count what two
    questions about one picture have in common. draws: by default fewer of more samples, as each
    of them is scored anew.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    members = _members(groups if groups is not None else range(count))
    half = max(len(members) // 2, 1)
    for _ in range(draws or min(max(HALVED // count, FEWEST), MOST)):
        chosen = np.sort(generator.permutation(len(members))[:half])
        yield np.concatenate([members[number] for number in chosen])


def spread(value: float, drawn: Numbers, *, level: float = LEVEL) -> Interval:
    """The interval of a value, from the standard deviation of its draws."""
    import numpy as np

    reach = NormalDist().inv_cdf((1 + level) / 2) * float(np.std(drawn, ddof=1))
    return Interval(value, value - reach, value + reach)


def drawn_difference(value: float, first: Numbers, second: Numbers) -> Difference:
    """The difference of two values whose draws are of the same samples, one after the other."""
    import numpy as np

    gained = first - second
    error = float(np.std(gained, ddof=1))
    apart = value / error if error else math.copysign(math.inf, value) if value else 0.0
    return Difference(spread(value, gained), math.erfc(abs(apart) / math.sqrt(2)), "halves")


def paired(
    first: Values,
    second: Values,
    groups: Sequence[Hashable] | None = None,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = SEED,
) -> Difference:
    """The mean of first - second over the same samples.

    Scores that are right or wrong, of samples that are independent, are tested with McNemar's exact
    test, all others with the bootstrap of the differences.
    """
    import numpy as np

    one, two = _numbers(first), _numbers(second)
    if len(one) != len(two):
        raise ValueError(f"paired scores of {len(one)} and of {len(two)} samples")
    gained = one - two
    means = _drawn_means(gained, groups, draws, seed)
    found = _interval(float(gained.mean()), means, level)
    wins, losses = int((gained > 0).sum()), int((gained < 0).sum())
    alone = groups is None or len(set(groups)) == len(groups)
    if alone and len(np.unique(np.concatenate([one, two]))) <= 2:
        return Difference(found, mcnemar(wins, losses), "mcnemar", wins, losses)
    return Difference(found, _p_value(means), "bootstrap", wins, losses)


def mcnemar(wins: int, losses: int) -> float:
    """The two-sided p value of McNemar's exact test: `wins` heads in wins + losses fair throws."""
    total, fewer = wins + losses, min(wins, losses)
    tail, term = 0, 1  # term: the ways to choose k of total
    for k in range(fewer + 1):
        tail += term
        term = term * (total - k) // (k + 1)
    # Python divides whole numbers of any size exactly; floats would overflow before.
    return min(1.0, 2 * tail / (1 << total))


def _numbers(values: Values) -> Numbers:
    import numpy as np

    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        raise ValueError("there is no sample to take the mean of")
    return numbers


def _interval(value: float, drawn: Numbers, level: float) -> Interval:
    import numpy as np

    rest = (1 - level) / 2
    low, high = np.quantile(drawn, [rest, 1 - rest])
    return Interval(value, float(low), float(high))


def _p_value(drawn: Numbers) -> float:
    """The share of drawn differences on the rarer side of 0, two-sided; never 0."""
    below, above = int((drawn <= 0).sum()), int((drawn >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(drawn) + 1))


def _drawn_means(
    numbers: Numbers, groups: Sequence[Hashable] | None, draws: int, seed: int
) -> Numbers:
    """(draws,): the means of samples drawn with replacement, whole groups at a time."""
    import numpy as np

    if groups is None:
        means = [numbers[chosen].mean(1) for chosen in _draw(len(numbers), draws, seed)]
        return np.concatenate(means)
    members = _members(groups)
    sums = np.array([numbers[each].sum() for each in members])
    sizes = np.array([len(each) for each in members], dtype=np.float64)
    means = [sums[chosen].sum(1) / sizes[chosen].sum(1) for chosen in _draw(len(sums), draws, seed)]
    return np.concatenate(means)


def _draw(count: int, draws: int, seed: int) -> Iterator[Indices]:
    """Blocks (some draws, count) of numbers below `count`, `draws` rows in all."""
    import numpy as np

    generator = np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // count)
    for start in range(0, draws, rows):
        yield generator.integers(0, count, (min(rows, draws - start), count))


def _members(groups: Iterable[Hashable]) -> list[Indices]:
    """The samples of each group, in the order in which groups are first named."""
    import numpy as np

    found: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        found.setdefault(group, []).append(number)
    return [np.array(numbers) for numbers in found.values()]
