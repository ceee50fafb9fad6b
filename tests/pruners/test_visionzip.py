"""VisionZip against the published code's vectors and its rules written out, and what every pruner
owes its caller.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from trimtok_cli.errors import UsageError
from trimtok_cli.pruners.base import Stage
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.methods.visionzip import VisionZip, contextual_groups, visionzip
from trimtok_cli.tokens import Prompt, TowerSignals, VisualTokens

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("visionzip_*.npz"))
WEIGHT = torch.randn(6, 8, generator=torch.Generator().manual_seed(5))  # a projector


def reference(saliency, metric, features, dominant, contextual):
    """The rules of the published code, token by token, in float64."""
    best = sorted(sorted(range(len(saliency)), key=lambda i: (-saliency[i], i))[:dominant])
    rest = [i for i in range(len(saliency)) if i not in best]
    if not contextual:
        return best, [], np.zeros((0, features.shape[1]))
    step = max(1, len(rest) // contextual)
    targets = [rest[step * c] for c in range(contextual)]
    unit = metric / np.maximum(np.linalg.norm(metric, axis=1, keepdims=True), 1e-30)
    groups = [[] for _ in targets]
    for r in rest:
        if r not in targets:
            groups[int(np.argmax([unit[r] @ unit[t] for t in targets]))].append(r)
    merged = [
        features[t] + features[g].sum(0) / max(1, len(g))
        for t, g in zip(targets, groups, strict=True)
    ]
    return best, targets, np.stack(merged)


def clustered(n: int, d: int, seed: int, kind: str = "clustered") -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    if kind == "signs":  # unit vectors are exact in float32, and so are ties
        return torch.randint(2, (n, 4), generator=g).float() * 2 - 1
    if kind == "random":
        return torch.randn(n, d, generator=g)
    return torch.randn(7, d, generator=g)[torch.randint(7, (n,), generator=g)] + 0.6 * torch.randn(
        n, d, generator=g
    )


def stage_of(
    sizes, seed=0, blank=(), offers=("saliency", "keys", "features", "project"), duplicates=False
) -> Stage:
    """Images of these sizes with one text row between them; `blank` tokens show no place."""
    total = sum(sizes)
    g = torch.Generator().manual_seed(seed)
    features, keys, saliency = (
        clustered(total, 6, seed),
        clustered(total, 5, seed + 1),
        torch.rand(total, generator=g),
    )
    if duplicates and total > 4:
        features[1::2], keys[1::2], saliency[1::2] = features[1], keys[1], saliency[1]
        features[3], keys[3] = 0, 0
    hidden, visual, at = [torch.ones(2, 8)], [], 2
    for part in (features @ WEIGHT).split(list(sizes)):
        hidden += [part, torch.full((1, 8), 2.0)]
        visual.append(torch.arange(at, at + len(part)))
        at += len(part) + 1
    hidden, visual = torch.cat(hidden), torch.cat(visual)
    box = torch.rand(total, 4, generator=g) + 0.1
    box[list(blank)] = 0
    saliency[list(blank)], keys[list(blank)] = torch.nan, torch.nan
    given = {
        "saliency": lambda: saliency,
        "keys": lambda: keys,
        "features": lambda: features,
        "project": lambda x: x @ WEIGHT,
        "cls": lambda: torch.arange(len(sizes))[:, None].expand(-1, 6) + 100.0,
    }
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    tokens = VisualTokens(
        hidden[visual], owner, box, signals=TowerSignals(**{name: given[name] for name in offers})
    )
    prompt = Prompt(
        hidden,
        torch.arange(len(hidden)),
        visual,
        torch.arange(total),
        torch.tensor([len(hidden) - 1]),
    )
    return Stage(0, hidden, prompt, tokens)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_vectors(path):
    assert len(GOLDEN) == 4
    data = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    hidden, metric, saliency = (
        data["hidden_states"],
        data["metric"],
        data["cls_attention_row"].sum(1)[:, 0, 1:],
    )
    for name in [n for n in data if n.startswith("out_")]:
        d, c = map(int, name.split("_")[1:])
        best, targets, merged = visionzip(saliency, metric[:, 1:], hidden[:, 1:], d - 1, c)
        out = torch.cat([hidden[:, :1], hidden[:, best[0] + 1], merged], dim=1)
        assert torch.allclose(out, data[name], atol=1e-5)
        assert (
            [0, *(best[0] + 1).tolist()]
            == data[f"dominant_sorted_{d}_{c}"].tolist()
            == sorted(data[f"all_indices_{d}_{c}"][0].tolist())
        )
        rest, places = data[f"rest_idx_{d}_{c}"], data[f"target_in_rest_{d}_{c}"]
        assert (targets[0] + 1).tolist() == rest[places].tolist()
        found, group = contextual_groups(metric[0, rest], c)
        assert found.tolist() == places.tolist()
        assert group[data[f"merged_in_rest_{d}_{c}"]].tolist() == data[f"assign_{d}_{c}"].tolist()


@pytest.mark.parametrize("kind", ["random", "clustered", "signs"])
@pytest.mark.parametrize(
    ("n", "d", "c"),
    [(1, 1, 0), (2, 1, 1), (7, 0, 3), (9, 9, 0), (9, 4, 5), (40, 11, 6), (97, 20, 13)],
)
def test_equals_the_reference_rules_in_batches(kind, n, d, c):
    metric = torch.stack([clustered(n, 12, seed, kind) for seed in range(3)])
    features = torch.stack([clustered(n, 10, 9 + seed) for seed in range(3)])
    saliency = torch.rand(3, n, generator=torch.Generator().manual_seed(n)).round(
        decimals=1
    )  # with ties
    got = visionzip(saliency, metric, features, d, c)
    for i in range(3):
        best, targets, merged = reference(
            saliency[i].numpy(), metric[i].double().numpy(), features[i].double().numpy(), d, c
        )
        for want, have in ((best, got[0][i]), (targets, got[1][i])):
            assert have.tolist() == want
        assert np.allclose(merged, got[2][i].numpy(), atol=1e-5)
        single = visionzip(saliency[i], metric[i], features[i], d, c)
        assert all(torch.allclose(a, b[i]) for a, b in zip(single, got, strict=True))


def test_half_precision_comes_in_and_float32_comes_out():
    x = clustered(50, 8, 0).half()
    saliency = torch.rand(50, generator=torch.Generator().manual_seed(3))
    half, full = visionzip(saliency, x, x, 7, 4), visionzip(saliency, x.float(), x.float(), 7, 4)
    assert (
        all(torch.equal(a, b) for a, b in zip(half, full, strict=True))
        and half[2].dtype == torch.float32
    )


def test_split_of_the_published_budgets():
    pruner = VisionZip()
    assert [pruner.split(t) for t in (32, 64, 128, 192, 640)] == [
        (27, 5),
        (54, 10),
        (108, 20),
        (162, 30),
        (540, 100),
    ]
    assert (
        pruner.split(1) == (1, 0)
        and VisionZip(contextual=0.99).split(4) == (1, 3)
        and VisionZip(contextual=0.0).split(9) == (9, 0)
    )


def test_the_pruner_is_the_function_with_the_projector_behind_it():
    stage = stage_of([40])
    tap, budget = stage.tokens.signals, 20
    best, targets, values = visionzip(tap.saliency, tap.keys, tap.features, 17, 3)
    chosen = VisionZip(Budget(tokens=budget)).select(stage)
    assert chosen.extra is None and chosen.kept.tolist() == sorted(
        [*best.tolist(), *targets.tolist()]
    )
    want = stage.visual_embeds.clone()
    want[targets] = values @ WEIGHT
    assert torch.allclose(chosen.embeds, want[chosen.kept], atol=1e-5)
    assert torch.equal(stage.visual_embeds, stage.tokens.embeds), "the prompt was written into"
    behind = VisionZip(Budget(tokens=budget), append=True).select(stage)
    assert (
        behind.kept.tolist() == best.tolist()
        and behind.embeds is None
        and torch.allclose(behind.extra, values @ WEIGHT, atol=1e-5)
    )


def test_cls_is_one_of_the_dominant_tokens():
    stage = stage_of([30, 12, 5], offers=("saliency", "keys", "features", "project", "cls"))
    chosen = VisionZip(Budget(tokens=8), cls=True).select(stage)
    assert len(chosen.kept) == 7 + 7 + 5 and torch.allclose(
        chosen.extra, torch.stack([x.expand(6) @ WEIGHT for x in torch.tensor([100.0, 101.0])])
    )
    one = VisionZip(Budget(tokens=1), cls=True).select(stage)
    assert len(one.kept) == 3 and one.extra is None
    both = VisionZip(Budget(tokens=8), cls=True, append=True).select(
        stage_of([30], offers=("saliency", "keys", "features", "project", "cls"))
    )
    assert len(both.kept) == 6 and len(both.extra) == 2


def test_without_features_the_embeddings_are_merged():
    stage = stage_of([40], offers=("saliency", "keys"))
    tap = stage.tokens.signals
    _, targets, values = visionzip(tap.saliency, tap.keys, stage.visual_embeds, 17, 3)
    chosen = VisionZip(Budget(tokens=20)).select(stage)
    assert torch.allclose(chosen.embeds[torch.isin(chosen.kept, targets)], values)


@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("sizes", [[1], [30], [9, 40, 1]])
@pytest.mark.parametrize(
    "keep", [Budget(tokens=1), Budget(tokens=8), Budget(share=0.4), Budget(tokens=99), Budget()]
)
def test_invariants(sizes, keep, duplicates):
    stage, pruner = stage_of(sizes, duplicates=duplicates), VisionZip(keep)
    first, again = pruner.select(stage), pruner.select_many([stage, stage])[1]
    assert first.kept.tolist() == again.kept.tolist() == sorted(set(first.kept.tolist()))
    owner = stage.tokens.visual_index[first.kept]
    assert [int((owner == i).sum()) for i in range(len(sizes))] == [
        keep.count(size) for size in sizes
    ]
    if first.embeds is not None:
        assert (
            torch.equal(first.embeds, again.embeds)
            and first.embeds.shape == (len(first.kept), 8)
            and first.embeds.isfinite().all()
        )


def test_images_are_independent():
    stage = stage_of([30, 20])
    both, alone = VisionZip(Budget(tokens=8)).select(stage), VisionZip(Budget(tokens=8))
    for name in ("saliency", "keys", "features"):
        getattr(stage.tokens.signals, name)[30:] = getattr(
            stage_of([30, 20], seed=7).tokens.signals, name
        )[30:]
    changed = alone.select(stage)
    assert both.kept[:8].tolist() == changed.kept[:8].tolist() and torch.allclose(
        both.embeds[:8], changed.embeds[:8]
    )


def test_tokens_without_a_place_are_dropped_but_count():
    blank = (5, 11, 17, 23)
    chosen = VisionZip(Budget(share=0.5)).select(stage_of([24], blank=blank))
    assert (
        len(chosen.kept) == 12
        and not set(chosen.kept.tolist()) & set(blank)
        and chosen.embeds.isfinite().all()
    )
    assert VisionZip(Budget(tokens=22)).select(stage_of([24], blank=blank)).kept.tolist() == [
        i for i in range(24) if i not in (17, 23)
    ]
    assert len(VisionZip(Budget(tokens=24)).select(stage_of([24], blank=blank)).kept) == 24
    none = stage_of([24])
    none.tokens.box.zero_()
    assert len(VisionZip(Budget(tokens=9)).select(none).kept) == 9


@pytest.mark.parametrize(
    ("offers", "cls"),
    [
        ((), False),
        (("saliency",), False),
        (("keys", "features"), False),
        (("saliency", "keys", "features", "project"), True),
    ],
)
def test_a_family_that_lacks_a_signal_is_told_so(offers, cls):
    with pytest.raises(
        UsageError, match=r"visionzip needs .* which this model family does not offer"
    ):
        VisionZip(Budget(tokens=3), cls=cls).select(stage_of([9], offers=offers))


def test_nonsense_is_refused_in_a_sentence():
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match="share of the budget"):
            VisionZip(contextual=share)
    x = torch.randn(6, 4)
    for bad in (
        (x[:5, 0], x, x, 2, 2),
        (x[:, 0], x, x, 4, 3),
        (x[:, 0], x, x, 0, 0),
        (x[:, 0], x, x, 2, -1),
        (x[:, 0], x[None], x, 2, 1),
    ):
        with pytest.raises(ValueError, match=r"agree|together"):
            visionzip(*bad)


def test_no_value_leaves_the_device():
    x = torch.empty(2, 50, 8, device="meta")
    best, targets, values = visionzip(x[..., 0], x, x, 9, 4)
    assert (best.shape, targets.shape, values.shape) == ((2, 9), (2, 4), (2, 4, 8))
