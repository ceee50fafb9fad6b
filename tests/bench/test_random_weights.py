"""Models made from a description: the real sizes, the real token counts, the same weights for the
same seed.
"""

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText

from tests.conftest import picture
from tests.support.generating import generate
from trimtok_cli.bench.random_models import describe, random_model
from trimtok_cli.errors import UsageError
from trimtok_cli.yaml_text import PRESETS

FOLDER = next(folder for folder in PRESETS if (folder / "bench").is_dir()) / "bench" / "models"
NEXT_TOKENS = 576 + 2304 + 48
TINY_QWEN = {
    "model_type": "qwen2_vl",
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "qwen2_vl_text",
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    },
    "vision_config": {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 64,
        "mlp_ratio": 2,
        "num_heads": 4,
        "patch_size": 14,
    },
}


def described(name: str) -> dict:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def on_meta(name: str):
    """Without memory: the modules and their shapes only."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(describe(name, described(name))[0])


def count(module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e9


@pytest.mark.parametrize(
    ("name", "language", "tower", "projector"),
    [
        ("llava-1.5-7b", 6.738, 0.3035, 0.0210),
        ("llava-next-7b", 6.738, 0.3035, 0.0210),
        ("llava-1.5-13b", 13.016, 0.3035, 0.0315),
    ],
)
def test_the_real_models_have_their_real_sizes(name, language, tower, projector):
    model = on_meta(name)
    assert count(model.get_decoder()) + count(model.lm_head) == pytest.approx(language, rel=1e-3)
    assert count(model.model.vision_tower) == pytest.approx(tower, rel=1e-3)
    assert count(model.model.multi_modal_projector) == pytest.approx(projector, rel=5e-3)


def test_qwen2_vl_has_its_real_size():
    model = on_meta("qwen2-vl-7b")
    assert count(model.model.visual) == pytest.approx(0.6756, rel=1e-2)
    assert count(model.get_decoder()) + count(model.lm_head) == pytest.approx(7.6156, rel=1e-3)


@pytest.mark.parametrize("name", [path.stem for path in sorted(FOLDER.glob("*.yaml"))])
def test_every_description_has_a_processor_whose_placeholders_are_the_real_count(name):
    config, processor = describe(name, described(name))
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    ]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    made = processor(text=[text], images=[picture(0, 672, 672)], return_tensors="pt")
    written = int((made["input_ids"] == config.image_token_id).sum())
    known = {
        "tiny": 36,
        "qwen2-vl-7b": 24 * 24,
        "llava-next-7b": NEXT_TOKENS,
        "small-llava-next": NEXT_TOKENS,
    }
    assert written == known.get(name, 576)
    assert processor.tokenizer.unk_token_id not in made["input_ids"]


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (
        random_model("tiny", described("tiny"), device="cpu", seed=seed).model.state_dict()
        for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("what", [described("tiny"), TINY_QWEN], ids=["llava", "qwen2_vl"])
def test_weights_have_the_dtype_and_buffers_are_those_of_a_loaded_model(what, dtype, tmp_path):
    adapter = random_model("x", what, device="cpu", dtype=dtype)
    assert {str(p.dtype) for p in adapter.model.parameters()} == {f"torch.{dtype}"}
    adapter.model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=getattr(torch, dtype))
    buffers = dict(loaded.named_buffers())
    assert buffers
    for name, buffer in adapter.model.named_buffers():
        assert buffer.dtype == buffers[name].dtype and torch.equal(buffer, buffers[name]), name


def test_tied_weights_are_one():
    model = random_model("x", TINY_QWEN, device="cpu").model
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("what", [described("tiny"), TINY_QWEN], ids=["llava", "qwen2_vl"])
def test_a_random_model_answers(what):
    adapter = random_model("x", what, device="cpu")
    inputs = adapter.prepare([picture(1)], "What is in it?")
    prompt = adapter.embed(inputs, adapter.encode_many([inputs])[0])
    (said,), _ = generate(adapter, [prompt], max_new_tokens=5, stop=False)
    assert said.steps == 5 and adapter.end_ids == (2,)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "bert"}, "model_type must be one of llava, llava_next, qwen2_vl"),
        ({"vision_config": {"hidden_size": "many"}}, "describes no llava model"),
        ({"text_config": {"model_type": "llama", "vocab_size": 50}}, "vocab_size must be at least"),
    ],
)
def test_a_description_that_fits_nothing_is_refused_in_a_sentence(change, says):
    with pytest.raises(UsageError, match=says):
        random_model("mine", {**described("tiny"), **change}, device="cpu")
