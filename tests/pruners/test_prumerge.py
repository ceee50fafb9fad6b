"""PruMerge(+) against the published code's vectors and its rules written out, and what every pruner
owes its caller.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pruners.test_visionzip import WEIGHT, clustered, stage_of
from trimtok_cli.errors import UsageError
from trimtok_cli.pruners.base import Stage
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.methods.prumerge import (
    PruMerge,
    adaptive_indices,
    fixed_indices,
    outliers,
    prumerge,
)
from trimtok_cli.tokens import TowerSignals

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("prumerge_*.npz"))


def stage_with_last(sizes, **how) -> Stage:
    stage = stage_of(sizes, **how)
    tap = stage.tokens.signals
    given = {
        "last_saliency": lambda: tap.saliency / 10,
        "last_keys": lambda: tap.keys,
        "features": lambda: tap.features,
        "project": tap.project,
    }
    object.__setattr__(stage.tokens, "signals", TowerSignals(**given))
    return stage


def reference(features, keys, attention, kept):
    """The rules of the published code, token by token, in float64."""
    unit = keys / np.maximum(np.linalg.norm(keys, axis=1, keepdims=True), 1e-30)
    merged = []
    for i in kept:
        others = sorted(
            (j for j in range(len(keys)) if j != i),
            key=lambda j: (-np.round(unit[i] @ unit[j], 12), j),
        )
        merged.append(
            features[i]
            + sum((attention[j] * features[j] for j in others[:32]), np.zeros(features.shape[1]))
        )
    left = [attention[j] * features[j] for j in range(len(keys)) if j not in kept]
    return np.stack(merged), sum(left, np.zeros(features.shape[1]))


def cls_attention(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """CLS query (B, d) and full-width keys (B, 1 + N, d), CLS first -> (B, N) float32 attention."""
    logits = (keys.float() @ query.float()[..., None]).squeeze(-1) * keys.shape[-1] ** -0.5
    return logits.softmax(dim=-1)[..., 1:]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_vectors(path):
    assert len(GOLDEN) == 4
    data = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    attention = cls_attention(data["q_cls_layer23"], data["keys_layer23"])[0]
    features, keys = data["hidden_states"][0, 1:], data["keys_layer23"][0, 1:]
    assert torch.allclose(attention, data["cls_attn"], atol=1e-6)
    assert outliers(attention) / len(attention) == float(data["iqr_ratio"])
    found = {
        "adaptive": adaptive_indices(attention, plus=False),
        "fixed_1_8": fixed_indices(attention, len(attention) // 8, plus=False),
    }
    if len(attention) == 576:
        found["plus_adaptive"] = adaptive_indices(attention)
    for name, index in found.items():
        assert index.tolist() == data[f"idx_{name}"].tolist()
        merged, others = prumerge(features, keys, attention, index)
        assert torch.allclose(
            torch.cat([merged, others[None]]), data[f"out_{name}"][0], atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("kind", ["random", "clustered", "signs"])
@pytest.mark.parametrize(("n", "count"), [(1, 1), (2, 1), (20, 20), (33, 5), (34, 9), (90, 31)])
def test_equals_the_reference_rules_in_batches(kind, n, count):
    keys = torch.stack([clustered(n, 12, seed, kind) for seed in range(3)])
    features = torch.stack([clustered(n, 10, 9 + seed) for seed in range(3)])
    attention = torch.rand(3, n, generator=torch.Generator().manual_seed(n)).softmax(-1)
    kept = fixed_indices(attention, count)
    merged, others = prumerge(features, keys, attention, kept)
    for i in range(3):
        want = reference(
            features[i].double().numpy(),
            keys[i].double().numpy(),
            attention[i].double().numpy(),
            kept[i].tolist(),
        )
        assert np.allclose(want[0], merged[i], atol=1e-5) and np.allclose(
            want[1], others[i], atol=1e-5
        )


def test_indices_of_the_plus_variant():
    attention = torch.linspace(1, 0, 576)
    assert fixed_indices(attention, 5, plus=False).tolist() == [0, 1, 2, 3, 4]
    assert fixed_indices(attention, 144).tolist() == [
        *range(72),
        *(72 + (2 * i + 1) * 504 // 144 for i in range(72)),
    ]
    for n in range(1, 30):
        for count in range(1, n + 1):
            assert len(set(fixed_indices(torch.rand(n), count).tolist())) == count
    ties = torch.zeros(9)
    assert fixed_indices(ties, 4, plus=False).tolist() == [0, 1, 2, 3] and adaptive_indices(
        ties, plus=False
    ).tolist() == [0]
    assert adaptive_indices(ties).tolist() == [0, 3, 6] and adaptive_indices(
        torch.ones(1)
    ).tolist() == [0]


def test_the_pruner_is_the_function_with_the_projector_behind_it():
    stage = stage_with_last([60])
    tap = stage.tokens.signals
    for plus in (True, False):
        index = fixed_indices(tap.last_saliency, 15, plus=plus)
        values, others = prumerge(tap.features, tap.last_keys, tap.last_saliency, index)
        chosen = PruMerge(Budget(tokens=16), plus=plus).select(stage)
        assert chosen.kept.tolist() == sorted(index.tolist()) and torch.allclose(
            chosen.extra[0], others @ WEIGHT, atol=1e-4
        )
        assert torch.allclose(chosen.embeds, (values @ WEIGHT)[index.argsort()], atol=1e-4)


def test_adaptive_keeps_what_the_image_asks_for_and_never_more_than_the_budget():
    stage = stage_with_last([60])
    attention = stage.tokens.signals.last_saliency  # kept by the tap: written to, it stays so
    attention[[3, 50, 20]] = torch.tensor([3.0, 2.0, 1.0])
    chosen = PruMerge(Budget(tokens=50), plus=False, adaptive=True).select(stage)
    assert chosen.kept.tolist() == [3, 20, 50] and len(chosen.extra) == 1
    plus = PruMerge(Budget(tokens=50), adaptive=True).select(stage).kept.tolist()
    assert plus == sorted({3, 20, 50, *range(0, 59, 6)})
    cut = PruMerge(Budget(tokens=5), adaptive=True).select(stage)
    assert cut.kept.tolist() == [0, 3, 20, 50] and len(cut.extra) == 1


@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("sizes", [[1], [30], [9, 40, 1]])
@pytest.mark.parametrize(
    "keep",
    [
        Budget(tokens=1),
        Budget(tokens=2),
        Budget(tokens=8),
        Budget(share=0.4),
        Budget(tokens=99),
        Budget(),
    ],
)
@pytest.mark.parametrize("plus", [True, False])
def test_invariants(sizes, keep, duplicates, plus):
    stage, pruner = stage_with_last(sizes, duplicates=duplicates), PruMerge(keep, plus=plus)
    first, again = pruner.select(stage), pruner.select_many([stage, stage])[1]
    assert first.kept.tolist() == again.kept.tolist() == sorted(set(first.kept.tolist()))
    owner = stage.tokens.visual_index[first.kept]
    added = [size > keep.count(size) > 1 for size in sizes]
    assert [int((owner == i).sum()) + added[i] for i in range(len(sizes))] == [
        keep.count(size) for size in sizes
    ]
    assert (0 if first.extra is None else len(first.extra)) == sum(added)
    if first.embeds is not None:
        assert torch.equal(first.embeds, again.embeds) and first.embeds.isfinite().all()
    if sizes == [9, 40, 1] and keep.tokens == 8:
        alone = stage_with_last([9], duplicates=duplicates)
        tap, whole = alone.tokens.signals, stage.tokens.signals
        given = {
            "last_saliency": lambda: whole.last_saliency[:9],
            "last_keys": lambda: whole.last_keys[:9],
            "features": lambda: whole.features[:9],
        }
        object.__setattr__(alone.tokens, "signals", TowerSignals(project=tap.project, **given))
        single = pruner.select(alone)
        assert single.kept.tolist() == first.kept[owner == 0].tolist() and torch.allclose(
            single.extra[0], first.extra[0], atol=1e-4
        )


def test_tokens_without_a_place_are_dropped_but_count():
    blank = (5, 11, 17, 23)
    chosen = PruMerge(Budget(share=0.5)).select(stage_with_last([24], blank=blank))
    assert len(chosen.kept) == 11 and not set(chosen.kept.tolist()) & set(blank)
    assert chosen.embeds.isfinite().all() and chosen.extra.isfinite().all()


def test_a_family_that_lacks_a_signal_is_told_so():
    with pytest.raises(
        UsageError, match="prumerge needs last_saliency and last_keys of the vision tower"
    ):
        PruMerge(Budget(tokens=3)).select(stage_of([9]))


def test_nonsense_is_refused_and_half_precision_is_float32_inside():
    x, a = clustered(40, 8, 0), torch.rand(40).softmax(0)
    for bad in (
        (x[:30], x, a, torch.arange(3)),
        (x, x, a, torch.arange(3)[None]),
        (x, x[None], a, torch.arange(3)),
    ):
        with pytest.raises(ValueError, match="must agree"):
            prumerge(*bad)
    h = x.half()
    both = prumerge(h, h, a, torch.arange(5)), prumerge(h.float(), h.float(), a, torch.arange(5))
    assert all(torch.equal(p, q) and p.dtype == torch.float32 for p, q in zip(*both, strict=True))


def test_no_value_leaves_the_device_for_a_fixed_budget():
    x = torch.empty(2, 50, 8, device="meta")
    merged, others = prumerge(x, x, x[..., 0], fixed_indices(x[..., 0], 10))
    assert (merged.shape, others.shape) == ((2, 10, 8), (2, 8))
