"""Prefills of unequal prompts, padded on the right without a mask, against prefills one by one."""

import random
from contextlib import contextmanager

import pytest
import torch

from tests.conftest import picture
from tests.support import tiny
from tests.support.families import FAMILIES
from tests.support.generating import generate
from trimtok_cli.generation.kv_slots import KVSlots
from trimtok_cli.generation.padding import like_lengths, pad_right
from trimtok_cli.models.loading import load_model
from trimtok_cli.tokens import Selection

STEPS = 6
# A window hides rows that a causal kernel shows; the tokens of Gemma's images see forward.
MASKED = {"gemma3", "gemma3 window", "llava_next window"}
NAMES = ["llava", *FAMILIES, "gemma3 window", "llava_next window"]


def loaded(name: str, folder, **options):
    """A model, and unequal prompts: without an image, with one, and pruned, which leaves gaps.

    `window` stands for layers that look back over six rows.
    """
    name, _, window = name.partition(" ")
    build = tiny.llava if name == "llava" else FAMILIES[name]
    changes = {"text_model": "mistral"} if window and name == "llava_next" else {}
    adapter = load_model(str(build(folder / "m", **changes)), device="cpu", **options)
    if window:
        adapter.config.sliding_window = 6
        for layer in adapter.model.get_decoder().layers:
            if getattr(layer.self_attn, "sliding_window", None):
                layer.self_attn.sliding_window = 6
    prompts = []
    for i in range(3):
        inputs = adapter.prepare([picture(i, 80 + 9 * i, 60)] * (i > 0), "Why? " * (3 + 5 * i))
        prompts.append(adapter.embed(inputs, adapter.encode_many([inputs])[0]))
    selection = Selection(torch.arange(0, len(prompts[2].visual), 3))
    count = len(prompts[2].visual)
    prompts.append(prompts[2].reduced(selection, num_dense=count, renumber=adapter.renumbers))
    assert len({len(prompt) for prompt in prompts}) == 4
    return adapter, prompts


@contextmanager
def masks_seen(monkeypatch):
    """The mask of every attention call."""
    masks, real = [], torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, **options):
        masks.append(attn_mask)
        return real(query, key, value, attn_mask=attn_mask, **options)

    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        yield masks


@torch.inference_mode()
def prefill(adapter, prompts, length=None):
    """The logits behind each prompt, and the slots that were filled."""
    slots = KVSlots(adapter.config, adapter.dtype, adapter.device)
    slots.reserve(len(prompts), 256)
    embeds, positions = pad_right(prompts, length)
    with slots.filling(0, [len(prompt) for prompt in prompts]):
        return adapter.forward(embeds, None, positions, slots, prompts), slots


def rows_that_see_nothing(mask) -> int:
    return int((~(mask if mask.dtype == torch.bool else mask == 0).any(-1)).sum())


@pytest.mark.parametrize("name", NAMES)
def test_padded_prompts_have_the_logits_and_keys_of_single_ones(name, tmp_path, monkeypatch):
    adapter, prompts = loaded(name, tmp_path)
    with masks_seen(monkeypatch) as masks:
        logits, slots = prefill(adapter, prompts, 200)
    given = [mask for mask in masks if mask is not None]
    assert masks and bool(given) == (name in MASKED)
    assert not any(map(rows_that_see_nothing, given)), "a row sees nothing"
    for row, prompt in enumerate(prompts):
        alone, own = prefill(adapter, [prompt])
        assert (logits[row] - alone[0]).abs().max() < 1e-5
        for kept, wanted in zip(slots.store, own.store, strict=True):
            assert (kept[row] - wanted[0])[: len(prompt)].abs().max() < 1e-5
    assert slots.lengths.tolist() == [len(prompt) for prompt in prompts]


@pytest.mark.parametrize("name", NAMES)
def test_no_padded_row_is_no_number_in_half_precision(name, tmp_path):
    """The padding's own keys included: a mask gives them the weight 0, which hides no NaN."""
    adapter, prompts = loaded(name, tmp_path, dtype="float16")
    logits, slots = prefill(adapter, prompts)
    assert all(bool(kept.isfinite().all()) for kept in slots.store)
    for row, prompt in enumerate(prompts):
        alone = prefill(adapter, [prompt])[0][0]
        assert (logits[row] - alone).abs().max() < 0.02 * alone.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_the_plain_loop_hides_the_padding_in_every_step(name, tmp_path, monkeypatch):
    adapter, prompts = loaded(name, tmp_path)
    options = {"max_new_tokens": STEPS, "stop": False, "keep_logits": True}
    with masks_seen(monkeypatch) as masks:
        together, _ = generate(adapter, prompts, **options)
    assert not sum(rows_that_see_nothing(mask) for mask in masks if mask is not None)
    for answer, prompt in zip(together, prompts, strict=True):
        alone = generate(adapter, [prompt], **options)[0][0]
        assert answer.ids == alone.ids and (answer.logits - alone.logits).abs().max() < 1e-4


def test_lengths_are_shared_out_so_that_little_is_padded():
    lengths = [106, 108, 109, 113, 116, 122, 122, 150]
    assert list(like_lengths(lengths, 2048, 64)) == [7, 1]
    assert list(like_lengths(lengths, 2048, None)) == [8]
    assert list(like_lengths(lengths, 2048, 0)) == [1, 1, 1, 1, 1, 2, 1]
    assert list(like_lengths([620, 621, 634, 662], 1300, 64)) == [2, 1, 1]
    assert list(like_lengths([], 2048, 64)) == []
    generator = random.Random(0)
    for _ in range(200):
        lengths = sorted(generator.randrange(1, 200) for _ in range(generator.randrange(30)))
        tokens, padding = generator.randrange(1, 2000), generator.randrange(200)
        counts, first = list(like_lengths(lengths, tokens, padding)), 0
        for number, count in enumerate(counts):
            batch = lengths[first : first + count]
            first += count
            alone = count == 1
            assert alone or count * batch[-1] <= tokens
            assert count * batch[-1] - sum(batch) <= padding
            if number + 1 < len(counts):  # one more was too many
                padded = (count + 1) * lengths[first]
                assert padded > tokens or padded - sum(batch) - lengths[first] > padding
        assert first == len(lengths)
