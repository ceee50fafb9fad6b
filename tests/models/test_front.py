"""A model that is loaded without its language model's layers gives the same prompts."""

import pytest
import torch

from tests.conftest import picture
from tests.support import tiny
from tests.support.families import FAMILIES
from tests.support.generating import rules
from trimtok_cli.engine.prompt_stage import check_method, reduce_prompts
from trimtok_cli.errors import ModelError
from trimtok_cli.models.checkpoint import read_settings
from trimtok_cli.models.loading import load_model
from trimtok_cli.models.weight_files import weight_bytes
from trimtok_cli.pruners.registry import build_pruner

KINDS = {"llava": tiny.llava, **FAMILIES}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_prompts_are_those_of_the_whole_model(name, tied, tmp_path):
    folder = KINDS[name](tmp_path / name, tied=tied)
    whole, front = load_model(str(folder), device="cpu"), load_model(str(folder), front=True)
    assert front.num_layers == whole.num_layers == 4 and front.folder == folder
    assert not len(front.model.get_decoder().layers) and front.device.type == "cpu"
    real = {id(each) for each in front.model.parameters() if each.device.type != "meta"}
    decoder = whole.model.get_decoder()
    kept = {id(each) for each in whole.model.parameters()}
    kept -= {id(each) for each in (*decoder.layers.parameters(), *decoder.norm.parameters())}
    kept -= set() if tied else {id(whole.model.lm_head.weight)}
    assert len(real) == len(kept)
    pruner = build_pruner("trimtokenator", {"keep": "5"})
    check_method(front, pruner)
    rules(front)
    made = []
    for adapter in (whole, front):
        inputs = adapter.prepare([picture(1)], "Why is it?")
        tokens = adapter.encode_many([inputs])
        prompts, _ = reduce_prompts(
            pruner,
            [adapter.embed(inputs, tokens[0])],
            tokens,
            num_layers=adapter.num_layers,
            renumber=adapter.renumbers,
        )
        made.append(prompts[0])
    for field in ("embeds", "positions", "visual", "alive", "instruction", "ids"):
        assert torch.equal(getattr(made[0], field), getattr(made[1], field)), field


def test_its_weights_are_counted_without_the_layers(llava_folder):
    settings = read_settings(llava_folder)
    whole = load_model(str(llava_folder), device="cpu").model
    layers = sum(each.numel() for each in whole.get_decoder().layers.parameters())
    counts = [weight_bytes(llava_folder, settings, 4, layers=layers) for layers in (True, False)]
    assert counts[0] - counts[1] == 4 * layers > 0


def test_quantized_checkpoints_and_adapters_are_refused(tmp_path, monkeypatch):
    from trimtok_cli.models import loading

    folder = tiny.llava(tmp_path / "m")
    monkeypatch.setattr(loading, "quantization", lambda _: "bitsandbytes")
    with pytest.raises(ModelError, match=r"quantized by bitsandbytes.*--engine local"):
        load_model(str(folder), device="cpu", front=True)
