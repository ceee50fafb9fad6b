"""SparseVLM against the published code's stored results and against the formulas, written out
in float64.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pruners.test_fastv import HEADS, WIDTH, advanced, flat, stage_of
from trimtok_cli.pruners.base import top_places
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.methods.sparsevlm import (
    SparseVLM,
    clusters,
    merged,
    rater_score,
    recycle,
    stage_aims,
    stage_counts,
    text_raters,
)

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("sparsevlm_layer2_*.npz"))


def reference_raters(visual: np.ndarray, text: np.ndarray) -> list[int]:
    mean = np.zeros(len(text))
    for v in visual.astype(np.float64):
        e = np.exp(
            [v @ t for t in text.astype(np.float64)] - max(v @ t for t in text.astype(np.float64))
        )
        mean += e / e.sum() / len(visual)
    return [i for i, m in enumerate(mean) if m > mean.mean() + 1e-12] or list(range(len(text)))


def reference_merged(tokens: np.ndarray, count: int) -> np.ndarray:
    """DPC-KNN, pair by pair."""
    x, n = tokens.astype(np.float64), len(tokens)
    d = [[float(np.linalg.norm(a - b)) / x.shape[1] ** 0.5 for b in x] for a in x]
    density = [float(np.exp(-np.mean([each**2 for each in sorted(row)[:count]]))) for row in d]
    largest, worth = max(map(max, d)), []
    for i in range(n):
        denser = [
            j for j in range(n) if density[j] > density[i] or (density[j] == density[i] and j < i)
        ]
        worth.append(density[i] * (min(d[i][j] for j in denser) if denser else largest))
    centres = sorted(range(n), key=lambda i: (-worth[i], i))[:count]
    members = [[c] for c in centres]
    for i in range(n):
        if i not in centres:
            members[min(range(count), key=lambda c: (d[centres[c]][i], c))].append(i)
    return np.array([x[each].sum(0) / (len(each) + 1e-6) for each in members])


def points(kind: str, n: int, seed: int, width: int = 16) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    if kind == "random":
        return torch.randn(n, width, generator=g)
    centres = torch.randn(5, width, generator=g)
    if kind == "clustered":
        return centres[torch.randint(5, (n,), generator=g)] + 0.5 * torch.randn(
            n, width, generator=g
        )
    few = torch.randn(max(n // 3, 1), width, generator=g)
    return few[torch.randint(len(few), (n,), generator=g)]


def sparsevlm_counts(num_dense: int, target: int, counts: str = "final") -> list[tuple[int, int]]:
    """(kept, merged) of the three stages.

    576 tokens with layer-mean 192: (300, 9), (200, 4), (110, 3).
    """
    stages = []
    current = num_dense
    for aim in stage_aims(num_dense, target, counts):
        stages.append(stage_counts(current, aim, counts))
        current = sum(stages[-1])
    return stages


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_vectors(path):
    assert len(GOLDEN) == 2
    data = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    embeds, outputs = data["hidden_in"][0], data["layer_out_visual"][0]
    raters = text_raters(embeds[35:611], embeds[611:])
    assert raters.tolist() == data["text_rater_idx"].tolist()
    score = rater_score(data["attn_text_to_visual"][:, raters])
    assert torch.allclose(score, data["relation"][0], atol=1e-7)
    places = torch.arange(576)
    for budget in (192, 128, 64):
        kept, added = sparsevlm_counts(576, budget, "layer-mean")[0]
        chosen = top_places(score, [(places, kept)])
        assert torch.equal(chosen, data[f"keep_mask_{budget}"][0].nonzero()[:, 0])
        assert added == int(data[f"cluster_num_{budget}"])
        rest = places[~torch.isin(places, chosen)]
        order = data[f"stage2_in_pruned_{budget}"]
        assert torch.allclose(
            merged(outputs[rest][order], added), data[f"merged_{budget}"][0], atol=1e-5
        )
        assert torch.allclose(
            recycle(outputs[rest], score[rest], added), data[f"merged_{budget}"][0], atol=1e-5
        )


def test_published_counts():
    assert sparsevlm_counts(576, 192, "layer-mean") == [(300, 9), (200, 4), (110, 3)]
    assert sparsevlm_counts(576, 128, "layer-mean") == [(303, 9), (110, 7), (36, 3)]
    assert sparsevlm_counts(576, 96, "layer-mean") == [(238, 11), (48, 7), (26, 1)]
    assert sparsevlm_counts(576, 64, "layer-mean") == [(66, 16), (30, 2), (17, 1)]
    for budget, official in ((192, 192.0), (128, 128.6), (96, 96.9), (64, 64.8)):
        first, second, third = (sum(pair) for pair in sparsevlm_counts(576, budget, "layer-mean"))
        assert (2 * 576 + 4 * first + 9 * second + 17 * third) / 32 == pytest.approx(
            official, abs=0.05
        )
        # What the last stage leaves names the same list from the other end.
        assert stage_aims(576, third) == (first, second, third)
        assert sparsevlm_counts(576, third)[-1] == sparsevlm_counts(576, budget, "layer-mean")[-1]
    assert stage_aims(2880, 640, "layer-mean") == (1515, 550, 180)
    assert stage_aims(576, 160, "layer-mean") == (302, 155, 73), "half way between two lists"


def test_final_leaves_exactly_the_target():
    for n in (1, 2, 3, 7, 40, 144, 576, 2880):
        for target in {1, 2, 3, 10, n // 4, n // 2, n - 1, n, n + 3} - {0, -1}:
            current, found = n, sparsevlm_counts(n, target)
            for kept, added in found:
                assert (
                    kept >= 1
                    and 0 <= added <= max(clusters(current, kept), 0)
                    and kept + added <= current
                )
                current = kept + added
            assert current == min(target, n)
            current = n
            for kept, added in sparsevlm_counts(n, target, "layer-mean"):
                assert (
                    1 <= kept <= current
                    and added == clusters(current, kept)
                    and kept + added <= current
                )
                current = kept + added
    assert (
        stage_counts(10, 10) == (10, 0)
        and stage_counts(10, 9) == (8, 1)
        and stage_counts(10, 1) == (1, 0)
    )


@pytest.mark.parametrize("kind", ["random", "clustered", "duplicated"])
@pytest.mark.parametrize("n", [1, 2, 11, 40, 83])
def test_clusters_equal_the_reference_ones(kind, n):
    for seed in range(3):
        x = points(kind, n, 10 * n + seed)
        for count in sorted({0, 1, n // 10 + 1, n // 2, n}):
            found = merged(x, count)
            assert found.shape == (count, 16) and found.dtype == torch.float32
            want = reference_merged(x.numpy(), count) if count else np.zeros((0, 16))
            assert np.allclose(found.numpy(), want, atol=1e-5)
    for bad in (-1, n + 1):
        with pytest.raises(ValueError, match="cannot be merged"):
            merged(x, bad)


def test_equal_and_zero_tokens():
    assert torch.allclose(merged(torch.ones(9, 4), 3), torch.ones(3, 4), atol=1e-5)
    assert torch.equal(merged(torch.zeros(9, 4), 2), torch.zeros(2, 4))
    far = merged(points("random", 30, 0) * 1e6, 4)
    assert far.isfinite().all(), "all densities underflow"
    assert torch.allclose(
        merged(points("random", 30, 0).bfloat16(), 4),
        merged(points("random", 30, 0).bfloat16().float(), 4),
    )


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (30, 9), (144, 40)])
def test_raters_equal_the_reference_ones(n, m):
    for seed in range(4):
        visual, text = points("clustered", n, seed), points("random", m, 50 + seed)
        assert text_raters(visual, text).tolist() == reference_raters(visual.numpy(), text.numpy())
        assert (
            text_raters(visual.half(), text.half()).tolist()
            == text_raters(visual.half().float(), text.half().float()).tolist()
        )
    assert text_raters(torch.zeros(3, 4), torch.randn(5, 4)).tolist() == [0, 1, 2, 3, 4], (
        "none is above the mean: all rate"
    )
    for visual, text in (
        (torch.zeros(0, 4), torch.zeros(2, 4)),
        (torch.zeros(2, 4), torch.zeros(2, 5)),
        (torch.zeros(4), torch.zeros(4)),
    ):
        with pytest.raises(ValueError, match="visual must be"):
            text_raters(visual, text)


def reference_choice(stage, kept: int, added: int) -> tuple[list[int], np.ndarray]:
    visual, prompt = stage.prompt.visual.tolist(), stage.prompt
    words = [row for row in range(len(stage.hidden)) if row not in visual and row > visual[0]]
    raters = [
        words[i]
        for i in reference_raters(stage.tokens.embeds.numpy(), prompt.embeds[words].numpy())
    ]
    each = stage.attention(torch.tensor(raters), stage.layer - 1).double().numpy()
    score = [each[:, :, row].mean() for row in visual]
    order = sorted(range(len(visual)), key=lambda i: (-score[i], i))
    chosen, pruned = sorted(order[:kept]), order[kept:]
    again = stage.hidden[[visual[i] for i in pruned[: int(0.3 * len(pruned)) + 1]]].numpy()
    return chosen, reference_merged(again, added)


@pytest.mark.parametrize("counts", ["final", "layer-mean"])
@pytest.mark.parametrize("sizes", [(30,), (144,), (40, 25)])
@pytest.mark.parametrize("keep", [Budget(tokens=6), Budget(share=0.4)])
def test_three_stages_equal_the_reference_ones(counts, sizes, keep):
    pruner, stage = SparseVLM(keep, counts=counts), stage_of(sizes, layer=1, seed=2)
    assert (
        pruner.stages(4) == (1, 2, 3)
        and pruner.stages(32) == (3, 7, 16)
        and pruner.stages(40) == (4, 9, 20)
    )
    for kept, added in sparsevlm_counts(sum(sizes), sum(keep.count(n) for n in sizes), counts):
        before = stage.hidden.clone()
        selection = pruner.select(stage)
        chosen, extra = reference_choice(stage, kept, added)
        assert selection.kept.tolist() == chosen and len(extra) == added
        assert (selection.extra is None) == (not added)
        assert not added or np.allclose(selection.extra.numpy(), extra, atol=1e-5)
        assert torch.equal(stage.hidden, before)
        twice = pruner.select_many([stage, stage_of((50,), layer=1), stage])
        assert all(torch.equal(each.kept, selection.kept) for each in (twice[0], twice[2]))
        assert not added or torch.equal(twice[2].extra, selection.extra)
        stage = advanced(stage, selection, stage.layer + 1, seed=kept)
        assert len(stage.prompt.visual) == kept + added
    if counts == "final":
        assert len(stage.prompt.visual) == sum(keep.count(n) for n in sizes)


def test_a_single_token_and_a_budget_that_is_not_below():
    for sizes, keep in (((1,), 1), ((1,), 64), ((20,), 20), ((20, 5), 64)):
        for counts in ("final", "layer-mean"):
            selection = SparseVLM(Budget(tokens=keep), counts=counts).select(
                stage_of(sizes, layer=1)
            )
            assert selection.kept.tolist() == list(range(sum(sizes))) and selection.extra is None


def test_ties_duplicates_and_zero_tokens():
    same = stage_of((40,), layer=3, embeds=torch.zeros(40, WIDTH))
    same = replace(same, hidden=torch.zeros_like(same.hidden))
    selection = SparseVLM(Budget(tokens=8)).select(flat(same))
    assert len(selection.kept) + len(selection.extra) == 8 and selection.kept.tolist() == list(
        range(len(selection.kept))
    )
    assert torch.equal(selection.extra, torch.zeros_like(selection.extra))


def test_words_in_front_of_the_image_rate_only_where_none_is_behind():
    stage, asked = stage_of((20,), layer=3, text=1), []

    def attention(rows, layer):
        asked.append((rows.tolist(), layer))
        return torch.ones(HEADS, len(rows), len(stage.hidden)) / len(stage.hidden)

    SparseVLM(Budget(tokens=5)).select(replace(stage, attention=attention))
    assert asked == [([22], 2)], "the words behind, in the layer that has just run"
    at_end = replace(stage.prompt, embeds=stage.prompt.embeds[:22], instruction=torch.arange(2))
    SparseVLM(Budget(tokens=5)).select(
        replace(stage, attention=attention, prompt=at_end, hidden=stage.hidden[:22])
    )
    assert set(asked[1][0]) <= {0, 1}


def test_stages_that_deepstack_delays_fall_together():
    stage = stage_of((50,), layer=3)
    delayed = replace(stage, prompt=replace(stage.prompt, deepstack=torch.zeros(3, 50, WIDTH)))
    selection = SparseVLM(Budget(tokens=9)).select(delayed)
    assert len(selection.kept) + len(selection.extra) == 9


def test_counts_is_one_of_two():
    with pytest.raises(ValueError, match="counts must be one of final, layer-mean"):
        SparseVLM(counts="exact")
