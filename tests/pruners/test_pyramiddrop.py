"""PyramidDrop: its counts against the published ones, its choice against a reference."""

from dataclasses import replace

import pytest
import torch

from tests.pruners.test_fastv import advanced, flat, reference, stage_of
from trimtok_cli.errors import UsageError
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.methods.pyramiddrop import PyramidDrop, pyramid_counts

LAYERS = (2, 8, 16)


def mean(n: int, counts, layers=LAYERS, num_layers: int = 32) -> float:
    """Visual tokens of every layer, one by one."""
    each = []
    for layer in range(num_layers):
        passed = [count for count, start in zip(counts, layers, strict=True) if layer >= start]
        each.append(passed[-1] if passed else n)
    return sum(each) / num_layers


def test_published_counts():
    found = {t: pyramid_counts(576, t, LAYERS, 32, "layer-mean") for t in (192, 128, 64)}
    assert found == {192: (322, 180, 101), 128: (241, 101, 42), 64: (109, 20, 3)}
    assert round(mean(576, found[64]), 1) == 62.9
    # The published default, ratios 0.5, 0.25, 0.125 behind layers 8, 16 and 24, in both ways of
    # counting.
    assert pyramid_counts(576, 72, (8, 16, 24), 32) == (288, 144, 72)
    assert pyramid_counts(576, 270, (8, 16, 24), 32, "layer-mean") == (288, 144, 72)
    assert mean(576, (288, 144, 72), (8, 16, 24)) == 270
    with pytest.raises(ValueError, match="keep 144 or more"):
        pyramid_counts(576, 143, (8, 16, 24), 32, "layer-mean")


@pytest.mark.parametrize("n", [1, 2, 5, 40, 144, 576, 2880])
def test_final_leaves_the_target_behind_the_last_stage(n):
    for layers in ((1,), (1, 2), (1, 2, 3), LAYERS):
        for target in {1, 2, 3, n // 3, n // 2, n - 1, n, n + 5} - {0, -1}:
            counts = pyramid_counts(n, target, layers, 32)
            assert (
                counts[-1] == min(target, n)
                and [*counts] == sorted(counts, reverse=True)
                and counts[0] <= n
            )
            if target < n:
                for stage, count in enumerate(counts[:-1], 1):
                    exact = n * (target / n) ** (stage / len(layers))
                    assert count == max(int(exact + 1e-9), target)


@pytest.mark.parametrize("n", [2, 5, 40, 576, 2880])
def test_layer_mean_has_the_best_lambda_of_two_digits(n):
    for layers, num_layers in ((LAYERS, 32), ((2, 9, 18), 36), ((1, 2, 3), 4)):
        targets = range(-(-layers[0] * n // num_layers), n, max(n // 20, 1))
        assert targets
        for target in targets:
            counts = pyramid_counts(n, target, layers, num_layers, "layer-mean")
            every = [tuple(max(n * j**i // 100**i, 1) for i in (1, 2, 3)) for j in range(101)]

            def off(c):
                return abs(mean(n, c, layers, num_layers) - target)  # noqa: B023

            assert counts in every and off(counts) == min(map(off, every))
            assert n < 576 or off(counts) <= 0.02 * n


@pytest.mark.parametrize("sizes", [(1,), (12,), (100,), (9, 31)])
@pytest.mark.parametrize("keep", [Budget(tokens=1), Budget(tokens=7), Budget(share=0.3), Budget()])
def test_each_stage_ranks_by_the_coming_layer(sizes, keep):
    pruner = PyramidDrop(keep)
    assert (
        pruner.stages(4) == (1, 2, 3)
        and pruner.stages(32) == LAYERS
        and pruner.stages(40) == (3, 10, 20)
    )
    stage = stage_of(sizes, layer=1)
    for number in range(3):
        counts = [pyramid_counts(n, keep.count(n), (1, 2, 3), 4)[number] for n in sizes]
        selection = pruner.select(stage)
        assert (
            selection.kept.tolist() == reference(stage, stage.layer, counts)
            and selection.extra is None
        )
        assert pruner.select_many([stage, stage])[1].kept.tolist() == selection.kept.tolist()
        stage = advanced(stage, selection, stage.layer + 1, seed=number)
    assert [len(rows) for rows in stage.images()] == [keep.count(n) for n in sizes]


@pytest.mark.parametrize("budget", ["equal", "tokens", "diversity"])
def test_images_share_by_their_dense_tokens_at_every_stage(budget):
    pruner, stage = PyramidDrop(Budget(tokens=6), budget), stage_of((30, 12), layer=1)
    want = [count for _, count in pruner.image_budgets(replace(stage, hidden=stage.prompt.embeds))]
    for _ in range(3):
        stage = advanced(stage, pruner.select(stage), stage.layer + 1)
    assert [len(rows) for rows in stage.images()] == want and sum(want) == 12


def test_layer_mean_over_a_whole_run():
    pruner, stage, alive = (
        PyramidDrop(Budget(tokens=40), counts="layer-mean"),
        stage_of((100,), layer=1),
        [100],
    )
    for _ in range(3):
        stage = advanced(stage, pruner.select(stage), stage.layer + 1)
        alive.append(len(stage.prompt.visual))
    assert abs(sum(alive) / 4 - 40) < 1 and alive == [
        100,
        *pyramid_counts(100, 40, (1, 2, 3), 4, "layer-mean"),
    ]
    with pytest.raises(
        UsageError, match=r"pyramiddrop: a mean of 20 tokens over 4 layers is out of reach.*keep 25"
    ):
        PyramidDrop(Budget(tokens=20), counts="layer-mean").select(stage_of((100,), layer=1))


def test_stages_that_deepstack_delays_fall_together():
    stage = stage_of((50,), layer=3, num_layers=4)
    delayed = replace(stage, prompt=replace(stage.prompt, deepstack=torch.zeros(3, 50, 8)))
    assert len(PyramidDrop(Budget(tokens=5)).select(delayed).kept) == 5
    # All three layers in front see everything, so the last one alone must bring the mean down: none
    # is low enough here.
    assert len(PyramidDrop(Budget(tokens=40), counts="layer-mean").select(delayed).kept) == 10


def test_ties_go_to_the_lowest_index():
    assert PyramidDrop(Budget(tokens=2)).select(flat(stage_of((16, 9), layer=3))).kept.tolist() == [
        0,
        1,
        16,
        17,
    ]


def test_counts_is_one_of_two():
    with pytest.raises(ValueError, match="counts must be one of final, layer-mean"):
        PyramidDrop(counts="exact")
