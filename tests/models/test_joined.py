"""Linear layers of one input as one product, held against each layer by itself."""

from collections import Counter

import pytest
import torch
from torch import nn

from tests.generation.test_right_padding import loaded, prefill
from trimtok_cli.models.faster import joined_products
from trimtok_cli.models.joined import Joined, join

SIZES = (24, 8, 8)


def layers(bias: bool = False, dtype: torch.dtype = torch.float32) -> list[nn.Linear]:
    torch.manual_seed(3)
    return [nn.Linear(16, size, bias=bias, dtype=dtype) for size in SIZES]


def owners(parts: list[nn.Linear]) -> Counter:
    return Counter(weight for part in parts for weight in part.parameters())


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_a_joined_product_is_each_layer_s(bias):
    parts = layers(bias)
    weights = [part.weight.clone() for part in parts]
    given = [torch.randn(shape) for shape in ((2, 3, 16), (1, 16), (0, 16))]
    wanted = [[part(rows) for part in parts] for rows in given]
    joined = join(parts, owners(parts))
    for part, weight in zip(parts, weights, strict=True):
        assert torch.equal(part.weight, weight) and isinstance(part.weight, nn.Parameter)
        assert (
            part.weight.untyped_storage().data_ptr() == joined.weight.untyped_storage().data_ptr()
        )
    for rows, results in zip(given, wanted, strict=True):
        found = joined(rows)
        one_by_one = [joined.first(rows), joined.other(1)(rows), joined.other(2)(rows)]
        for result, together, alone, part in zip(results, found, one_by_one, parts, strict=True):
            torch.testing.assert_close(together, result)
            assert torch.equal(alone, together)
            torch.testing.assert_close(part(rows), result)  # the module by itself, as ever


@torch.no_grad()
def test_a_layer_that_is_asked_for_something_else_computes_it():
    parts = layers()
    joined = Joined(parts)
    rows, others = torch.randn(2, 3, 16)
    joined.first(rows)
    torch.testing.assert_close(joined.other(1)(others), parts[1](others))
    torch.testing.assert_close(joined.other(2)(rows), parts[2](rows))
    assert joined.given is None and joined.shares == [], "nothing of a pass is kept"
    torch.testing.assert_close(joined.other(1)(rows), parts[1](rows))


@torch.no_grad()
def test_what_is_written_into_a_layer_afterwards_counts():
    parts, rows = layers(bias=True), torch.randn(3, 16)
    joined = Joined(parts)
    for part in parts:
        part.weight.mul_(2)
        part.bias.add_(1)
    apart = torch.cat([part(rows) for part in parts], dim=-1)
    assert torch.allclose(torch.cat(list(joined(rows)), dim=-1), apart, atol=1e-6)


def test_layers_that_are_not_alike_stay_apart():
    def refused(parts, counts=None) -> bool:
        places = [part.weight.data_ptr() for part in parts]
        assert join(parts, counts or owners(parts)) is None
        return places == [part.weight.data_ptr() for part in parts]

    class Own(nn.Linear):
        pass

    hooked, replaced_one = layers(), layers()
    hooked[1].register_forward_hook(lambda *_: None)
    replaced_one[0].forward = replaced_one[0].forward
    with torch.inference_mode():
        for_inference = layers()
    shared = layers()
    twice = owners(shared)
    twice[shared[0].weight] += 1
    assert refused([*layers()[:2], Own(16, 8)])
    assert refused([*layers()[:2], nn.Linear(8, 8, bias=False)])
    assert refused([*layers()[:2], nn.Linear(16, 8, bias=True)])
    assert refused([*layers()[:2], nn.Linear(16, 8, bias=False).bfloat16()])
    assert refused(hooked) and refused(replaced_one) and refused(for_inference)
    assert refused(shared, twice)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@torch.inference_mode()
def test_a_decoder_with_joined_products_computes_the_same(name, tmp_path):
    adapter, prompts = loaded(name, tmp_path)
    adapter.faster = []  # oneDNN would lay the weights out in its own way
    wanted = prefill(adapter, prompts)[0]
    modules = list(adapter.model.get_decoder().modules())
    counts = Counter(weight for module in modules for weight in module.parameters(recurse=False))
    forms = [form for module in modules for form in joined_products(module, counts)]
    assert len(forms) == 3 * adapter.num_layers
    adapter.faster = forms
    assert (prefill(adapter, prompts)[0] - wanted).abs().max() < 1e-4
    assert not any("forward" in vars(module) for module in modules)
    adapter.faster = []
    assert (prefill(adapter, prompts)[0] - wanted).abs().max() < 1e-4


def test_a_model_with_joined_products_is_saved_with_all_its_weights(tmp_path):
    """Its weights are views of larger tensors, each of which is written by itself."""
    adapter, _ = loaded("llava", tmp_path)
    wanted = {name: weight.clone() for name, weight in adapter.model.state_dict().items()}
    modules = list(adapter.model.get_decoder().modules())
    counts = Counter(weight for module in modules for weight in module.parameters(recurse=False))
    assert [form for module in modules for form in joined_products(module, counts)]
    adapter.model.save_pretrained(tmp_path / "saved")
    again = type(adapter.model).from_pretrained(tmp_path / "saved").state_dict()
    assert again.keys() == wanted.keys()
    assert all(torch.equal(again[name], weight) for name, weight in wanted.items())
