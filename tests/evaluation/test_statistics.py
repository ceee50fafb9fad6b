"""Intervals and tests against slow and obvious versions, known values, and their own promises."""

from fractions import Fraction
from itertools import product
from math import comb, sqrt
from random import Random

import numpy as np
import pytest

from trimtok_cli.evaluation.statistics import (
    Interval,
    drawn_difference,
    halves,
    mcnemar,
    mean_interval,
    paired,
    share_interval,
    spread,
)

# Values of R's binom.test(min, n) for the discordant pairs, two-sided.
KNOWN = {(0, 0): 1.0, (1, 0): 1.0, (6, 1): 0.125, (9, 1): 0.021484375, (10, 10): 1.0}


def throws(wins: int, losses: int) -> float:
    """The p value by going through every sequence of fair throws."""
    total, rarer = wins + losses, min(wins, losses)
    sides = [sum(thrown) for thrown in product((0, 1), repeat=total)]
    as_rare = sum(min(heads, total - heads) <= rarer for heads in sides)
    return float(Fraction(as_rare, len(sides)))


@pytest.mark.parametrize("pair", KNOWN)
def test_mcnemar_gives_known_values(pair):
    assert mcnemar(*pair) == pytest.approx(KNOWN[pair], abs=1e-12)


def test_mcnemar_is_the_count_of_all_sequences_of_throws():
    for wins, losses in product(range(6), range(6)):
        assert mcnemar(wins, losses) == pytest.approx(throws(wins, losses), abs=1e-12)
        assert mcnemar(wins, losses) == mcnemar(losses, wins)


def test_mcnemar_takes_more_pairs_than_a_float_holds():
    wins, losses = 2100, 1900
    tail = sum(comb(4000, k) for k in range(losses + 1))
    assert mcnemar(wins, losses) == pytest.approx(float(Fraction(2 * tail, 2**4000)), rel=1e-12)
    assert mcnemar(4000, 4000) == 1.0


def slow_means(values, groups, draws: int, seed: int) -> list[float]:
    """Each draw written out: numbers of groups, their samples, the mean of them."""
    names = list(dict.fromkeys(groups))
    generator = np.random.default_rng(seed)
    means = []
    for chosen in generator.integers(0, len(names), (draws, len(names))):
        drawn = [
            value
            for number in chosen
            for value, group in zip(values, groups, strict=True)
            if group == names[number]
        ]
        means.append(sum(drawn) / len(drawn))
    return means


@pytest.mark.parametrize("size", [1, 3])
def test_the_interval_is_that_of_draws_written_out(size):
    rng = Random(3)
    values = [rng.random() for _ in range(30)]
    groups = [number // size for number in range(30)]
    means = sorted(slow_means(values, groups, 401, 5))
    found = mean_interval(values, groups if size > 1 else None, draws=401, level=0.9, seed=5)
    # 401 draws: the quantiles 0.05 and 0.95 are the draws 20 and 380.
    assert found.low == pytest.approx(means[20]) and found.high == pytest.approx(means[380])
    assert found.value == pytest.approx(sum(values) / 30)


def test_the_interval_of_a_share_is_that_of_its_standard_error():
    values = [1.0] * 700 + [0.0] * 300
    found = mean_interval(values, draws=4000)
    error = 1.96 * sqrt(0.7 * 0.3 / 1000)
    assert found.low == pytest.approx(0.7 - error, abs=0.002)
    assert found.high == pytest.approx(0.7 + error, abs=0.002)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(300):
        found = mean_interval(rng.random(80).tolist(), draws=300, seed=trial)
        held += found.low <= 0.5 <= found.high
    assert 0.90 <= held / 300 <= 0.98, held


def test_samples_of_one_group_count_once():
    """Each value ten times is no more evidence than once."""
    rng = Random(1)
    values = [float(rng.random() < 0.5) for _ in range(60)]
    tenfold = [value for value in values for _ in range(10)]
    groups = [number for number in range(60) for _ in range(10)]
    once, grouped = mean_interval(values), mean_interval(tenfold, groups)
    assert (grouped.low, grouped.high) == pytest.approx((once.low, once.high))
    blind = mean_interval(tenfold)
    assert blind.high - blind.low < (once.high - once.low) / 2


def test_the_same_scores_give_the_same_figures():
    values = np.sqrt(np.arange(50)).tolist()
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values) != mean_interval(values, seed=1)


def half_means(values, groups=None, draws: int = 3000) -> np.ndarray:
    return np.array([values[half].mean() for half in halves(len(values), groups, draws=draws)])


def test_halves_spread_a_mean_as_widely_as_the_bootstrap():
    """One of the two draws with replacement, and one without."""
    values = np.random.default_rng(4).random(600)
    for groups in (None, [number // 3 for number in range(600)]):
        found = spread(float(values.mean()), half_means(values, groups))
        mean = mean_interval(values.tolist(), groups)
        assert found.value == pytest.approx(mean.value)
        assert found.low == pytest.approx(mean.low, abs=0.003)
        assert found.high == pytest.approx(mean.high, abs=0.003)


def test_halves_hold_whole_groups_and_no_sample_twice():
    groups = [0, 0, 1, 1, 1, 2, 3, 3]
    seen = [half.tolist() for half in halves(8, groups, draws=50)]
    assert len(seen) == 50 and {len({groups[i] for i in each}) for each in seen} == {2}
    for each in seen:
        owners = {groups[number] for number in each}
        assert each == [number for number in range(8) if groups[number] in owners]
    assert len({tuple(each) for each in seen}) == 6, "two of four groups"


def test_there_are_fewer_halves_of_more_samples():
    assert [sum(1 for _ in halves(count)) for count in (100, 5000, 40_000)] == [400, 200, 100]


def test_scores_of_0_and_1_are_tested_exactly_and_others_by_the_bootstrap():
    first, second = [1.0] * 9 + [0.0] * 5, [0.0] * 9 + [1.0] + [0.0] * 4
    found = paired(first, second)
    assert (found.test, found.wins, found.losses) == ("mcnemar", 9, 1)
    assert found.p == pytest.approx(KNOWN[9, 1]) and found.interval.value == pytest.approx(8 / 14)
    in_per_cent = paired([100 * each for each in first], [100 * each for each in second])
    assert (in_per_cent.test, in_per_cent.p) == (found.test, found.p)
    assert paired([0.5, *first[1:]], second).test == "bootstrap"
    assert paired(first, second, [0, 0, *range(12)]).test == "bootstrap"


def test_a_difference_is_that_of_the_same_samples():
    rng = Random(2)
    easy = [rng.random() for _ in range(400)]
    harder = [value - 0.02 + rng.uniform(-0.01, 0.01) for value in easy]
    found = paired(easy, harder)
    alone = mean_interval(easy)
    assert found.interval.high - found.interval.low < (alone.high - alone.low) / 10
    assert found.interval.low > 0.015 and found.p < 0.01
    assert paired(easy, easy).p == 1.0 and paired(easy, easy).interval == Interval(0.0, 0.0, 0.0)


def test_a_difference_of_draws_is_that_of_the_same_samples():
    rng = np.random.default_rng(9)
    easy = rng.random(300)
    harder = easy - 0.008 + rng.uniform(-0.2, 0.2, 300)
    value = float(easy.mean() - harder.mean())
    found = drawn_difference(value, half_means(easy), half_means(harder))
    mean = paired(easy.tolist(), harder.tolist())
    assert found.interval.low == pytest.approx(mean.interval.low, abs=2e-3)
    assert found.interval.high == pytest.approx(mean.interval.high, abs=2e-3)
    assert found.p == pytest.approx(mean.p, rel=0.3) and (found.test, found.wins) == ("halves", 0)
    alike = drawn_difference(0.0, half_means(easy), half_means(easy))
    assert alike.p == 1.0 and alike.interval == Interval(0.0, 0.0, 0.0)


def test_no_difference_is_found_where_there_is_none():
    """p values below 0.05 come in about one of twenty trials."""
    rng = np.random.default_rng(7)
    rare = sum(
        paired(rng.random(60).tolist(), rng.random(60).tolist(), draws=300, seed=n).p < 0.05
        for n in range(200)
    )
    assert rare / 200 <= 0.11, rare


def test_no_samples_have_no_mean():
    with pytest.raises(ValueError, match="no sample"):
        mean_interval([])
    with pytest.raises(ValueError, match="2 and of 1"):
        paired([1.0, 0.0], [1.0])


def test_equal_values_are_no_certainty():
    """No failure in n throws leaves a rate of p possible as long as (1 - p)^n is 2.5 %."""
    all_right = share_interval([1.0] * 40)
    assert (all_right.value, all_right.high) == (1.0, 1.0)
    assert all_right.low**40 == pytest.approx(0.025)
    assert share_interval([1.0] * 40, [n // 5 for n in range(40)]).low ** 8 == pytest.approx(0.025)
    assert share_interval([0.0] * 40).high == pytest.approx(1 - all_right.low)
    some = [1.0] * 39 + [0.5]
    assert share_interval(some) == mean_interval(some)
