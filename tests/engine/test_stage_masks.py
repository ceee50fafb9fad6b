"""Attention masks behind a stage: every method against a run without cache under the model's masks.

The oracle asks the model itself. The model gets a prompt with as many rows as remain, visual in the
same places, and the test notes the mask of each layer. So no second implementation decides about
windows, or about families in which the rows of an image see each other.
"""

import json
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import pytest
import torch
from transformers import DynamicCache

from tests.conftest import picture
from tests.support import tiny
from tests.support.families import FAMILIES
from tests.support.generating import generate
from trimtok_cli.engine.decoder_stages import RunningStages
from trimtok_cli.models.loading import load_model
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.registry import build_pruner
from trimtok_cli.tokens import Prompt, Selection

STEPS, WINDOW = 4, 11
SLIDING = {
    "sliding_window": WINDOW,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
}
QWEN = {**SLIDING, "use_sliding_window": True, "max_window_layers": 1}


def with_text(folder, **settings):
    """The folder of a saved model, after other settings were written for its language model."""
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


MODELS = {
    "llava": tiny.llava,
    **FAMILIES,
    "gemma3, window": lambda folder: FAMILIES["gemma3"](folder, window=WINDOW),
    "mistral, window": lambda folder: with_text(
        FAMILIES["llava_next"](folder, text_model="mistral"), sliding_window=WINDOW
    ),
    "qwen2, window": lambda folder: with_text(FAMILIES["internvl"](folder), **QWEN),
    "qwen2_vl, window": lambda folder: with_text(FAMILIES["qwen2_vl"](folder), **QWEN),
}


@dataclass(frozen=True)
class Adds(Pruner):
    """Keeps every third visual token and adds more tokens than it drops.

    Rows move, and the sequence grows.
    """

    layer: int = 1

    def stages(self, num_layers: int) -> tuple[int, ...]:
        return (self.layer, num_layers - 1)

    def select(self, stage):
        visual = stage.visual_embeds
        return Selection(torch.arange(0, len(visual), 3), extra=visual[1:] + 0.5 * visual[:1])


class AddsAndKeepsIds(Adds):
    renumbers: ClassVar[bool] = False


@dataclass(frozen=True)
class Swaps(Adds):
    """Drops the first visual token and adds one, so the number of rows stays."""

    def select(self, stage):
        return Selection(
            torch.arange(1, len(stage.prompt.visual)), extra=stage.visual_embeds[:1] * 2
        )


METHODS = {
    "fastv": lambda: build_pruner("fastv", {"keep": 5}),
    "pyramiddrop": lambda: build_pruner("pyramiddrop", {"keep": 3}),
    "sparsevlm": lambda: build_pruner("sparsevlm", {"keep": 4}),
    "vtw": lambda: build_pruner("vtw", {"keep": 5}),
    "adds": lambda: Adds(Budget(tokens=1)),
    "adds, ids kept": lambda: AddsAndKeepsIds(Budget(tokens=1)),
    "swaps": lambda: Swaps(Budget(tokens=1)),
}


@pytest.fixture(scope="module", params=MODELS)
def family(request, tmp_path_factory):
    return load_model(
        str(
            MODELS[request.param](
                tmp_path_factory.mktemp("masks") / request.param.replace(", ", "-")
            )
        ),
        device="cpu",
    )


@pytest.fixture(params=["sdpa", "eager"])
def attending(request, family):
    family.model.set_attn_implementation(request.param)
    yield family
    family.model.set_attn_implementation("sdpa")


def dense(adapter):
    # Few words, because windows must reach visual rows.
    inputs = adapter.prepare([picture(0, 100, 80), picture(1, 60, 90)], "Left?")
    tokens = adapter.encode_many([inputs])[0]
    return adapter.embed(inputs, tokens), tokens


def run(adapter, pruner, prompt, tokens):
    """The answer, and the Selection of each stage by its layer."""
    chosen = {}

    class Noting(type(pruner)):
        def select(self, stage):
            chosen[stage.layer] = super().select(stage)
            return chosen[stage.layer]

    noting = Noting(**{each.name: getattr(pruner, each.name) for each in fields(pruner)})
    with RunningStages(
        adapter.model.get_decoder(), noting, [prompt], [tokens], renumber=adapter.renumbers
    ) as stages:
        (said,), _ = generate(
            adapter, stages.plain, max_new_tokens=STEPS, stop=False, keep_logits=True
        )
    return said, chosen


@dataclass
class Rows:
    """The rows of a sequence: whether each is visual, and the position that each carries."""

    visual: list[bool]
    ids: torch.Tensor

    def after(self, selection) -> tuple[list[int | None], "Rows"]:
        """Indices before the stage of the rows behind it, None for added rows; then these rows."""
        visual = [place for place, is_visual in enumerate(self.visual) if is_visual]
        kept = {visual[place] for place in selection.kept.tolist()}
        order: list[int | None] = [
            i for i in range(len(self.visual)) if not self.visual[i] or i in kept
        ]
        added = 0 if selection.extra is None else len(selection.extra)
        at = order.index(max(kept)) + 1 if added else 0
        order[at:at] = [None] * added
        sources = [order[at - 1] if place is None else place for place in order]
        return order, Rows(
            [place is None or self.visual[place] for place in order], self.ids[..., sources]
        )


def masks_of(adapter, rows: Rows) -> list[torch.Tensor | None]:
    """The mask that the model gives each layer, for a prompt of these rows."""
    found, decoder = [], adapter.model.get_decoder()
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: found.append(kwargs["attention_mask"]), with_kwargs=True
        )
        for layer in decoder.layers
    ]
    length, empty = len(rows.visual), torch.empty(0, dtype=torch.long)
    embeds = torch.zeros(length, decoder.config.hidden_size)
    visual = torch.tensor(
        [i for i, is_visual in enumerate(rows.visual) if is_visual], dtype=torch.long
    )
    prompt = Prompt(embeds, rows.ids, visual, visual, empty)
    try:
        # A run has a cache too. Without one the library takes gaps in the positions for the seams
        # of packed sequences.
        adapter.forward(
            embeds[None],
            None,
            rows.ids[..., None, :],
            DynamicCache(config=decoder.config),
            [prompt],
        )
    finally:
        for hook in hooks:
            hook.remove()
    return found


def without_cache(adapter, prompt, chosen, ids, *, renumber: bool) -> torch.Tensor:
    """(STEPS, V) logits of a run that computes the whole sequence anew at every step.

    The noted selections are made again in front of their layers.
    """
    decoder, embeds, positions, logits = (
        adapter.model.get_decoder(),
        prompt.embeds,
        prompt.positions,
        [],
    )
    is_visual = torch.zeros(len(prompt), dtype=torch.bool)
    is_visual[prompt.visual] = True
    for step in range(STEPS):
        rows = Rows([*is_visual.tolist(), *[False] * step], positions)
        plan, masks = {}, {}
        for number in range(len(decoder.layers)):
            if number in chosen:
                order, rows = rows.after(chosen[number])
                if renumber:
                    rows.ids = torch.arange(len(order))
                plan[number] = order
                masks = {
                    layer: mask
                    for layer, mask in enumerate(masks_of(adapter, rows))
                    if layer >= number
                }
                plan[number] = (order, rows.ids)
            if masks:
                plan[number] = (*plan.get(number, (None, rows.ids)), masks[number])
        bare = replace(prompt, embeds=embeds, deepstack=None)
        hooks = [
            layer.register_forward_pre_hook(
                _as_planned(number, decoder, prompt, plan, chosen), with_kwargs=True
            )
            for number, layer in enumerate(decoder.layers)
        ]
        try:
            logits.append(
                adapter.forward(embeds[None], None, positions[..., None, :], None, [bare])[0]
            )
        finally:
            for hook in hooks:
                hook.remove()
        embeds = torch.cat([embeds, adapter.embed_ids(ids[step : step + 1])])
        positions = torch.cat([positions, positions[..., -1:] + 1], -1)
    return torch.stack(logits)


def _as_planned(number, decoder, prompt, plan, chosen):
    def before(layer, args, kwargs):
        hidden = args[0]
        if prompt.deepstack is not None and 0 < number <= len(prompt.deepstack):
            hidden = hidden.clone()
            hidden[0, prompt.visual] += prompt.deepstack[number - 1]
        if number not in plan:
            return (hidden,), kwargs
        order, ids, mask = plan[number]
        if order is not None:
            added = iter(() if chosen[number].extra is None else chosen[number].extra.to(hidden))
            hidden = torch.stack(
                [next(added) if place is None else hidden[0, place] for place in order]
            )[None]
        kind = (decoder.config.layer_types[number],) if "Gemma" in type(decoder).__name__ else ()
        spots = decoder.rotary_emb(hidden, ids[None] if ids.dim() == 1 else ids[:, None], *kind)
        return (hidden,), kwargs | {
            "position_embeddings": spots,
            "position_ids": None,
            "attention_mask": mask,
        }

    return before


@torch.inference_mode()
@pytest.mark.parametrize("method", METHODS)
def test_every_method_equals_a_run_without_cache_under_the_models_own_masks(attending, method):
    pruner = METHODS[method]()
    prompt, tokens = dense(attending)
    said, chosen = run(attending, pruner, prompt, tokens)
    assert chosen
    want = without_cache(
        attending,
        prompt,
        chosen,
        said.logits.argmax(-1),
        renumber=attending.renumbers and pruner.renumbers,
    )
    assert (said.logits - want).abs().max() < 2e-5 * max(1.0, float(want.abs().max()))
    plain, _ = generate(attending, [prompt], max_new_tokens=STEPS, stop=False, keep_logits=True)
    assert (said.logits - plain[0].logits).abs().max() > 1e-3, (
        "the stage changed nothing: the test could not fail"
    )


@torch.inference_mode()
def test_attention_of_all_rows_equals_eager_attentions_in_front_of_every_stage(family):
    """All rows include visual rows, which see their whole image in some families.

    A window counts only the rows that are left.
    """
    prompt, tokens = dense(family)
    shown: dict[int, dict[int, torch.Tensor]] = {}

    @dataclass(frozen=True)
    class Halves(Pruner):
        def stages(self, num_layers):
            return tuple(range(1, num_layers))

        def select(self, stage):
            rows = torch.arange(len(stage.hidden))
            shown[stage.layer] = {
                of: stage.attention(rows, of) for of in (stage.layer - 1, stage.layer)
            }
            kept = torch.arange(0, len(stage.prompt.visual), 2)
            return Selection(kept if stage.layer == 2 else torch.arange(len(stage.prompt.visual)))

    run(family, Halves(Budget(tokens=1)), prompt, tokens)
    ran, layers = {}, family.model.get_decoder().layers
    hooks = [layer.self_attn.register_forward_hook(_note(ran, i)) for i, layer in enumerate(layers)]
    family.model.set_attn_implementation("eager")
    try:
        run(family, Halves(Budget(tokens=1)), prompt, tokens)
    finally:
        family.model.set_attn_implementation("sdpa")
        for hook in hooks:
            hook.remove()
    assert shown
    for stage, found in shown.items():
        for of, got in found.items():
            # A layer behind the drop runs with fewer rows.
            if got.shape == ran[of].shape:
                assert (got - ran[of]).abs().max() < 1e-5
            else:
                assert stage == of == 2


def _note(ran, number):
    def behind(_, args, out):
        ran.setdefault(number, out[1][0])

    return behind
