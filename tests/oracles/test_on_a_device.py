"""A CUDA device against the CPU: whole runs, every family and every method, in float32.

DEVICE=cpu runs the same tests where there is no CUDA device, to see that they can be run at all.
"""

import os

import pytest
import torch

from tests.conftest import picture
from tests.support import tiny
from tests.support.families import FAMILIES
from tests.support.generating import continuous, generate, generated_by_library, run_all
from trimtok_cli.data import Sample
from trimtok_cli.engine.answer import encode, prune
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.models.loading import load_model
from trimtok_cli.prepare.sample import Ask, prepare
from trimtok_cli.pruners.registry import PRUNERS, build_pruner

DEVICE = os.environ.get("DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"
    ),
]
KINDS = {"llava": tiny.llava, "siglip": tiny.siglip, "pixtral": tiny.pixtral, **FAMILIES}
STEPS = 24


@pytest.fixture(scope="module", params=KINDS)
def models(request, tmp_path_factory):
    """One folder, loaded on the CPU and on the device, in float32."""
    folder = KINDS[request.param](tmp_path_factory.mktemp("models") / request.param)
    return [load_model(str(folder), device=device, dtype="float32") for device in ("cpu", DEVICE)]


@pytest.fixture(autouse=True)
def _exact_and_unbroken(request, caplog):
    """Convolutions in float32, as products are, not in TF32; and no step is run again."""
    caplog.set_level("DEBUG", "trimtok")
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
    said = [record.getMessage() for record in caplog.get_records("call")]
    if "memory" not in request.node.name:
        assert not [line for line in said if "run again" in line or "recorded" in line]


@pytest.fixture
def samples(tmp_path) -> list[Sample]:
    """Eleven questions about seven pictures of different shapes; one is about none, one fails."""
    found = [Sample("none", (), question="Who are you?"), Sample("gone", (tmp_path / "gone.png",))]
    for number in range(9):
        path = tmp_path / f"{number % 7}.png"
        picture(number % 7, 60 + 17 * (number % 7), 140 - 13 * (number % 7)).save(path)
        found.append(Sample(number, (path,), question="Why? " * (1 + number % 4)))
    return found


def outcomes(adapter, pruner, samples, **options):
    ask = Ask("What is it?", max_new_tokens=STEPS)
    return [
        (each.sample.id, each.answer, each.tokens, each.finish, each.kept, bool(each.error))
        for each in answer_all(adapter, pruner, samples, ask, **options)
    ]


def test_dense_logits_equal_the_library_s_on_the_device(models):
    apart = []
    for adapter in models:
        for number, size in enumerate(((150, 60), (40, 170))):
            inputs = adapter.prepare([picture(number, *size)], "What is to the left of it?")
            tensors = inputs.tensors | adapter.tower_inputs([inputs])
            there = {name: value.to(adapter.device) for name, value in tensors.items()}
            want = generated_by_library(adapter.model, STEPS, **there)[1][0]
            prompt = adapter.embed(inputs, adapter.encode_many([inputs])[0])
            loop = continuous(
                adapter, batch_limit=2, max_new_tokens=STEPS, stop=False, keep_logits=True
            )
            done = run_all(loop, [prompt] * 3)
            apart += [(each.generated.logits - want).abs().max() for each in done.values()]
    assert len(apart) == 12 and max(apart) < 2e-3


@pytest.mark.parametrize("method", ["dense", "trimtokenator"])
def test_a_run_answers_on_the_device_as_on_the_cpu(models, samples, method):
    on_cpu, adapter = models
    pruner = build_pruner(method, {"keep": 4} if method != "dense" else {})
    want = outcomes(on_cpu, pruner, samples)
    assert sum(failed for *_, failed in want) == 1
    for batch_size in (1, 4, None):
        assert outcomes(adapter, pruner, samples, batch_size=batch_size) == want
    assert outcomes(adapter, pruner, samples, batch_size=3, encode_ahead=True) == want


def test_half_precision_without_masks_says_what_masked_steps_say(models, samples):
    """bfloat16: the steps' attention without a mask, the fused norms and the recorded passes move
    logits by roundings, not by more."""
    _, exact = models
    adapter = load_model(exact.name, device=DEVICE)
    ask = Ask("What is it?", max_new_tokens=STEPS)
    prepared = [prepare(adapter.preprocessor, sample, ask) for sample in samples[2:]]
    prompts = [each.prompt for each in prune(adapter, None, encode(adapter, prepared))]
    options = {"max_new_tokens": STEPS, "stop": False, "keep_logits": True}
    done = run_all(continuous(adapter, batch_limit=len(prompts), **options), prompts)
    for number, prompt in enumerate(prompts):
        want = generate(adapter, [prompt], **options)[0][0]
        got = done[number].generated
        # Tokens may differ from where two were about equally likely.
        equal = next(
            (n for n, pair in enumerate(zip(got.ids, want.ids, strict=True)) if len(set(pair)) > 1),
            STEPS - 1,
        )
        apart = (got.logits[: equal + 1] - want.logits[: equal + 1]).float()
        assert apart.abs().max() < 0.1 * want.logits.float().std() + 0.1, number


# Settings that run on the family; what the others miss is in tests/pruners/test_suits.py.
SETTINGS = {name: {"keep": 6} for name in PRUNERS if name != "dense"} | {
    "cdpruner": {"keep": 6, "text": "llm"},
    "tome": {"keep": 12},
    "vtw": {"layer": 2},
}
SUITED = {
    "llava": list(SETTINGS),
    "qwen2_5_vl": ["trimtokenator", "divprune", "visionzip", "fastv"],
}


@pytest.mark.parametrize(
    ("kind", "method"), [(kind, method) for kind in SUITED for method in SUITED[kind]]
)
def test_every_method_keeps_on_the_device_what_it_keeps_on_the_cpu(tmp_path, samples, kind, method):
    folder = KINDS[kind](tmp_path / kind)
    on_cpu, adapter = (
        load_model(str(folder), device=device, dtype="float32") for device in ("cpu", DEVICE)
    )
    pruner = build_pruner(method, SETTINGS[method])
    want = outcomes(on_cpu, pruner, samples)
    assert sum(failed for *_, failed in want) == 1
    assert outcomes(adapter, pruner, samples, batch_size=None, encode_ahead=True) == want
    assert outcomes(adapter, pruner, samples, batch_size=1) == want


def test_workers_change_no_answer(tmp_path, samples):
    adapter = load_model(str(tiny.llava(tmp_path / "m")), device=DEVICE, dtype="float32")
    pruner = build_pruner("trimtokenator", {"keep": 4})
    want = outcomes(adapter, pruner, samples)
    assert sum(failed for *_, failed in want) == 1
    assert outcomes(adapter, pruner, samples, batch_size=None, workers=2) == want


@pytest.mark.skipif(DEVICE != "cuda", reason="a CPU's memory is not limited here")
def test_too_little_memory_costs_no_answer(tmp_path, samples):
    """A run of many answers within little memory: what breaks shrinks, and every answer comes."""
    folder = tiny.llava(tmp_path / "model")
    on_cpu, adapter = (
        load_model(str(folder), device=device, dtype="float32") for device in ("cpu", DEVICE)
    )
    many = [
        Sample(f"{number} {each.id}", each.images, question=each.question)
        for number in range(20)
        for each in samples[2:]
    ]
    want = outcomes(on_cpu, None, many, batch_size=8)
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    try:
        for spare in (6 << 20, 30 << 20):
            room = torch.cuda.memory_reserved() + spare
            torch.cuda.set_per_process_memory_fraction(room / total)
            assert outcomes(adapter, None, many, batch_size=180) == want
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
