"""The shapes of attention in the vision tower: a kernel that is planned for each is planned rarely.

A tower run attends over whole crops, so a shape is a number of crops, which `crops_per_batch`
bounds. Numbers are not rounded up: a LLaVA-NeXT image of five crops would pay for eight.
"""

import random

import pytest
import torch

from tests.conftest import picture
from tests.support.families import FAMILIES
from trimtok_cli.models.loading import load_model

# Most distinct shapes of 40 images of mixed sizes: one by one, and in batches of eight.
CEILINGS = {
    "llava_next": (2, 4),
    "llava_onevision": (6, 12),
    "internvl": (3, 5),
    "idefics3": (2, 2),
}


@pytest.mark.parametrize("name", CEILINGS)
def test_images_of_mixed_sizes_have_few_shapes_in_the_tower(name, tmp_path, monkeypatch):
    adapter = load_model(str(FAMILIES[name](tmp_path / name)), device="cpu")
    sizes = random.Random(1)
    inputs = [
        adapter.prepare([picture(i, sizes.randrange(84, 220, 4), sizes.randrange(84, 220, 4))], "?")
        for i in range(40)
    ]
    attend = torch.nn.functional.scaled_dot_product_attention
    shapes = set()

    def noted(query, *args, **kwargs):
        shapes.add((tuple(query.shape), query.stride()))
        return attend(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    for size, ceiling in zip((1, 8), CEILINGS[name], strict=True):
        shapes.clear()
        with torch.inference_mode():
            for start in range(0, 40, size):
                adapter.encode_many(inputs[start : start + size], signals=False)
        assert 0 < len(shapes) <= ceiling, (size, sorted(shapes))
