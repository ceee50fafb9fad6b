"""Stages inside the language model against slow references without cache.

Recomputed attention is held against eager attention, and a run must leave nothing behind.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from tests.conftest import picture
from tests.support import tiny
from tests.support.families import FAMILIES
from tests.support.generating import generate
from trimtok_cli.data import Kept
from trimtok_cli.engine.decoder_stages import RunningStages
from trimtok_cli.engine.prompt_stage import layer_mean
from trimtok_cli.models.loading import load_model
from trimtok_cli.pruners.base import Pruner, Stage
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.tokens import Selection

STEPS = 4


@dataclass(frozen=True)
class EveryOther(Pruner):
    """Keeps visual tokens 0, 2, 4 ... in front of each of its layers.

    The method scores nothing, so any difference comes from the machinery.
    """

    at: tuple[int, ...] = (2,)

    def stages(self, num_layers: int) -> tuple[int, ...]:
        return self.at

    def select(self, stage: Stage) -> Selection:
        return Selection(torch.arange(0, len(stage.prompt.visual), 2))


class KeepIds(EveryOther):
    renumbers: ClassVar[bool] = False


@pytest.fixture(scope="module", params=["llava", *FAMILIES])
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages") / request.param
    build = FAMILIES.get(request.param, tiny.llava)
    return load_model(str(build(folder)), device="cpu")


def dense(adapter, images=((100, 80), (60, 90))):
    inputs = adapter.prepare(
        [picture(i, *size) for i, size in enumerate(images)], "What is to the left of it?"
    )
    tokens = adapter.encode_many([inputs])[0]
    return adapter.embed(inputs, tokens), tokens


def run(adapter, pruner, prompt, tokens):
    with RunningStages(
        adapter.model.get_decoder(), pruner, [prompt], [tokens], renumber=adapter.renumbers
    ) as stages:
        (said,), _ = generate(
            adapter, stages.plain, max_new_tokens=STEPS, stop=False, keep_logits=True
        )
    return said, stages


def by_hand(adapter, prompt, at: dict[int, torch.Tensor], ids, renumber: bool) -> torch.Tensor:
    """Logits without a cache: the whole sequence runs at every step.

    `at` maps a layer to the rows that go on in front of it. Positions may be 1-D or M-RoPE.
    """
    decoder, embeds, positions, logits = (
        adapter.model.get_decoder(),
        prompt.embeds,
        prompt.positions,
        [],
    )
    state: dict = {}

    def hook(number):
        def before(layer, args, kwargs):
            hidden = args[0]
            if number == 0:
                state.update(rows=torch.arange(hidden.shape[1]), ids=positions)
            deep = prompt.deepstack
            if deep is not None and 0 < number <= len(deep):
                hidden = hidden.clone()
                hidden[0, prompt.visual] += deep[number - 1]
            if number in at:
                stays = torch.isin(
                    state["rows"],
                    torch.cat([at[number], torch.arange(len(prompt), positions.shape[-1])]),
                )
                hidden, state["rows"] = hidden[:, stays], state["rows"][stays]
            length = hidden.shape[1]
            if length == positions.shape[-1]:
                return (hidden,), kwargs
            used = torch.arange(length) if renumber else positions[..., state["rows"]]
            kind = (
                (decoder.config.layer_types[number],) if "Gemma" in type(decoder).__name__ else ()
            )
            kwargs["position_embeddings"] = decoder.rotary_emb(
                hidden, used[None] if used.dim() == 1 else used[:, None], *kind
            )
            kwargs["position_ids"] = None
            mask = kwargs.get("attention_mask")
            kwargs["attention_mask"] = (
                None if mask is None else mask[:, :, state["rows"]][:, :, :, state["rows"]]
            )
            return (hidden,), kwargs

        return before

    hooks = [
        layer.register_forward_pre_hook(hook(i), with_kwargs=True)
        for i, layer in enumerate(decoder.layers)
    ]
    try:
        for step in range(STEPS):
            bare = replace(prompt, embeds=embeds, deepstack=None)
            logits.append(
                adapter.forward(embeds[None], None, positions[..., None, :], None, [bare])[0]
            )
            embeds = torch.cat([embeds, adapter.embed_ids(ids[step : step + 1])])
            positions = torch.cat([positions, positions[..., -1:] + 1], -1)
    finally:
        for each in hooks:
            each.remove()
    return torch.stack(logits)


@torch.inference_mode()
@pytest.mark.parametrize("kind", [EveryOther, KeepIds])
@pytest.mark.parametrize("at", [(2,), (1, 2, 3), (3,)])
def test_a_drop_inside_the_model_equals_a_run_without_cache(family, kind, at):
    prompt, tokens = dense(family)
    said, stages = run(family, kind(Budget(tokens=1), at=at), prompt, tokens)
    text = torch.ones(len(prompt), dtype=torch.bool)
    text[prompt.visual] = False
    rows = {
        k.layer: torch.cat([text.nonzero()[:, 0], prompt.visual[list(k.tokens)]]).sort().values
        for k in stages.kept[0][1:]
    }
    want = by_hand(
        family, prompt, rows, said.logits.argmax(-1), renumber=family.renumbers and kind.renumbers
    )
    assert (said.logits - want).abs().max() < 1e-5 * max(1.0, float(want.abs().max()))
    plain, _ = generate(family, [prompt], max_new_tokens=STEPS, stop=False, keep_logits=True)
    assert (said.logits - plain[0].logits).abs().max() > 0.01, (
        "dropping changed nothing: the test could not fail"
    )


@torch.inference_mode()
def test_nothing_is_left_behind(family):
    prompt, tokens = dense(family)
    before = generate(family, [prompt], max_new_tokens=STEPS, stop=False, keep_logits=True)[0][
        0
    ].logits
    run(family, EveryOther(Budget(tokens=1), at=(1, 3)), prompt, tokens)
    with pytest.raises(ZeroDivisionError):

        class Breaks(EveryOther):
            def select(self, stage):
                return 1 // 0

        run(family, Breaks(Budget(tokens=1)), prompt, tokens)
    after = generate(family, [prompt], max_new_tokens=STEPS, stop=False, keep_logits=True)[0][
        0
    ].logits
    assert torch.equal(before, after)
    assert not any(layer._forward_pre_hooks for layer in family.model.get_decoder().layers)


@torch.inference_mode()
def test_a_stage_that_keeps_everything_is_dense(family):
    class All(EveryOther):
        def select(self, stage):
            return Selection(torch.arange(len(stage.prompt.visual)))

    prompt, tokens = dense(family)
    said, _ = run(family, All(Budget(tokens=1), at=(1, 2, 3)), prompt, tokens)
    plain = generate(family, [prompt], max_new_tokens=STEPS, stop=False, keep_logits=True)[0][0]
    assert (said.logits - plain.logits).abs().max() < 1e-5


@torch.inference_mode()
def test_attention_rows_equal_eager_attentions(family):
    """Attention of the layer before and the layer after a stage, for every layer above 0.

    The rows asked for stand behind all images and are causal in every family.
    """
    prompt, tokens = dense(family)
    rows, seen = torch.arange(int(prompt.visual[-1]) + 1, len(prompt)), {}

    @dataclass(frozen=True)
    class Looks(EveryOther):
        def select(self, stage):
            seen[stage.layer] = {
                of: stage.attention(rows, of) for of in (stage.layer - 1, stage.layer)
            }
            with pytest.raises(LookupError):
                stage.attention(rows, stage.layer - 2)
            return Selection(torch.arange(len(stage.prompt.visual)))

    _, stages = run(family, Looks(Budget(tokens=1), at=(1, 2, 3)), prompt, tokens)
    family.model.set_attn_implementation("eager")
    caught = {}
    decoder = family.model.get_decoder()
    hooks = [
        layer.self_attn.register_forward_hook(lambda m, a, out, i=i: caught.update({i: out[1]}))
        for i, layer in enumerate(decoder.layers)
    ]
    try:
        generate(family, [prompt], max_new_tokens=1, stop=False)
    finally:
        for hook in hooks:
            hook.remove()
        family.model.set_attn_implementation("sdpa")
    assert set(seen) == set(stages.layers) and seen
    for found in seen.values():
        for of, got in found.items():
            assert (got - caught[of][0][:, rows]).abs().max() < 1e-5


@torch.inference_mode()
def test_eager_runs_the_same(family):
    prompt, tokens = dense(family)
    pruner = EveryOther(Budget(tokens=1), at=(1, 3))
    want, _ = run(family, pruner, prompt, tokens)
    family.model.set_attn_implementation("eager")
    try:
        got, _ = run(family, pruner, prompt, tokens)
    finally:
        family.model.set_attn_implementation("sdpa")
    assert (want.logits - got.logits).abs().max() < 1e-4


def test_layer_mean_counts_what_each_layer_processes():
    assert layer_mean([Kept(0, tuple(range(8)))], 4) == 8
    assert layer_mean([Kept(0, tuple(range(8))), Kept(2, (1, 2))], 4) == 5
    assert layer_mean([Kept(0, (1, 2, 3, 4)), Kept(1, (1, 2)), Kept(3, ())], 4) == 2
