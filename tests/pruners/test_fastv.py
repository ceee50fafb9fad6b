"""FastV on hand-made stages, and the hand-made stages of every method that prunes inside the
language model.
"""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from trimtok_cli.errors import UsageError
from trimtok_cli.pruners.base import Stage
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.layerwise import scaled_layers
from trimtok_cli.pruners.methods.fastv import FastV, fastv_kept
from trimtok_cli.tokens import Prompt, Selection, VisualTokens

HEADS, WIDTH = 3, 8


def attention_of(length: int, seed: int):
    """A stub: seeded causal attention, different in each layer; None of it depends on the hidden
    states.
    """

    def attention(rows: torch.Tensor, layer: int) -> torch.Tensor:
        scores = (
            torch.randn(
                HEADS, length, length, generator=torch.Generator().manual_seed(1000 * seed + layer)
            )
            * 3
        )
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        return scores.masked_fill(hidden, -torch.inf).softmax(-1)[:, rows]

    return attention


def stage_of(
    sizes: Sequence[int] = (12,),
    *,
    layer: int = 1,
    num_layers: int = 4,
    seed: int = 0,
    text: int = 5,
    embeds=None,
    attention=None,
) -> Stage:
    """Rows: 2 of text, then each image's tokens with a row of text behind it, then the rest of
    `text`.
    """
    g = torch.Generator().manual_seed(seed)
    visual, row = [], 2
    for size in sizes:
        visual += range(row, row + size)
        row += size + 1
    length, count = row - 1 + text, sum(sizes)
    visual_rows = torch.tensor(visual, dtype=torch.long)
    first = torch.randn(length, WIDTH, generator=g)
    if embeds is not None:
        first[visual_rows] = embeds
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    tokens = VisualTokens(first[visual_rows], owner, torch.zeros(count, 4))
    prompt = Prompt(
        first,
        torch.arange(length),
        visual_rows,
        torch.arange(count),
        torch.arange(length - text, length),
    )
    hidden = first + torch.randn(length, WIDTH, generator=g)
    return Stage(
        layer,
        hidden,
        prompt,
        tokens,
        attention or attention_of(length, seed),
        num_layers=num_layers,
    )


def advanced(stage: Stage, selection: Selection, layer: int, seed: int = 7) -> Stage:
    """The next stage: what `selection` left, with other attention."""
    dense = len(stage.tokens)
    hidden = (
        replace(stage.prompt, embeds=stage.hidden)
        .reduced(selection, num_dense=dense, renumber=True)
        .embeds
    )
    prompt = stage.prompt.reduced(selection, num_dense=dense, renumber=True)
    return Stage(
        layer,
        hidden,
        prompt,
        stage.tokens,
        attention_of(len(hidden), seed),
        num_layers=stage.num_layers,
    )


def flat(stage: Stage) -> Stage:
    """The same stage where every row attends to all rows alike: only ties."""
    length = len(stage.hidden)
    return replace(
        stage, attention=lambda rows, layer: torch.full((HEADS, len(rows), length), 1 / length)
    )


def reference(stage: Stage, layer: int, counts: Sequence[int]) -> list[int]:
    """Head by head, token by token, image by image."""
    each = stage.attention(torch.tensor([len(stage.hidden) - 1]), layer)
    score = [
        sum(float(each[h, 0, row]) for h in range(HEADS)) / HEADS
        for row in stage.prompt.visual.tolist()
    ]
    kept = []
    for rows, count in zip(stage.images(), counts, strict=True):
        kept += sorted(rows.tolist(), key=lambda i: (-score[i], i))[:count]
    return sorted(kept)


@pytest.mark.parametrize("sizes", [(1,), (12,), (144,), (9, 31), (5, 1, 40)])
@pytest.mark.parametrize("keep", [Budget(tokens=1), Budget(tokens=7), Budget(share=0.3), Budget()])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_keeps_what_the_last_row_of_the_layer_before_attends_to(sizes, keep, layer):
    for seed in range(3):
        stage = stage_of(sizes, layer=layer, seed=seed)
        selection = FastV(keep, layer=layer).select(stage)
        assert selection.kept.tolist() == reference(
            stage, layer - 1, [keep.count(n) for n in sizes]
        )
        assert (
            selection.extra is None
            and selection.embeds is None
            and selection.kept.dtype == torch.int64
        )
    if keep.tokens == 7 and max(sizes) > 30:
        assert selection.kept.tolist() != reference(stage, layer, [keep.count(n) for n in sizes]), (
            "the layers do not differ"
        )


def test_published_counts():
    assert [fastv_kept(576, t, 2, 32, "layer-mean") for t in (192, 128, 64)] == [166, 98, 30]
    assert [fastv_kept(576, t, 3, 32, "layer-mean") for t in (192, 128, 64)] == [152, 82, 11]
    assert [fastv_kept(576, t, 2, 32) for t in (192, 128, 64, 600)] == [192, 128, 64, 576]
    assert fastv_kept(2880, 640, 2, 32, "layer-mean") == 491
    assert (
        fastv_kept(576, 36, 2, 32, "layer-mean") == 1 and fastv_kept(5, 9, 2, 32, "layer-mean") == 5
    )


@pytest.mark.parametrize("n", [2, 7, 100, 576, 2880])
def test_layer_mean_is_the_nearest_whole_number(n):
    for num_layers, layer in ((4, 1), (24, 2), (32, 3), (40, 2)):
        targets = range(-(-layer * n // num_layers), n, max(n // 50, 1))
        assert targets
        for target in targets:
            kept = fastv_kept(n, target, layer, num_layers, "layer-mean")

            def off(k):
                return abs(layer * n + (num_layers - layer) * k - target * num_layers)  # noqa: B023

            assert 1 <= kept <= n and off(kept) == min(off(k) for k in range(1, n + 1))


def test_layer_mean_counts_from_where_the_stage_really_is():
    stage = stage_of((40,), layer=2, num_layers=4)
    assert (
        len(FastV(Budget(tokens=24), counts="layer-mean").select(stage).kept) == 8
    )  # (2 * 40 + 2 * 8) / 4 = 24
    assert (
        len(FastV(Budget(tokens=24), counts="layer-mean").select(replace(stage, layer=1)).kept)
        == 19
    )
    with pytest.raises(
        UsageError,
        match=r"fastv: a mean of 9 tokens over 4 layers is out of reach.*keep 10 or more.*final",
    ):
        FastV(Budget(tokens=9), counts="layer-mean").select(replace(stage, layer=1))


def test_layers_at_other_depths():
    assert [FastV().stages(n) for n in (1, 2, 4, 12, 23, 24, 32, 40, 80)] == [
        (),
        *[(1,)] * 4,
        *[(2,)] * 4,
    ]
    assert scaled_layers((3, 7, 16), 32) == (3, 7, 16) and scaled_layers((2, 8, 16), 40) == (
        3,
        10,
        20,
    )
    assert scaled_layers((2, 8, 16), 4) == scaled_layers((3, 7, 16), 4) == (1, 2, 3)
    for published in ((2,), (2, 8, 16), (3, 7, 16), (15,), (8, 16, 24)):
        for depth in range(1, 100):
            layers = scaled_layers(published, depth)
            assert len(layers) == min(len(published), depth - 1) and sorted(set(layers)) == list(
                layers
            )
            assert all(1 <= layer < depth for layer in layers)


def test_one_budget_per_image_from_the_dense_counts():
    stage = stage_of((20, 10), layer=2)
    for budget, want in (("equal", [6, 6]), ("tokens", [8, 4])):
        pruner = FastV(Budget(tokens=6), budget)
        kept = pruner.select(stage).kept
        assert [int((kept < 20).sum()), int((kept >= 20).sum())] == want
        later = advanced(stage, Selection(torch.arange(1, 30, 2)), 3)  # half of them are gone
        kept = pruner.select(later).kept
        assert [int((kept < 10).sum()), int((kept >= 10).sum())] == [
            min(want[0], 10),
            min(want[1], 5),
        ]
        gone = advanced(stage, Selection(torch.arange(20, 30)), 3)  # the first image is gone
        assert len(pruner.select(gone).kept) == want[1]
    assert len(FastV(Budget(tokens=6), "diversity").select(stage).kept) == 12


def test_ties_go_to_the_lowest_index_and_nothing_is_remembered():
    stage, pruner = flat(stage_of((9, 4))), FastV(Budget(tokens=3))
    assert pruner.select(stage).kept.tolist() == [0, 1, 2, 9, 10, 11]
    stages = [stage_of((n, n + 3), seed=n) for n in (1, 5, 30)]
    before = [s.hidden.clone() for s in stages]
    together = [s.kept.tolist() for s in pruner.select_many(stages)]
    assert (
        together
        == [pruner.select(s).kept.tolist() for s in stages]
        == [pruner.select(s).kept.tolist() for s in stages]
    )
    assert all(torch.equal(a, s.hidden) for a, s in zip(before, stages, strict=True))
    half = replace(
        stages[2], attention=lambda rows, layer: stages[2].attention(rows, layer).bfloat16()
    )
    assert len(pruner.select(half).kept) == 6


@pytest.mark.parametrize(
    "change", [{"layer": 0}, {"layer": -1}, {"layer": 1.5}, {"layer": True}, {"counts": "mean"}]
)
def test_nonsense_is_refused_in_a_sentence(change):
    with pytest.raises(ValueError, match=r"layer counts|counts must"):
        FastV(**change)


def test_a_layer_that_the_model_does_not_have():
    assert FastV(layer=3).stages(4) == (3,)
    with pytest.raises(
        UsageError, match="fastv: layer=4 is behind the model's last layer, it has 4"
    ):
        FastV(layer=4).stages(4)
