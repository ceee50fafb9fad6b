"""The floors: a seeded draw that knows only seed, count and number, and even spacing."""

import itertools
import math

import pytest
import torch

from tests.pruners.test_divprune import check_invariants, make_stage, samples, tokens
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.methods.baselines import Random, Uniform, random_indices, uniform_indices

SIZES = [(1, 1), (2, 1), (3, 2), (7, 7), (24, 5), (576, 64), (576, 192), (577, 576), (2880, 320)]


@pytest.mark.parametrize(("n", "keep"), SIZES)
def test_exact_unique_ascending_in_range(n, keep):
    for places in (random_indices(n, keep, seed=3, number=1), uniform_indices(n, keep)):
        assert (
            len(places) == keep
            and places == sorted(set(places))
            and places[0] >= 0
            and places[-1] < n
        )
    for more in (n, n + 1, 10 * n):
        assert random_indices(n, more) == uniform_indices(n, more) == list(range(n))


@pytest.mark.parametrize(("n", "keep"), SIZES)
def test_uniform_is_the_middle_of_equal_stretches(n, keep):
    places = uniform_indices(n, keep)
    assert places == [math.floor((i + 0.5) * n / keep + 1e-9) for i in range(keep)]
    gaps = {b - a for a, b in itertools.pairwise(places)}
    assert gaps <= {n // keep, -(-n // keep)}
    assert abs(places[0] - (n - 1 - places[-1])) <= 1, "as far from the start as from the end"


def test_random_depends_on_seed_count_and_number_alone():
    draw = random_indices(576, 64, seed=1, number=0)
    assert draw == random_indices(576, 64, seed=1, number=0)
    for other in (
        random_indices(576, 64, seed=2),
        random_indices(576, 64, seed=1, number=1),
        random_indices(577, 64, seed=1),
    ):
        assert other != draw
    assert set(draw) < set(random_indices(576, 128, seed=1)), (
        "a smaller budget is a part of a larger one"
    )
    assert random_indices(20, 5, seed=7, number=2) == [0, 1, 5, 10, 11], (
        "the same draw wherever and whenever it is made"
    )
    state = torch.random.get_rng_state()
    Random(Budget(tokens=2)).select(make_stage([tokens("random", 9, 8, 0)]))
    assert torch.equal(torch.random.get_rng_state(), state), "nobody else's draws move"


def test_random_is_fair():
    counts = torch.zeros(20)
    for seed in range(2000):
        counts[random_indices(20, 5, seed=seed)] += 1
    assert (counts - 500).abs().max() < 100  # 5 standard deviations of about 19


@pytest.mark.parametrize("kind", [Random, Uniform])
def test_the_pruners_keep_what_every_pruner_owes(kind):
    check_invariants(kind, [make_stage(images, seed=i) for i, images in enumerate(samples())])


def test_a_draw_is_the_image_s_own_whatever_stands_beside_it():
    images = [tokens("random", 30, 8, i) for i in range(3)]
    three = Random(Budget(tokens=6), seed=4).select(make_stage(images)).kept.tolist()
    want = [30 * i + place for i in range(3) for place in random_indices(30, 6, seed=4, number=i)]
    assert three == want
    assert (
        Random(Budget(tokens=6), seed=4).select(make_stage(images[1:])).kept.tolist() == want[:12]
    ), "values do not matter"
    twice = Random(Budget(tokens=6), seed=4).select_many(
        [make_stage(images), make_stage(images[2:])]
    )
    assert [s.kept.tolist() for s in twice] == [want, want[:6]]
    later = [30 * i + place for i in range(3) for place in uniform_indices(30, 6)]
    assert Uniform(Budget(tokens=6)).select(make_stage(images)).kept.tolist() == later


def test_nonsense_is_refused_in_a_sentence():
    for n, keep in ((0, 1), (5, 0)):
        for function in (random_indices, uniform_indices):
            with pytest.raises(ValueError, match="must be at least 1"):
                function(n, keep)
    for seed in ("one", 1.5, True, None):
        with pytest.raises(ValueError, match="seed must be a whole number"):
            Random(seed=seed)
