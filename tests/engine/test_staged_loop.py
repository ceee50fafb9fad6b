"""The continuous loop of methods that prune inside the decoder, against the simple one, one by one.

The simple loop keeps caches that grow as the library has them, and runs each prompt by itself.
"""

import gc
import operator
import time
from dataclasses import replace
from itertools import count

import pytest
import torch

from tests.conftest import picture
from tests.engine.test_stage_batches import ASKED, METHODS, Refuses, Uneven, encoded
from tests.engine.test_stage_masks import MODELS
from tests.generation.test_continuous import Full, Recording
from tests.generation.test_slot_attention import _without_waiting, varlen_attn
from tests.support.generating import rules
from trimtok_cli.data import Sample
from trimtok_cli.engine.answer import answer, finish, prune
from trimtok_cli.engine.loops import loop_for
from trimtok_cli.engine.staged_loop import StagedLoop
from trimtok_cli.errors import ModelError
from trimtok_cli.evaluation import compare
from trimtok_cli.generation import continuous, slot_attention, slot_steps
from trimtok_cli.generation.continuous import Continuous
from trimtok_cli.generation.types import run
from trimtok_cli.models.loading import load_model
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.registry import build_pruner
from trimtok_cli.sampling import Sampling

STEPS = 7
BATCH = 3  # fewer slots than prompts


@pytest.fixture(scope="module", params=MODELS)
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("staged") / request.param.replace(", ", "-")
    return load_model(str(MODELS[request.param](folder)), device="cpu")


llava = pytest.mark.parametrize("family", ["llava"], indirect=True)


@pytest.fixture
def recorded(monkeypatch):
    """Steps of a full batch are recorded at once, and tokens read late, as on CUDA."""
    monkeypatch.setattr(slot_steps, "CudaGraphs", Recording)
    monkeypatch.setattr("trimtok_cli.cuda_graphs.PAYS", 0)
    monkeypatch.setattr(continuous, "LAG", {"cpu": 1})


def answers(adapter, pruner, *, decode="continuous", batch=BATCH, given=None, **options):
    """Every finished request in the order of the requests, and the loop."""
    retries = options.pop("retries", True)
    made = rules(adapter, max_new_tokens=STEPS, **options)
    loop = loop_for(
        adapter,
        pruner,
        made,
        decode=decode,
        batch_limit=batch,
        keep_logits=True,
        retries=retries,
    )
    assert isinstance(loop, StagedLoop) == (decode == "continuous")
    found = list(run(loop, given or prune(adapter, pruner, encoded(adapter))))
    assert sorted(each.request.number for each in found) == list(range(len(ASKED)))
    return sorted(found, key=lambda each: each.request.number), loop


def singles(adapter, pruner, **options):
    return answers(adapter, pruner, decode="simple", batch=1, **options)[0]


def ending(adapter, monkeypatch, whole) -> None:
    """Makes answers end at unequal lengths: at the token that gives them most lengths."""
    said = [each.answer.ids for each in whole]

    def lengths(end: int) -> int:
        return len({ids.index(end) if end in ids else STEPS for ids in said})

    end = max({end for ids in said for end in ids}, key=lengths)
    monkeypatch.setattr(adapter.model.generation_config, "eos_token_id", end)


def same(alone, together) -> None:
    for one, other in zip(alone, together, strict=True):
        assert other.error is None, other.error
        assert one.request.kept == other.request.kept
        assert (one.answer.ids, one.answer.finish) == (other.answer.ids, other.answer.finish)
        want = one.answer.logits
        assert want.shape == other.answer.logits.shape
        assert (want - other.answer.logits).abs().max() < 1e-5 * max(1.0, float(want.abs().max()))


@torch.inference_mode()
@pytest.mark.parametrize("method", METHODS)
def test_refilled_answers_equal_singles_in_every_family(family, method, monkeypatch, unbroken):
    """More prompts than slots, of several shapes; answers end at unequal lengths."""
    pruner = METHODS[method]()
    ending(family, monkeypatch, singles(family, pruner, stop=False))
    alone = singles(family, pruner)
    assert len({one.answer.steps for one in alone}) > 1, "nothing to refill"
    assert [len(one.request.kept) > 1 for one in alone] == [bool(images) for images, _ in ASKED]
    together, loop = answers(family, pruner)
    same(alone, together)
    assert max(each.peak_batch for each in together) == BATCH
    assert not loop.stages.chosen, "choices of requests that are gone"
    lengths = {kept.shape[1] for kept in loop.steps.slots.store}
    assert len(lengths) > 1 or method == "adds" or max(lengths) <= 128
    assert not any(layer._forward_pre_hooks for layer in family.model.get_decoder().layers)


@torch.inference_mode()
@pytest.mark.parametrize("method", ["fastv", "sparsevlm"])
def test_recorded_steps_equal_singles_in_every_family(
    family, method, monkeypatch, recorded, unbroken
):
    """Steps wait for nothing, and have few shapes, whatever the lengths behind the stages."""
    pruner = METHODS[method]()
    whole = singles(family, pruner, stop=False)
    together, loop = answers(family, pruner, stop=False)
    same(whole, together)
    assert loop.lag == 1 and loop.steps.graphs.replays > STEPS
    assert len(loop.steps.graphs.recorded) <= 3
    ending(family, monkeypatch, whole)
    same(singles(family, pruner), answers(family, pruner)[0])


@llava
@torch.inference_mode()
@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_steps_that_read_the_places_in_use_equal_singles(
    family, method, record, monkeypatch, request, unbroken
):
    """Attention over unequal lengths, by the stand-in for the kernel; each group has its own."""
    pruner, calls = METHODS[method](), []

    def counted(*args, **options):
        calls.append(args)
        return varlen_attn(*args, **options)

    alone = singles(family, pruner, stop=False)
    monkeypatch.setattr(slot_attention, "variable_length", lambda: counted)
    monkeypatch.setattr(slot_attention, "fits", lambda *_: True)
    if record:
        request.getfixturevalue("recorded")
        monkeypatch.setattr(Recording, "_try", _without_waiting)
    same(alone, answers(family, pruner, stop=False)[0])
    assert len(calls) >= STEPS * family.num_layers


@llava
@torch.inference_mode()
@pytest.mark.parametrize("method", ["fastv", "sparsevlm"])
def test_drawn_tokens_are_those_of_singles(family, method, unbroken):
    options = {"sampling": Sampling(1.3, 0.9, seed=3)}
    pruner = METHODS[method]()
    alone = singles(family, pruner, **options)
    same(alone, answers(family, pruner, **options)[0])
    assert [one.answer.ids for one in alone] != [
        one.answer.ids for one in singles(family, pruner)
    ], "nothing was drawn"


@llava
@torch.inference_mode()
@pytest.mark.parametrize("method", METHODS)
def test_long_answers_make_room_behind_every_stage(family, method, monkeypatch, recorded, unbroken):
    """Slots are made for two new tokens, and grow by as few places as they can."""
    monkeypatch.setattr(continuous, "AT_ONCE", 2)
    monkeypatch.setattr("trimtok_cli.generation.kv_slots.GRAIN", 1)
    pruner = METHODS[method]()
    together, loop = answers(family, pruner, stop=False)
    same(singles(family, pruner, stop=False), together)
    slots, longest = loop.steps.slots, max(len(each.request.prompt) for each in together)
    assert longest + STEPS <= slots.length <= longest + STEPS + 2 and len(set(slots.places)) > 1


class Watched(Recording):
    """Recordings that may only be replayed over the tensors that they were made with."""

    cleared = 0

    def clear(self):
        super().clear()
        self.cleared += 1

    def __call__(self, step, *shape):
        store = list(step.__self__.slots.store)
        if self.recorded:
            assert all(map(operator.is_, store, self.store)), "the tensors were made anew"
        self.store = store
        return super().__call__(step, *shape)


@llava
@torch.inference_mode()
def test_recordings_go_where_a_prefill_makes_room_behind_a_stage(
    family, monkeypatch, recorded, unbroken
):
    """The last prompt keeps more tokens than those before it, and not more rows in front."""
    monkeypatch.setattr(slot_steps, "CudaGraphs", Watched)
    monkeypatch.setattr("trimtok_cli.generation.kv_slots.GRAIN", 1)
    pruner = Uneven(Budget(tokens=1))
    given = prune(family, pruner, encoded(family))
    together, loop = answers(family, pruner, given=given, batch=1, stop=False)
    same(singles(family, pruner, given=given, stop=False), together)
    assert loop.steps.graphs.cleared > 2, "no prefill made room"


@llava
@torch.inference_mode()
def test_prompts_that_a_stage_leaves_unequal_decode_together(family, unbroken):
    pruner = Uneven(Budget(tokens=1))
    together, _ = answers(family, pruner, stop=False)
    same(singles(family, pruner, stop=False), together)
    assert max(each.peak_batch for each in together) == BATCH


@llava
@torch.inference_mode()
def test_a_prompt_that_breaks_takes_no_other_along(family):
    alone = singles(family, Uneven(Budget(tokens=1)), stop=False)
    together, _ = answers(family, Refuses(Budget(tokens=1)), stop=False)
    assert isinstance(together.pop(1).error, FloatingPointError)
    alone.pop(1)
    same(alone, together)
    with pytest.raises(FloatingPointError):
        answers(family, Refuses(Budget(tokens=1)), retries=False)

    class Ends(Uneven):
        def select(self, stage):
            raise ModelError("no prompt can be answered.")

    with pytest.raises(ModelError, match="no prompt"):
        answers(family, Ends(Budget(tokens=1)))
    assert not any(layer._forward_pre_hooks for layer in family.model.get_decoder().layers)


@llava
@torch.inference_mode()
@pytest.mark.parametrize("method", ["fastv", "sparsevlm"])
def test_memory_that_runs_out_loses_nothing(family, method, monkeypatch):
    """Steps of three answers do not fit: all run again, with the choices made anew."""
    pruner = METHODS[method]()
    alone = singles(family, pruner, stop=False)
    given = prune(family, pruner, encoded(family))
    full = Full(family, 2)
    monkeypatch.setattr(family, "forward", full, raising=False)
    together, loop = answers(family, pruner, given=given, stop=False)
    same(alone, together)
    assert full.raised and loop.batch_limit == 2
    monkeypatch.undo()
    with pytest.raises(torch.OutOfMemoryError):
        monkeypatch.setattr(family, "forward", Full(family, 2), raising=False)
        answers(family, pruner, given=given, stop=False, retries=False)


@llava
@torch.inference_mode()
@pytest.mark.parametrize("method", ["fastv", "pyramiddrop"])
def test_a_group_that_cannot_grow_in_a_prefill_shrinks_the_batch(family, method, monkeypatch):
    """Memory runs out where a prefill makes room behind a stage, beside other answers."""
    pruner, broke = METHODS[method](), []
    alone = singles(family, pruner, stop=False)
    given = prune(family, pruner, encoded(family))
    real = slot_steps.KVSlots._open

    def open_group(slots, group, rows):
        if group and slots.rows > 1 and not slots.places[group]:
            broke.append(group)
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(slots, group, rows)

    monkeypatch.setattr(slot_steps.KVSlots, "_open", open_group)
    together, loop = answers(family, pruner, given=given, stop=False)
    same(alone, together)
    assert broke and loop.batch_limit < BATCH


@llava
@torch.inference_mode()
@pytest.mark.parametrize("lag", [0, 1])
def test_seconds_of_the_choice_are_no_seconds_of_the_prefill(family, lag, monkeypatch):
    monkeypatch.setattr(continuous, "LAG", {"cpu": lag})
    pruner = METHODS["sparsevlm"]()
    given = prune(family, pruner, encoded(family))
    select, calls = type(pruner).select_many, count()

    def selected(self, stages):
        if next(calls) % 2:  # every other choice is slower than all else
            time.sleep(0.3)
        return select(self, stages)

    monkeypatch.setattr(type(pruner), "select_many", selected)
    found, _ = answers(family, pruner, given=given, stop=False)
    assert next(calls) > 2
    for before, after in zip(given, found, strict=True):
        if ASKED[before.number][0]:
            assert after.request.seconds.prune > before.seconds.prune
        assert after.seconds.prefill > 0 and after.seconds.decode > 0


@llava
def test_compare_runs_all_methods_in_one_kind_of_loop(family, tmp_path, monkeypatch, thawed):
    """The answers are those of the simple loop; no setting is asked to go batch by batch."""
    made = []

    frozen = []

    def noted(*args, **options):
        made.append(loop_for(*args, **options))
        return made[-1]

    def finished(*args):
        frozen.append(gc.get_freeze_count())
        return finish(*args)

    monkeypatch.setattr(compare, "finish", finished)

    monkeypatch.setattr(compare, "loop_for", noted)
    pruners = [None, *(build_pruner(name, {"keep": 4}) for name in ("trimtokenator", "fastv"))]
    picture(0, 100, 80).save(tmp_path / "a.png")
    sample = Sample("a", images=(tmp_path / "a.png",), names=("a.png",))
    ask = Ask("What is here?", max_new_tokens=STEPS)
    (found,) = compare.compare_all(family, pruners, [sample], ask)
    assert made and all(isinstance(loop, Continuous) for loop in made)
    for pruner, result in zip(pruners, found.results, strict=True):
        (want,) = answer(family, pruner, [sample], replace(ask, decode="simple"))
        assert (result.answer, result.kept) == (want.answer, want.kept) and not result.error
    assert min(frozen) > 10_000 and gc.get_freeze_count() == 0, "collections go over the model"
