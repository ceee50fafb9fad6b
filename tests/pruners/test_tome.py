"""ToMe's matching and merging against the published code's vectors and its rules written out, and
the projected variant.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pruners.test_visionzip import clustered, stage_of
from trimtok_cli.pruners.base import Stage
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.methods.tome import (
    ToMe,
    ToMeProjected,
    lowest,
    merge,
    merge_down,
    parse_r,
    r_schedule,
    step,
)

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = sorted(FOLDER.glob("tome_N*.npz"))


def reference(metric, values, size, r, protected):
    """One step, token by token, in float64: groups of places, in the order of the result, and their
    means and sizes.
    """
    unit = metric / np.maximum(np.linalg.norm(metric, axis=1, keepdims=True), 1e-30)
    a, b = list(range(0, len(metric), 2)), list(range(1, len(metric), 2))
    r = max(min(r, (len(metric) - protected) // 2), 0)
    like = {
        i: [
            -np.inf if i < protected or j < protected else np.round(unit[i] @ unit[j], 12)
            for j in b
        ]
        for i in a
    }
    order = sorted(a, key=lambda i: (-max(like[i], default=0), i))
    into = {j: [j] for j in b}
    for i in order[:r]:
        into[b[int(np.argmax(like[i]))]].append(i)
    alone = sorted(order[r:]) if protected else order[r:]
    groups = [[i] for i in alone] + [into[j] for j in b]
    sizes = np.array([size[g].sum() for g in groups])
    return (
        groups,
        np.stack([(values[g] * size[g][:, None]).sum(0) for g in groups]) / sizes[:, None],
        sizes,
    )


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_vectors(path):
    assert len(GOLDEN) == 4
    data = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    for name in [n for n in data if n.startswith("src_idx")]:
        kind, r = name.split("_")[2], int(name.split("_r")[1])
        metric, values = data[f"metric_{kind}"], data[f"x_{kind}"]
        found = step(metric, r, protected=int(kind == "cls"))
        assert found.src.shape[1] == int(data[f"r_effective_{kind}_r{r}"])
        assert (found.src // 2).tolist() == data[name].tolist()
        assert (found.dst // 2).tolist() == data[f"dst_idx_{kind}_r{r}"].flatten(1).tolist()
        assert (found.unmerged // 2).tolist() == data[f"unm_idx_{kind}_r{r}"].tolist()
        merged, size = merge(values, torch.ones(values.shape[:2]), found)
        assert torch.allclose(merged, data[f"merged_wavg_{kind}_r{r}"], atol=1e-5)
        assert torch.equal(size[..., None], data[f"size_{kind}_r{r}"])
        if f"merged_mean_mode_{kind}_r{r}" in data:
            assert torch.allclose(merged, data[f"merged_mean_mode_{kind}_r{r}"], atol=1e-5)


def test_golden_schedules():
    data = np.load(FOLDER / "tome_parse_r.npz")
    given = {
        "L24_r16": 16,
        "L24_r16_m1": (16, -1),
        "L24_r16_p1": (16, 1),
        "L12_r8": 8,
        "L12_r8_m1": (8, -1),
    }
    for name, r in given.items():
        assert parse_r(int(name[1:3]), r) == data[name].tolist(), name
    short = data["L24_list3"].tolist()
    assert parse_r(24, short[:3]) == short and parse_r(1, (4, 1.0)) == [0]


def test_schedules_of_exact_budgets():
    assert r_schedule(576, 192, 23) == [16] * 7 + [17] * 16
    assert r_schedule(576, 128, 23) == [19] * 12 + [20] * 11
    assert r_schedule(576, 64, 23) == [22] * 17 + [23] * 6
    assert r_schedule(10, 99, 3) == [0, 0, 0]
    for n, keep, layers in [(576, 10, 23), (20, 5, 2), (17, 1, 5), (64, 1, 6), (30, 7, 3)]:
        total = n
        for r in r_schedule(n, keep, layers):
            assert 0 <= r <= total // 2
            total -= r
        assert total == keep
    with pytest.raises(ValueError, match="at best halve"):
        r_schedule(576, 64, 3)
    with pytest.raises(ValueError, match="at least 1"):
        r_schedule(576, 0, 3)


@pytest.mark.parametrize("kind", ["random", "clustered", "signs"])
@pytest.mark.parametrize("protected", [0, 1, 2])
@pytest.mark.parametrize(
    ("n", "r"), [(1, 3), (2, 1), (3, 1), (9, 2), (40, 13), (41, 99), (41, 0), (64, -2)]
)
def test_equals_the_reference_rules_in_batches(kind, protected, n, r):
    metric = torch.stack([clustered(n, 12, seed, kind) for seed in range(3)])
    values = torch.stack([clustered(n, 5, 9 + seed) for seed in range(3)])
    size = torch.randint(1, 5, (3, n), generator=torch.Generator().manual_seed(n)).float()
    found = step(metric, r, protected)
    merged, sizes = merge(values, size, found)
    first = lowest(torch.arange(n).expand(3, -1), found)
    for i in range(3):
        groups, want, total = reference(
            metric[i].double().numpy(),
            values[i].double().numpy(),
            size[i].double().numpy(),
            r,
            protected,
        )
        assert np.allclose(want, merged[i], atol=1e-5) and sizes[i].tolist() == total.tolist()
        assert first[i].tolist() == [min(g) for g in groups]
        assert all(found.source[i, g].tolist() == [row] * len(g) for row, g in enumerate(groups))
        single = step(metric[i], r, protected)
        assert single.src.tolist() == found.src[i].tolist() and torch.allclose(
            merge(values[i], size[i], single)[0], merged[i]
        )
    for token in range(min(protected, n)):
        assert torch.equal(merged[torch.arange(3), found.source[:, token]], values[:, token])


def test_down_to_the_budget_every_token_counts_once():
    for n, keep in [(1, 1), (2, 1), (37, 5), (96, 11), (96, 48), (20, 33)]:
        x = torch.stack([clustered(n, 8, seed) for seed in range(2)])
        index, values, size = merge_down(x, keep)
        assert (
            index.shape == size.shape == (2, min(keep, n))
            and (index.diff(dim=1) > 0).all()
            and (index[:, 0] == 0).all()
        )
        assert (size.sum(1) == n).all() and torch.allclose(
            (values * size[..., None]).sum(1), x.sum(1), atol=1e-3
        )
        if keep >= n:
            assert torch.equal(values, x)
    sizes = []
    total = 576
    while total > 64:
        sizes.append(min(total // 2, total - 64))
        total -= sizes[-1]
    assert sizes == [288, 144, 72, 8]


def test_down_to_the_budget_equals_the_reference_steps():
    x = clustered(50, 8, 4)
    values, size, first = x.double().numpy(), np.ones(50), list(range(50))
    while len(values) > 9:
        groups, new, total = reference(values, values, size, len(values) - 9, 0)
        first = [min(first[i] for i in g) for g in groups]
        values, size = new, total
    index, got, count = merge_down(x, 9)
    order = np.argsort(first)
    assert (
        index.tolist() == sorted(first)
        and np.allclose(values[order], got, atol=1e-5)
        and count.tolist() == size[order].tolist()
    )


@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("sizes", [[1], [30], [9, 40, 1]])
@pytest.mark.parametrize(
    "keep", [Budget(tokens=1), Budget(tokens=8), Budget(share=0.4), Budget(tokens=99), Budget()]
)
def test_invariants(sizes, keep, duplicates):
    stage, pruner = stage_of(sizes, duplicates=duplicates, offers=()), ToMeProjected(keep)
    first, again = pruner.select(stage), pruner.select_many([stage, stage])[1]
    assert (
        first.kept.tolist() == again.kept.tolist() == sorted(set(first.kept.tolist()))
        and first.extra is None
    )
    owner = stage.tokens.visual_index[first.kept]
    assert [int((owner == i).sum()) for i in range(len(sizes))] == [
        keep.count(size) for size in sizes
    ]
    if first.embeds is not None:
        assert torch.equal(first.embeds, again.embeds) and first.embeds.isfinite().all()
        start = 0
        for number, size in enumerate(sizes):
            index, values, _ = merge_down(
                stage.visual_embeds[start : start + size], keep.count(size)
            )
            assert (first.kept[owner == number] - start).tolist() == index.tolist() and torch.equal(
                first.embeds[owner == number], values
            )
            start += size
    assert torch.equal(stage.visual_embeds, stage.tokens.embeds), "the prompt was written into"


def test_tokens_without_a_place_are_dropped_but_count():
    blank = (5, 11, 17, 23)
    chosen = ToMeProjected(Budget(share=0.5)).select(stage_of([24], blank=blank))
    assert len(chosen.kept) == 12 and not set(chosen.kept.tolist()) & set(blank)


def test_nonsense_zeros_and_half_precision():
    with pytest.raises(ValueError, match="must be"):
        step(torch.randn(4), 1)
    with pytest.raises(ValueError, match="protected"):
        step(torch.randn(4, 3), 1, -1)
    with pytest.raises(ValueError, match="keep must be"):
        merge_down(torch.randn(4, 3), 0)
    assert merge_down(torch.zeros(9, 4), 3)[1].isfinite().all()
    x = clustered(40, 8, 0).half()
    half, full = merge_down(x, 7), merge_down(x.float(), 7)
    assert (
        all(torch.equal(a, b) for a, b in zip(half, full, strict=True))
        and half[1].dtype == torch.float32
    )


def test_no_value_leaves_the_device():
    index, values, size = merge_down(torch.empty(2, 50, 8, device="meta"), 7)
    assert (index.shape, values.shape, size.shape) == ((2, 7), (2, 7, 8), (2, 7))


@torch.inference_mode()
@pytest.mark.parametrize("proportional", [True, False])
def test_in_the_tower_it_equals_a_loop_written_out(tmp_path, proportional):
    """One image, two layers of a real CLIP: matching by hand on Python numbers, between attention
    and MLP.
    """
    from tests.conftest import picture
    from tests.support import tiny
    from trimtok_cli.models.loading import load_model

    adapter = load_model(str(tiny.llava(tmp_path / "m")), device="cpu")
    inputs = adapter.prepare([picture(3)], "?")
    tokens = adapter.encode_many([inputs])[0]
    prompt = adapter.embed(inputs, tokens)
    found = ToMe(Budget(tokens=20), proportional=proportional).select(
        Stage(0, prompt.embeds, prompt, tokens)
    )
    layers = adapter.model.model.vision_tower.encoder.layers[:2]
    hidden, groups = tokens.signals.blocks.hidden[0], [[i] for i in range(37)]
    for layer, r in zip(layers, r_schedule(36, 20, 2), strict=True):
        normed, attn = layer.layer_norm1(hidden), layer.self_attn

        def split(x, h=attn):
            return x.unflatten(-1, (-1, h.head_dim)).transpose(0, 1)

        scores = split(attn.q_proj(normed)) @ split(attn.k_proj(normed)).mT * attn.head_dim**-0.5
        if proportional:
            scores = scores + torch.tensor([len(g) for g in groups]).log()
        hidden = hidden + attn.out_proj(
            (scores.softmax(-1) @ split(attn.v_proj(normed))).transpose(0, 1).flatten(1)
        )
        unit = torch.nn.functional.normalize(
            attn.k_proj(normed).unflatten(-1, (-1, attn.head_dim)).mean(1), dim=-1
        )
        pairs = [
            (max((float(unit[a] @ unit[b]), -b) for b in range(1, len(unit), 2)), a)
            for a in range(2, len(unit), 2)
        ]
        goes = {
            a: -best[1] for best, a in sorted(pairs, key=lambda pair: (-pair[0][0], pair[1]))[:r]
        }
        rows = []
        order = [a for a in range(0, len(unit), 2) if a not in goes] + list(range(1, len(unit), 2))
        for place in order:
            members = [place, *(a for a, b in goes.items() if b == place)]
            weight = [len(groups[m]) for m in members]
            rows.append(
                (
                    sum(hidden[m] * w for m, w in zip(members, weight, strict=True)) / sum(weight),
                    [source for m in members for source in groups[m]],
                )
            )
        groups = [sources for _, sources in rows]
        hidden = torch.stack([value for value, _ in rows])
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    want = sorted(
        (min(group) - 1, adapter.project(hidden[i])) for i, group in enumerate(groups) if min(group)
    )
    assert found.kept.tolist() == [place for place, _ in want] and len(found.kept) == 20
    assert (found.embeds - torch.stack([value for _, value in want])).abs().max() < 1e-4
