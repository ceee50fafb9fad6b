"""Every family against the library itself.

Dense equals `generate`; pruned equals a masked prompt, or one built without the rows; boxes are where
pixels are painted.
"""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from tests.conftest import picture
from tests.support.families import FAMILIES, VIDEO_FAMILIES
from tests.support.generating import generate, generated_by_library
from trimtok_cli.engine.prompt_stage import reduce_prompts
from trimtok_cli.errors import ModelError
from trimtok_cli.media.frames import Clip
from trimtok_cli.models.loading import load_model
from trimtok_cli.pruners.registry import build_pruner

STEPS = 4
QUESTION = "What is to the left of it?"


# Each family once more with other sizes and heads: code that is right for one folder alone fails
# here.
OTHERWISE = {
    "llava_next": {"text_model": "mistral", "grid": 5},
    "llava_next_video": {"grid": 6},
    "llava_onevision": {"grid": 5},
    "qwen2_vl": {"layers": 3},
    "qwen2_5_vl": {"layers": 3},
    "qwen3_vl": {"deepstack": (0, 1)},
    "internvl": {"grid": 2, "tiles": 7},
    "idefics3": {"grid": 2, "tiles": 4},
    "smolvlm": {"grid": 4, "tiles": 3},
    "gemma3": {"grid": 5, "tied": False},
}


KINDS = [*FAMILIES, *(f"{name} otherwise" for name in FAMILIES)]


@pytest.fixture(scope="module", params=KINDS)
def family(request, tmp_path_factory):
    name, _, otherwise = request.param.partition(" ")
    options = {"kv_heads": 1, "seed": 3, "tied": True, **OTHERWISE[name]} if otherwise else {}
    return load_model(
        str(FAMILIES[name](tmp_path_factory.mktemp("families") / name, **options)), device="cpu"
    )


def kind_of(adapter) -> str:
    return adapter.model.config.model_type


def clip_of(count: int, width: int = 60, height: int = 44) -> Clip:
    """A clip with uneven times, which shows whether a processor samples again or invents times."""
    times = tuple(round(0.3 * i + 0.11 * (i % 2), 2) for i in range(count))
    frames = tuple(picture(70 + i, width, height) for i in range(count))
    return Clip(frames, times, times[-1] + 0.3, 24.0, "pyav", width, height, 90, 0, ())


def library_inputs(adapter, images, clip=None, question: str = QUESTION) -> dict:
    """The inputs that a user of the library would pass to `generate`."""
    content = (
        [{"type": "image"}] * len(images)
        + [{"type": "video"}] * (clip is not None)
        + [{"type": "text", "text": question}]
    )
    text = adapter.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    bos = adapter.processor.tokenizer.bos_token
    more = {} if clip is None else adapter.preprocessor.video_inputs(clip)
    start = not (bos and text.startswith(bos))
    nested = [list(images)] if images else None
    return adapter.processor(
        text=[text], images=nested, return_tensors="pt", add_special_tokens=start, **more
    )


def library_logits(adapter, **inputs) -> torch.Tensor:
    return generated_by_library(adapter.model, STEPS, **inputs)[1]


def dense_prompt(adapter, inputs):
    tokens = adapter.encode_many([inputs])[0]
    return adapter.embed(inputs, tokens), tokens


def our_logits(adapter, *prompts) -> torch.Tensor:
    answers, _ = generate(adapter, prompts, max_new_tokens=STEPS, stop=False, keep_logits=True)
    return torch.stack([answer.logits for answer in answers])


IMAGES = {
    "none": (),
    "wide": ((150, 60),),
    "tall": ((40, 170),),
    "tiny": ((5, 7),),
    "two": ((100, 80), (60, 150)),
}


@pytest.mark.parametrize("images", IMAGES)
def test_dense_equals_generate(family, images):
    pictures = [picture(i, *size) for i, size in enumerate(IMAGES[images])]
    want = library_logits(family, **library_inputs(family, pictures))
    assert want.std() > 0.3
    inputs = family.prepare(pictures, QUESTION)
    prompt, tokens = dense_prompt(family, inputs)
    assert (our_logits(family, prompt) - want).abs().max() < 1e-4
    placeholders = torch.isin(inputs.input_ids, torch.tensor(family.placeholder_ids))
    assert len(tokens) == len(tokens.box) == len(tokens.visual_index) == int(placeholders.sum())
    assert tokens.visual_index.unique().tolist() == list(range(len(pictures)))
    assert bool(((tokens.box >= 0) & (tokens.box <= 1)).all())
    assert (
        family.processor.tokenizer.decode(inputs.input_ids[inputs.instruction]).strip() == QUESTION
    )


def test_which_families_take_a_video(family):
    assert family.preprocessor.has_video == (kind_of(family) in VIDEO_FAMILIES)


@pytest.mark.parametrize(
    "family", [name for name in KINDS if name.split()[0] in VIDEO_FAMILIES], indirect=True
)
def test_video_equals_generate(family):
    for count in (1, 5):
        clip = clip_of(count)
        want = library_logits(family, **library_inputs(family, [], clip))
        inputs = family.prepare([], QUESTION, clip=clip)
        prompt, tokens = dense_prompt(family, inputs)
        assert (our_logits(family, prompt) - want).abs().max() < 1e-4
        assert set(tokens.visual_index.tolist()) == {0} and int(tokens.frame.max()) < count
    mixed = family.prepare([picture(3)], QUESTION, clip=clip)
    if family.preprocessor.mixes:
        want = library_logits(family, **library_inputs(family, [picture(3)], clip))
    else:
        want = library_logits(family, **library_inputs(family, [picture(3), *clip.frames]))
    assert (our_logits(family, dense_prompt(family, mixed)[0]) - want).abs().max() < 1e-4


def test_frames_as_images_are_one_video_with_one_budget(family):
    clip = clip_of(3)
    inputs = family.prepare([picture(1)], QUESTION, clip=clip, as_frames=True)
    _, tokens = dense_prompt(family, inputs)
    assert inputs.kinds == ("image", "video")
    assert tokens.frame[tokens.visual_index == 1].unique().tolist() == [0, 1, 2]
    want = library_logits(family, **library_inputs(family, [picture(1), *clip.frames]))
    assert (our_logits(family, family.embed(inputs, tokens)) - want).abs().max() < 1e-4


def ragged(adapter):
    """Samples whose prompts, image counts and shapes differ."""
    asked = [
        ([picture(1, 100, 80)], "Why?"),
        ([], QUESTION),
        ([picture(2, 40, 170), picture(3, 90, 90)], QUESTION * 2),
        ([picture(4, 100, 80)], "What is this, and what is it for?"),
    ]
    found = [adapter.prepare(images, question) for images, question in asked]
    if adapter.preprocessor.has_video:
        found.append(adapter.prepare([], "What happens?", clip=clip_of(4)))
    return found


def test_batch_equals_singles_dense_and_pruned(family):
    batch = ragged(family)
    tokens = family.encode_many(batch)
    prompts = [family.embed(inputs, visual) for inputs, visual in zip(batch, tokens, strict=True)]
    for pruner in (None, build_pruner("trimtokenator", {"keep": "30%"})):
        reduced, _ = reduce_prompts(
            pruner, prompts, tokens, num_layers=4, renumber=family.renumbers
        )
        together = our_logits(family, *reduced)
        assert len(together) == len(batch) > 3
        for inputs, got in zip(batch, together, strict=True):
            alone, visual = dense_prompt(family, inputs)
            (alone,), _ = reduce_prompts(
                pruner, [alone], [visual], num_layers=4, renumber=family.renumbers
            )
            assert (our_logits(family, alone)[0] - got).abs().max() < 1e-4


def test_a_wrong_number_of_placeholders_is_caught_with_a_sentence(family):
    inputs = family.prepare([picture(1, 100, 80)], QUESTION)
    at = int(torch.isin(inputs.input_ids, torch.tensor(family.placeholder_ids)).nonzero()[-1])
    fewer = replace(
        inputs, input_ids=torch.cat([inputs.input_ids[:at], inputs.input_ids[at + 1 :]])
    )
    with pytest.raises(ModelError, match=r"wrote \d+ placeholders for \d+ visual tokens"):
        family.encode_many([fewer])


def test_keep_all_is_dense(family):
    from trimtok_cli.pruners.budget import Budget
    from trimtok_cli.pruners.methods.trimtokenator import TrimTokenator

    prompt, tokens = dense_prompt(family, family.prepare([picture(1, 100, 80)], QUESTION))
    (same,), _ = reduce_prompts(
        TrimTokenator(keep=Budget(tokens=9999)),
        [prompt],
        [tokens],
        num_layers=4,
        renumber=family.renumbers,
    )
    assert torch.equal(our_logits(family, same), our_logits(family, prompt))


def masked_logits(adapter, prompt, dense, kept_rows) -> torch.Tensor:
    """Logits without a cache: the whole dense sequence at every step, dropped rows masked as keys.

    All rows have their original positions.
    """
    embeds, positions = dense.embeds, dense.positions
    mask = torch.zeros(len(dense), dtype=torch.long)
    mask[kept_rows] = 1
    rows, steps = our_logits(adapter, prompt)[0].argmax(-1), []
    for step in range(STEPS):
        extras = {}
        if dense.deepstack is not None:
            visual = torch.zeros(1, len(embeds), dtype=torch.bool)
            visual[0, dense.visual] = True
            extras = {"visual_pos_masks": visual, "deepstack_visual_embeds": list(dense.deepstack)}
        out = adapter.model.get_decoder()(
            inputs_embeds=embeds[None],
            attention_mask=mask[None],
            position_ids=positions[..., None, :],
            use_cache=False,
            **extras,
        )
        steps.append(adapter.model.lm_head(out.last_hidden_state[0, -1]))
        embeds = torch.cat([embeds, adapter.embed_ids(rows[step : step + 1])])
        positions = torch.cat([positions, positions[..., -1:] + 1], -1)
        mask = torch.cat([mask, mask.new_ones(1)])
    return torch.stack(steps)


def logits_without(adapter, inputs, dense, rows) -> torch.Tensor:
    """Logits of `generate` on a prompt of these rows alone, as if the others had never been."""
    ids = inputs.input_ids[rows][None]
    typed = "token_type_ids" in inputs.tensors
    given = (
        {"token_type_ids": torch.isin(ids, torch.tensor(adapter.placeholder_ids)).long()}
        if typed
        else {}
    )

    def swap(module, args, kwargs):
        if kwargs["inputs_embeds"].shape[1] == len(rows):
            kwargs["inputs_embeds"] = dense.embeds[rows][None]
        return args, kwargs

    hook = adapter.model.get_decoder().register_forward_pre_hook(swap, with_kwargs=True)
    try:
        return library_logits(adapter, input_ids=ids, attention_mask=torch.ones_like(ids), **given)[
            0
        ]
    finally:
        hook.remove()


@torch.inference_mode()
def test_pruned_equals_its_reference(family):
    """With kept positions: the dense run, dropped rows masked. Renumbered: `generate` without them."""
    inputs = family.prepare([picture(2, 150, 60), picture(5, 60, 100)], QUESTION)
    dense, tokens = dense_prompt(family, inputs)
    pruner = build_pruner("trimtokenator", {"keep": "40%"})
    (prompt,), ((kept,),) = reduce_prompts(
        pruner, [dense], [tokens], num_layers=4, renumber=family.renumbers
    )
    stays = set(dense.visual[list(kept.tokens)].tolist())
    rows = [r for r in range(len(dense)) if r in stays or r not in set(dense.visual.tolist())]
    ours = our_logits(family, prompt)[0]
    assert (ours - our_logits(family, dense)[0]).abs().max() > 0.05, (
        "pruning changed nothing: the test could not fail"
    )
    if not family.renumbers:
        assert torch.equal(prompt.positions, dense.positions[:, rows])
        assert (ours - masked_logits(family, prompt, dense, rows)).abs().max() < 1e-4
    else:
        assert prompt.positions.tolist() == list(range(len(rows)))
        assert (ours - logits_without(family, inputs, dense, rows)).abs().max() < 1e-4


def painted(image: Image.Image, x: float, y: float) -> Image.Image:
    spot, (width, height) = image.copy(), image.size
    side_x, side_y = max(width // 20, 1), max(height // 20, 1)
    spot.paste(
        (255, 0, 255),
        (
            int(x * width) - side_x,
            int(y * height) - side_y,
            int(x * width) + side_x,
            int(y * height) + side_y,
        ),
    )
    return spot


@pytest.mark.parametrize("size", [(240, 240), (360, 200), (150, 400)])
@torch.inference_mode()
def test_boxes_lie_where_the_pixels_came_from(family, size):
    """The tokens that change most when a spot is painted lie over it, in every tile that shows it.

    Newlines never change.
    """
    plain = picture(5, *size)
    base = family.encode_many([family.prepare([plain], "?")])[0]
    for x, y in ((0.2, 0.25), (0.7, 0.4), (0.45, 0.8), (0.85, 0.85)):
        moved = (
            family.encode_many([family.prepare([painted(plain, x, y)], "?")])[0].embeds
            - base.embeds
        )
        moved = moved.norm(dim=-1)
        nowhere = (base.box == 0).all(-1)
        assert bool((moved[nowhere] < 1e-5).all())
        x0, y0, x1, y1 = base.box[moved.argmax()].tolist()
        assert x0 - 0.07 <= x <= x1 + 0.07 and y0 - 0.07 <= y <= y1 + 0.07, (x, y, (x0, y0, x1, y1))


@torch.inference_mode()
def test_boxes_of_a_video_lie_in_the_frame_that_changed(family):
    clip = clip_of(6, 120, 120)
    inputs = family.prepare([], "?", clip=clip)
    base = family.encode_many([inputs])[0]
    assert len(base.box) == len(base.frame) and base.frame.tolist() == sorted(base.frame.tolist())
    for number, x, y in ((0, 0.3, 0.3), (3, 0.75, 0.3), (5, 0.3, 0.8)):
        frames = list(clip.frames)
        frames[number] = painted(frames[number], x, y)
        changed = Clip(tuple(frames), *[getattr(clip, name) for name in Clip.__slots__[1:]])
        moved = (
            family.encode_many([family.prepare([], "?", clip=changed)])[0].embeds - base.embeds
        ).norm(dim=-1)
        best = int(moved.argmax())
        x0, y0, x1, y1 = base.box[best].tolist()
        assert x0 - 0.1 <= x <= x1 + 0.1 and y0 - 0.1 <= y <= y1 + 0.1
        assert (
            0 <= number - int(base.frame[best]) < (2 if kind_of(family).startswith("qwen") else 1)
        )
