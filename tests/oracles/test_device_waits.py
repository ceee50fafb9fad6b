"""Where the host waits for the device, stage by stage, as ceilings that may only fall.

No device is needed: `Device` marks the tensors that would lie on one.
"""

import pytest
import torch

from tests.conftest import picture
from tests.support import tiny
from tests.support.device_waits import Device
from tests.support.families import FAMILIES
from tests.support.generating import continuous, requests
from trimtok_cli.engine.prompt_stage import reduce_prompts
from trimtok_cli.models.loading import load_model
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.kernels import greedy
from trimtok_cli.pruners.registry import PRUNERS

BUILDERS = {"llava": tiny.llava, "siglip": tiny.siglip, "pixtral": tiny.pixtral, **FAMILIES}
QUESTIONS = ("What?", "What is it that I see there?", "And what now?")
SIZES = ((200, 150), (90, 84), (200, 150))

# The library compares the numbers of placeholders and features once, and writes both into a message
# that nobody reads, for each run of the tower.
CHECK = 2

# Most waits of a batch of three samples in each stage.
ENCODE = dict.fromkeys(BUILDERS, CHECK) | {
    # Images of two shapes; the sizes go to the device and are read back.
    "pixtral": 2 * (CHECK + 2),
    # One more for each run: the numbers of tokens, made a tensor.
    "llava_next": CHECK + 1,
    "llava_next_video": CHECK + 1,
    "llava_onevision": 2 * (CHECK + 1),  # images of two shapes
    # Tiles of zeros are looked for and left out.
    "idefics3": 5,
    "smolvlm": 9,
}
PRUNE = 1  # the kept tokens, which the records hold, for the whole batch
# Rows that deepstack features are added to are found by a mask, layer by layer.
PREFILL = dict.fromkeys(BUILDERS, 0) | {"qwen3_vl": 4}
DECODE = 0
BLOCK = 1  # the tokens of a prefill or of a step, which are read while the next one runs


@pytest.fixture(scope="module", params=BUILDERS)
def placed(request, tmp_path_factory):
    """A family's name, its adapter on the device, and the device."""
    folder = BUILDERS[request.param](tmp_path_factory.mktemp("waits") / request.param)
    adapter = load_model(str(folder), device="cpu")
    device = Device()
    device.place(adapter)
    return request.param, adapter, device


@pytest.fixture(autouse=True)
def _no_kernels(monkeypatch):
    """Triton cannot take tensors of a device that is not there."""
    monkeypatch.setattr(greedy, "_without_kernels", True)


def encoded(adapter, inputs, *, signals: bool = False):
    tokens = adapter.encode_many(inputs, signals=signals)
    return tokens, [adapter.embed(*each) for each in zip(inputs, tokens, strict=True)]


@pytest.mark.parametrize("method", ["trimtokenator", "divprune"])
def test_a_batch_waits_no_more_often_than_it_may(placed, method, monkeypatch):
    name, adapter, device = placed
    inputs = [
        adapter.prepare([picture(i, *size)], question)
        for i, (size, question) in enumerate(zip(SIZES, QUESTIONS, strict=True))
    ]
    pruner = PRUNERS[method](Budget(tokens=4))
    run = adapter.forward

    def forward(embeds, *args, **kwargs):
        with device.during("prefill" if embeds.shape[1] > 1 else "decode"):
            return run(embeds, *args, **kwargs)

    monkeypatch.setattr(adapter, "forward", forward, raising=False)
    with device, torch.inference_mode():
        encoded(adapter, inputs)  # the library makes its mean and deviation once for all
        device.waits.clear()
        with device.during("encode"):
            tokens, prompts = encoded(adapter, inputs)
        with device.during("prune"):
            reduced, _ = reduce_prompts(
                pruner, prompts, tokens, num_layers=adapter.num_layers, renumber=adapter.renumbers
            )
        with device.during("loop"):
            loop = continuous(adapter, batch_limit=4, max_new_tokens=6, stop=False)
            loop.add(requests(reduced))
            finished, steps = [], 0
            while loop.busy:
                finished += loop.step()
                steps += 1
    assert len(finished) == 3 and not any(each.error for each in finished)
    assert device.count("encode") <= ENCODE[name], device.waits
    assert device.count("prune") <= PRUNE, device.waits
    assert device.count("prefill") <= PREFILL[name], device.waits
    assert device.count("decode") <= DECODE, device.waits
    assert device.count("loop") <= BLOCK * (steps + 1), device.waits
    assert device.count("outside") == 0, device.waits


@pytest.mark.parametrize("placed", ["llava"], indirect=True)
def test_stop_strings_wait_for_nothing_but_the_tokens(placed, monkeypatch):
    """The host has a prompt's ids before it reads the first token."""
    _, adapter, device = placed
    config = adapter.model.generation_config
    monkeypatch.setattr(config, "stop_strings", ["no answer says this"])
    inputs = [adapter.prepare([picture(i, 90, 84)], each) for i, each in enumerate(QUESTIONS)]
    with device, torch.inference_mode():
        _, prompts = encoded(adapter, inputs)
        loop = continuous(adapter, batch_limit=4, max_new_tokens=6)
        assert loop.rules.criteria, "nothing reads text"
        device.waits.clear()
        steps = 0
        with device.during("loop"):
            loop.add(requests(prompts))
            while loop.busy:
                loop.step()
                steps += 1
    assert device.count("loop") <= BLOCK * (steps + 1), device.waits


# Waits of each method's choice for three prompts of one image each, beside the kept tokens.
METHODS = {"random": 3, "tome": 3} | dict.fromkeys(
    [
        "divprune",
        "divprune-star",
        "prumerge",
        "tome-projected",
        "trimtokenator",
        "uniform",
        "vispruner",
        "visionzip",
    ],
    0,
)


def test_every_method_of_the_prompt_has_a_ceiling():
    """CDPruner needs a checkpoint beside the model; its search is one of those above."""
    of_prompt = {
        name for name, kind in PRUNERS.items() if kind and 0 in kind(Budget(tokens=4)).stages(4)
    }
    assert of_prompt - {"cdpruner"} == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("placed", ["llava"], indirect=True)
def test_a_methods_choice_waits_no_more_often_than_it_may(placed, method):
    _, adapter, device = placed
    pruner = PRUNERS[method](Budget(tokens=9))
    inputs = [adapter.prepare([picture(i)], question) for i, question in enumerate(QUESTIONS)]
    with device, torch.inference_mode():
        tokens, prompts = encoded(adapter, inputs, signals=pruner.reads_tower)
        device.waits.clear()
        with device.during("prune"):
            reduced, _ = reduce_prompts(
                pruner, prompts, tokens, num_layers=adapter.num_layers, renumber=adapter.renumbers
            )
    assert all(len(prompt.visual) == 9 for prompt in reduced)
    assert device.count("prune") <= METHODS[method] + PRUNE, device.waits
    assert device.count("prune") >= PRUNE, "the read of the kept tokens was not seen"


READS = {
    "tolist": lambda there, here: there.tolist(),
    "item": lambda there, here: there.sum().item(),
    "int": lambda there, here: int(there.sum()),
    "bool": lambda there, here: bool(there.sum() > 1),
    "numpy": lambda there, here: there.numpy(),
    "mask": lambda there, here: there[there > 0],
    "nonzero": lambda there, here: there.nonzero(),
    "unique": lambda there, here: there.unique(),
    "repeat": lambda there, here: torch.repeat_interleave(there, there),
    "to the host": lambda there, here: there.cpu(),
    "to the device": lambda there, here: here.to(there.device),
    "made there": lambda there, here: torch.tensor([1, 2], device=there.device),
    "index from the host": lambda there, here: there[here],
    "a view": lambda there, here: there[1:].view(1, -1).tolist(),
}

FREE = {
    "sum": lambda there, here: there.sum() + 1,
    "fill": lambda there, here: there.clone().masked_fill_(there > 0, 1),
    "pinned": lambda there, here: here.pin_memory().to(there.device, non_blocking=True),
    "index": lambda there, here: there[there],
    "made there": lambda there, here: torch.arange(3, device=there.device) + there,
    "on the host": lambda there, here: here.tolist(),
    "dtype": lambda there, here: there.to(torch.float32),
}


@pytest.mark.parametrize("kind", [*(f"{name} waits" for name in READS), *FREE])
def test_what_waits_is_seen_and_nothing_else(kind):
    device = Device()
    there, here = torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1])
    device.mark(there)
    name = kind.removesuffix(" waits")
    with device, torch.inference_mode():
        (READS if kind.endswith(" waits") else FREE)[name](there, here)
        assert there.is_cuda and not here.is_cuda
    assert device.waits.total() == (1 if kind.endswith(" waits") else 0), device.waits
