"""Batches of methods that prune inside the decoder: kept tokens and logits are those of singles.

These are the batches of the simple loop, each of prompts of one shape.
"""

from dataclasses import dataclass, replace

import pytest
import torch

from tests.conftest import picture
from tests.engine.test_stage_masks import MODELS, Adds
from tests.support.generating import rules
from trimtok_cli.data import Sample, Seconds
from trimtok_cli.engine.answer import prune
from trimtok_cli.engine.batch import Encoded
from trimtok_cli.engine.loops import Layerwise, loop_for
from trimtok_cli.errors import ModelError
from trimtok_cli.generation.types import run
from trimtok_cli.models.loading import load_model
from trimtok_cli.prepare.sample import Prepared
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.registry import build_pruner
from trimtok_cli.tokens import Selection

STEPS = 4
METHODS = {
    "fastv": lambda: build_pruner("fastv", {"keep": 5}),
    "pyramiddrop": lambda: build_pruner("pyramiddrop", {"keep": 3}),
    "sparsevlm": lambda: build_pruner("sparsevlm", {"keep": 4}),
    "vtw": lambda: build_pruner("vtw", {"keep": 5}),
    "adds": lambda: Adds(Budget(tokens=1)),
}
# Pictures and a question. Three prompts have one picture and questions of one length, and so one
# shape; the others are alone.
ASKED = [
    ([0], "What is here?"),
    ([1], "Which is red?"),
    ([0, 1], "Left?"),
    ([2], "Where are we?"),
    ([1, 2], "Right"),
    ([3], "Is it raining?"),
    ([], "Who?"),
]


@pytest.fixture(scope="module", params=MODELS)
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches") / request.param.replace(", ", "-")
    return load_model(str(MODELS[request.param](folder)), device="cpu")


def encoded(adapter) -> list[Encoded]:
    asked = [
        adapter.prepare([picture(i, 100, 80) for i in images], words) for images, words in ASKED
    ]
    return [
        Encoded(
            Prepared(Sample(number), ASKED[number][1], inputs, (), Seconds(), number=number),
            tokens,
            replace(adapter.embed(inputs, tokens), seed=number),
            Seconds(),
        )
        for number, (inputs, tokens) in enumerate(
            zip(asked, adapter.encode_many(asked), strict=True)
        )
    ]


def answers(adapter, pruner, batch_limit: int | None):
    """Every finished request, in the order of the requests."""
    loop = loop_for(
        adapter,
        pruner,
        rules(adapter, max_new_tokens=STEPS, stop=False),
        decode="simple",
        batch_limit=batch_limit,
        keep_logits=True,
    )
    assert isinstance(loop, Layerwise)
    found = list(run(loop, prune(adapter, pruner, encoded(adapter))))
    assert len(found) == len(ASKED)
    return sorted(found, key=lambda each: each.request.number)


@torch.inference_mode()
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_singles(family, method):
    """Prompts of unequal lengths are mixed in; those of one shape run together."""
    pruner = METHODS[method]()
    alone, together = answers(family, pruner, 1), answers(family, pruner, 3)
    assert {each.peak_batch for each in alone} == {1}
    assert max(each.peak_batch for each in together) == 3
    for one, other in zip(alone, together, strict=True):
        assert one.request.kept == other.request.kept
        assert len(one.request.kept) > 1 or not ASKED[one.request.number][0]
        assert one.answer.ids == other.answer.ids
        want = one.answer.logits
        assert (want - other.answer.logits).abs().max() < 1e-5 * max(1.0, float(want.abs().max()))
    distinct = {tuple(each.answer.logits[0].tolist()) for each in together}
    assert len(distinct) == len(ASKED), "prompts took each other's answers"


@dataclass(frozen=True)
class Uneven(Pruner):
    """Leaves each prompt another number of tokens, by what its picture shows."""

    def stages(self, num_layers: int) -> tuple[int, ...]:
        return (2,)

    def select(self, stage):
        count = 1 + stage.prompt.seed % 3
        return Selection(torch.arange(min(count, len(stage.prompt.visual))))


class Refuses(Uneven):
    def select(self, stage):
        if stage.prompt.seed == 1:
            raise FloatingPointError("not this one")
        return super().select(stage)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llava"], indirect=True)
def test_prompts_that_a_stage_leaves_unequal_run_one_by_one(family):
    alone = answers(family, Uneven(Budget(tokens=1)), 1)
    together = answers(family, Uneven(Budget(tokens=1)), None)
    for one, other in zip(alone, together, strict=True):
        assert one.request.kept == other.request.kept
        assert (one.answer.logits - other.answer.logits).abs().max() < 1e-5
    assert not any(layer._forward_pre_hooks for layer in family.model.get_decoder().layers)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llava"], indirect=True)
def test_a_prompt_that_breaks_takes_no_other_of_its_batch_along(family):
    alone = answers(family, Uneven(Budget(tokens=1)), 1)
    together = answers(family, Refuses(Budget(tokens=1)), 4)
    assert [each.request.number for each in together if each.error] == [1]
    assert isinstance(together[1].error, FloatingPointError)
    for one, other in zip(alone, together, strict=True):
        assert other.error or torch.allclose(one.answer.logits, other.answer.logits, atol=1e-5)

    class Ends(Uneven):
        def select(self, stage):
            raise ModelError("no prompt can be answered.")

    with pytest.raises(ModelError, match="no prompt"):
        answers(family, Ends(Budget(tokens=1)), 4)
