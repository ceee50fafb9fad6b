"""VisPruner against the published code's vectors and its rules written out, and what every pruner
owes its caller.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pruners.test_visionzip import clustered, stage_of
from trimtok_cli.errors import UsageError
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.methods.vispruner import VisPruner, vispruner

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("vispruner_*.npz"))


def reference(saliency, features, keep, important):
    """The rules of the published code, round by round."""
    order = sorted(range(len(saliency)), key=lambda i: (-saliency[i], i))
    best, rest = order[: int(important * keep)], order[int(important * keep) :]
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-30)
    want = keep - len(best)
    while want and len(rest) > want:
        even, odd = rest[::2], rest[1::2]
        likeness = {a: max(unit[a] @ unit[b] for b in odd) for a in even}
        falling = sorted(even, key=lambda a: (-likeness[a], even.index(a)))
        rest = falling[min(8, len(rest) - want, len(even)) :] + odd
    return sorted(best + rest[:want])


def reachable(rest, similarity, leave, want) -> bool:
    """Whether some order of exactly equal likenesses leaves the tokens `want`."""
    if len(rest) <= leave:
        return set(rest.tolist()) == want
    even, odd = rest[::2], rest[1::2]
    value, falling = similarity[even][:, odd].amax(1).sort(descending=True, stable=True)
    ties = (value[1:] == value[:-1]).nonzero().flatten().tolist()
    for swaps in itertools.product([False, True], repeat=len(ties)):
        order = falling.clone()
        for at in [at for at, swap in zip(ties, swaps, strict=True) if swap]:
            order[[at, at + 1]] = order[[at + 1, at]]
        if reachable(
            torch.cat([even[order[min(8, len(rest) - leave) :]], odd]), similarity, leave, want
        ):
            return True
    return False


# Likenesses here are equal to the last bit three times, and the published code's unstable sort took
# them the other way round.
TIED = "vispruner_N576_d64_seed0", "kept_T128_r50"


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_vectors_index_for_index(path):
    assert len(GOLDEN) == 4
    data = np.load(path)
    features, saliency = (
        torch.from_numpy(data["image_features"]),
        torch.from_numpy(data["cls_attention"]).mean(1),
    )
    for name in [n for n in data.files if n.startswith("kept_")]:
        keep, ratio = (int(part[1:]) for part in name.split("_")[1:])
        if (path.stem, name) == TIED:
            order = saliency[0].sort(descending=True, stable=True).indices
            unit = torch.nn.functional.normalize(features[0], dim=-1)
            want = set(data[name].tolist()) - set(order[:64].tolist())
            assert len(want) == 64 and reachable(order[64:], unit @ unit.T, 64, want)
        else:
            assert (
                vispruner(saliency, features, keep, important=ratio / 100)[0].tolist()
                == data[name].tolist()
            )


@pytest.mark.parametrize("kind", ["random", "clustered", "signs"])
@pytest.mark.parametrize(
    ("n", "keep", "important"),
    [
        (1, 1, 0.5),
        (2, 1, 0.5),
        (3, 2, 0.0),
        (9, 5, 0.5),
        (40, 7, 0.5),
        (41, 12, 1.0),
        (60, 33, 0.75),
        (97, 10, 0.25),
    ],
)
def test_equals_the_reference_rules_in_batches(kind, n, keep, important):
    features = torch.stack([clustered(n, 12, seed, kind) for seed in range(3)])
    saliency = torch.rand(3, n, generator=torch.Generator().manual_seed(n)).round(decimals=1)
    got = vispruner(saliency, features, keep, important=important)
    for i in range(3):
        assert got[i].tolist() == reference(
            saliency[i].numpy(), features[i].double().numpy(), keep, important
        )
        assert (
            got[i].tolist()
            == vispruner(saliency[i], features[i], keep, important=important).tolist()
        )


def test_half_precision_equal_tokens_and_inputs_left_alone():
    x, saliency = (
        clustered(60, 8, 0).half(),
        torch.rand(60, generator=torch.Generator().manual_seed(0)),
    )
    assert vispruner(saliency, x, 9).tolist() == vispruner(saliency, x.float(), 9).tolist()
    flat = torch.zeros(20, 4)
    assert len(set(vispruner(torch.zeros(20), flat, 6).tolist())) == 6 and not flat.any()
    assert (
        vispruner(saliency, x, 60).tolist()
        == vispruner(saliency, x, 99).tolist()
        == list(range(60))
    )


@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("sizes", [[1], [30], [9, 40, 1]])
@pytest.mark.parametrize(
    "keep", [Budget(tokens=1), Budget(tokens=8), Budget(share=0.4), Budget(tokens=99), Budget()]
)
def test_invariants(sizes, keep, duplicates):
    stage, pruner = stage_of(sizes, duplicates=duplicates), VisPruner(keep)
    first, again = pruner.select(stage), pruner.select_many([stage, stage])[1]
    assert first.kept.tolist() == again.kept.tolist() == sorted(set(first.kept.tolist()))
    owner = stage.tokens.visual_index[first.kept]
    assert [int((owner == i).sum()) for i in range(len(sizes))] == [
        keep.count(size) for size in sizes
    ]
    assert first.embeds is None and first.extra is None
    if keep.tokens == 8:
        tap, start = stage.tokens.signals, 0
        for number, size in enumerate(sizes):
            span = slice(start, start + size)
            assert (first.kept[owner == number] - start).tolist() == vispruner(
                tap.saliency[span], tap.features[span], 8
            ).tolist()
            start += size


def test_tokens_without_a_place_are_dropped_but_count():
    blank = (5, 11, 17, 23)
    kept = VisPruner(Budget(share=0.5)).select(stage_of([24], blank=blank)).kept.tolist()
    assert len(kept) == 12 and not set(kept) & set(blank)


def test_projected_tokens_where_there_are_no_features():
    stage = stage_of([30], offers=("saliency",))
    with pytest.raises(
        UsageError, match=r"vispruner needs features .* which this model family does not offer"
    ):
        VisPruner(Budget(tokens=5)).select(stage)
    kept = VisPruner(Budget(tokens=5), similarity="embeds").select(stage).kept
    assert (
        kept.tolist() == vispruner(stage.tokens.signals.saliency, stage.visual_embeds, 5).tolist()
    )
    with pytest.raises(UsageError, match="needs saliency"):
        VisPruner(Budget(tokens=5)).select(stage_of([30], offers=("features",)))


def test_nonsense_is_refused_in_a_sentence():
    for bad in ({"important": 1.1}, {"important": -0.1}, {"similarity": "keys"}):
        with pytest.raises(ValueError, match=r"must be one of|share of the budget"):
            VisPruner(**bad)
    x = torch.randn(6, 4)
    for bad in ((x[:, 0], x, 0), (x[:5, 0], x, 2), (x, x, 2)):
        with pytest.raises(ValueError, match="must"):
            vispruner(*bad)


def test_no_value_leaves_the_device_in_the_loop():
    x = torch.empty(2, 50, 8, device="meta")
    assert vispruner(x[..., 0], x, 10).shape == (2, 10)
