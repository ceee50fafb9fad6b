"""VTW: when everything leaves, and the arithmetic of the search for that layer."""

import math

import pytest
import torch

from tests.pruners.test_fastv import advanced, stage_of
from trimtok_cli.errors import UsageError
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.methods.vtw import VTW, first_below, kl_of, withdrawal_layer


@pytest.mark.parametrize("sizes", [(1,), (30,), (4, 9)])
@pytest.mark.parametrize("keep", [Budget(tokens=1), Budget(tokens=99), Budget(share=0.5)])
def test_nothing_stays_whatever_keep_says(sizes, keep):
    pruner = VTW(keep)
    stage = stage_of(sizes, layer=pruner.stages(4)[0])
    selection = pruner.select(stage)
    assert (
        selection.kept.tolist() == []
        and selection.kept.dtype == torch.int64
        and selection.extra is None
    )
    after = advanced(stage, selection, 3)
    assert len(after.prompt.visual) == 0 and len(after.hidden) == len(stage.hidden) - sum(sizes)
    assert [s.kept.tolist() for s in pruner.select_many([stage, stage])] == [[], []]


def test_layers():
    assert [VTW().stages(n) for n in (1, 2, 4, 24, 28, 32, 40)] == [
        (),
        (1,),
        (2,),
        (11,),
        (13,),
        (15,),
        (19,),
    ]
    assert VTW(layer=16).stages(32) == (16,)
    with pytest.raises(UsageError, match="vtw: layer=32 is behind"):
        VTW(layer=32).stages(32)


def test_layer_mean_finds_the_layer():
    assert [withdrawal_layer(576, t, 32) for t in (270, 192, 128, 64, 1, 576)] == [
        15,
        11,
        7,
        4,
        1,
        32,
    ]

    def mean(share, depth):
        return VTW(Budget(share=share), counts="layer-mean").stages(depth)

    assert (mean(0.5, 32), mean(1 / 3, 32), mean(1 / 9, 32), mean(0.001, 4), mean(0.99, 4)) == (
        (16,),
        (11,),
        (4,),
        (1,),
        (),
    )
    assert (
        VTW(Budget(share=0.5), counts="layer-mean").select(stage_of((6, 3), layer=2)).kept.tolist()
        == []
    )


def test_layer_mean_of_a_count_depends_on_the_image():
    pruner, alive = VTW(Budget(tokens=10), counts="layer-mean"), []
    assert pruner.stages(4) == (1, 2, 3)
    stage = stage_of(
        (40, 20, 10), layer=1
    )  # 10 of 40 is one layer of four, 10 of 20 two, 10 of 10 all
    for _ in range(3):
        selection = pruner.select(stage)
        alive.append(selection.kept.tolist())
        stage = advanced(stage, selection, stage.layer + 1)
    assert alive == [list(range(40, 70)), list(range(20, 30)), list(range(10))]
    for budget in ("tokens", "diversity"):
        stage = stage_of((40, 20), layer=3)
        assert VTW(Budget(tokens=10), budget, counts="layer-mean").select(stage).kept.tolist() == []
    # Two layers have a single stage, and still each image its own.
    assert VTW(Budget(tokens=10), counts="layer-mean").select(
        stage_of((90, 10), layer=1, num_layers=2)
    ).kept.tolist() == list(range(90, 100))


@pytest.mark.parametrize("shape", [(50,), (1, 50), (4, 300)])
def test_kl_is_the_published_loss_and_its_definition(shape):
    g = torch.Generator().manual_seed(3)
    full, dropped = torch.randn(shape, generator=g) * 4, torch.randn(shape, generator=g) * 4
    rows = zip(
        full.reshape(-1, shape[-1]).tolist(), dropped.reshape(-1, shape[-1]).tolist(), strict=True
    )
    want = []
    for a, b in rows:
        za, zb = sum(map(math.exp, a)), sum(map(math.exp, b))
        want.append(
            sum(
                math.exp(y) / zb * (math.log(math.exp(y) / zb) - math.log(math.exp(x) / za))
                for x, y in zip(a, b, strict=True)
            )
        )
    assert float(kl_of(full, dropped)) == pytest.approx(sum(want) / len(want), rel=1e-5)
    if len(shape) == 2:
        loss = torch.nn.KLDivLoss(reduction="batchmean")(full.log_softmax(-1), dropped.softmax(-1))
        assert float(kl_of(full, dropped)) == pytest.approx(float(loss), rel=1e-5)
    assert (
        float(kl_of(full, full)) == 0
        and kl_of(full.bfloat16(), dropped.bfloat16()).dtype == torch.float32
    )


def test_kl_of_tokens_that_are_ruled_out():
    full = torch.tensor([0.0, 1.0, -torch.inf])
    assert float(kl_of(full, full)) == 0 and float(kl_of(full, torch.zeros(3))) == math.inf
    assert float(kl_of(torch.zeros(3), full)) > 0
    with pytest.raises(ValueError, match="must be"):
        kl_of(torch.zeros(3), torch.zeros(4))


def test_first_below():
    kls = {9: 0.001, 5: 0.2, 7: 0.003, 6: math.nan, 8: 0.02}
    assert (
        first_below(kls, 0.003),
        first_below(kls, 0.0005),
        first_below({}, 1.0),
        first_below(kls, 0.3),
    ) == (7, None, None, 5)
    for eta in (-0.1, math.nan):
        with pytest.raises(ValueError, match="eta is"):
            first_below(kls, eta)


@pytest.mark.parametrize(
    "change", [{"layer": 0}, {"layer": "7"}, {"counts": "x"}, {"layer": 3, "counts": "layer-mean"}]
)
def test_nonsense_is_refused_in_a_sentence(change):
    with pytest.raises(ValueError, match=r"layer counts|counts must|give one of the two"):
        VTW(**change)


def test_the_search_measures_what_withdrawal_at_each_layer_costs(llava_folder, pictures):
    """Each KL against logits of a dense run and of one whose visual keys are masked from layer K
    on; then the command.
    """
    from tests.commands.test_cli import run
    from tests.engine.test_stages import by_hand
    from trimtok_cli.data import Sample
    from trimtok_cli.engine.answer import encode
    from trimtok_cli.evaluation.vtw_layer import withdrawal_kls
    from trimtok_cli.models.loading import load_model
    from trimtok_cli.prepare.sample import Ask, prepare

    adapter, ask = load_model(str(llava_folder), device="cpu"), Ask("What is it?")
    samples = [Sample(i, (path,)) for i, path in enumerate(pictures[:2])]
    found = withdrawal_kls(adapter, samples, ask)
    want: dict[int, list[float]] = {1: [], 2: [], 3: []}
    with torch.inference_mode():
        for sample in samples:
            prompt = encode(adapter, [prepare(adapter.preprocessor, sample, ask)])[0].prompt
            text = torch.ones(len(prompt), dtype=torch.bool)
            text[prompt.visual] = False
            rows, ids = text.nonzero()[:, 0], torch.zeros(4, dtype=torch.long)
            dense = by_hand(adapter, prompt, {}, ids, renumber=False)[0]
            for layer, kls in want.items():
                dropped = by_hand(adapter, prompt, {layer: rows}, ids, renumber=False)[0]
                kls.append(
                    float(
                        torch.nn.functional.kl_div(
                            dense.log_softmax(-1), dropped.softmax(-1), reduction="sum"
                        )
                    )
                )
    assert {k: round(v, 4) for k, v in found.items()} == {
        k: round(sum(v) / 2, 4) for k, v in want.items()
    }
    done = run(
        "methods",
        "--find-vtw-layer",
        pictures[0].parent,
        "-m",
        llava_folder,
        "--limit",
        2,
        "--eta",
        99,
    )
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [
        "1",
        "2",
        "3",
    ] and "K = 1" in done.stderr
