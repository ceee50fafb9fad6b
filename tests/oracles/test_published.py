"""Every short name of the catalogue: a folder with its published settings is loaded and asked once.

The dense answer is that of the library's own greedy `generate` with the checkpoint's settings; then
half of the visual tokens are kept.
"""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoProcessor

from tests.conftest import picture
from tests.support.published import PUBLISHED
from trimtok_cli.data import Sample
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.models.catalog import ALIASES, CHECKPOINTS
from trimtok_cli.models.chat import has_start
from trimtok_cli.models.loading import load_model
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.registry import build_pruner
from trimtok_cli.sampling import Sampling

QUESTION = "What is it? a b"
COMPLETED = {
    "llava-1.5-13b",
    "joycaption-beta-one",
}  # whose files are not enough for the library itself
NEW_TOKENS = 6


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request, tmp_path_factory):
    """(alias, folder, adapter)"""
    transformers.utils.logging.disable_progress_bar()
    folder = PUBLISHED[request.param](tmp_path_factory.mktemp("published") / request.param)
    return request.param, folder, load_model(str(folder), device="cpu")


@pytest.fixture
def sample(tmp_path) -> Sample:
    picture(1, 130, 80).save(tmp_path / "p.png")
    return Sample(1, (tmp_path / "p.png",), question=QUESTION)


def batch_of(processor, text: str):
    start = has_start(processor.tokenizer, text)
    return processor(
        text=[text], images=[picture(1, 130, 80)], return_tensors="pt", add_special_tokens=not start
    )


def test_every_short_name_has_a_folder():
    assert set(PUBLISHED) == set(ALIASES)


def test_its_family_is_what_the_catalogue_says(published):
    alias, _, adapter = published
    assert adapter.model.config.model_type == next(
        c.family for c in CHECKPOINTS if c.alias == alias
    )
    tied = (
        adapter.model.lm_head.weight.data_ptr()
        == adapter.model.get_input_embeddings().weight.data_ptr()
    )
    # Small Qwens are; of OneVision's the text_config alone says so; of Gemma's nothing does but its
    # class.
    small = ("llava-onevision-0.5b", "qwen2-vl-2b", "qwen2.5-vl-3b", "qwen3-vl-2b", "qwen3-vl-4b")
    assert tied == (alias in small or alias.startswith("gemma"))


def test_the_processor_is_the_librarys_own_where_its_files_are_enough(published):
    alias, folder, adapter = published
    inputs = adapter.prepare([picture(1, 130, 80)], QUESTION)
    assert (
        inputs.input_ids.tolist()
        == batch_of(adapter.processor, inputs.text)["input_ids"][0].tolist()
    )
    if alias not in COMPLETED:
        library = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        assert inputs.input_ids.tolist() == batch_of(library, inputs.text)["input_ids"][0].tolist()
    assert QUESTION in inputs.text and "'type'" not in inputs.text
    assert adapter.decode(inputs.input_ids[inputs.instruction].tolist()) == QUESTION


def test_the_dense_prompt_has_the_librarys_logits(published):
    _, _, adapter = published
    inputs = adapter.prepare([picture(1, 130, 80)], QUESTION)
    prompt = adapter.embed(inputs, adapter.encode_many([inputs])[0])
    positions = prompt.positions[None] if prompt.positions.ndim == 1 else prompt.positions[:, None]
    with torch.inference_mode():
        cache = transformers.DynamicCache(config=adapter.model.config)
        ours = adapter.forward(prompt.embeds[None], None, positions, cache, [prompt])[0]
        theirs = adapter.model(**batch_of(adapter.processor, inputs.text)).logits[0, -1]
    assert theirs.std() > 0.3, "flat logits would prove nothing"
    assert (ours - theirs).abs().max() < 1e-4


def test_dense_is_generate_and_pruning_answers(published, sample):
    _, _, adapter = published
    ask = Ask(max_new_tokens=NEW_TOKENS, sampling=Sampling(greedy=True))
    (dense,) = answer_all(adapter, None, [sample], ask)
    inputs = adapter.prepare([picture(1, 130, 80)], QUESTION)
    batch = batch_of(adapter.processor, inputs.text)
    with torch.inference_mode():
        out = adapter.model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)[
            0, len(inputs.input_ids) :
        ]
    assert not dense.error and dense.answer == adapter.decode(out.tolist())
    (pruned,) = answer_all(adapter, build_pruner("trimtokenator", {"keep": "50%"}), [sample], ask)
    assert not pruned.error and 0 < pruned.tokens.kept < dense.tokens.kept == dense.tokens.visual


def test_all_end_tokens_of_the_checkpoint_end_an_answer(published):
    alias, _, adapter = published
    said = adapter.model.generation_config.eos_token_id
    assert set(adapter.end_ids) == set(said if isinstance(said, list) else [said])
    words = adapter.processor.tokenizer.convert_ids_to_tokens(list(adapter.end_ids))
    want = {"joy": 3, "qwe": 2, "gem": 2}.get(alias[:3], 1)
    assert len(words) == want and all(word.startswith("<") for word in words), words


def test_joycaption_is_asked_with_its_own_system_words_and_all_its_patches(tmp_path):
    adapter = load_model(str(PUBLISHED["joycaption-beta-one"](tmp_path / "m")), device="cpu")
    inputs = adapter.prepare([picture(1)], QUESTION, system="You are a helpful image captioner.")
    begin, end = "<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"
    image = (
        "<|reserved_special_token_70|><|reserved_special_token_69|><|reserved_special_token_71|>"
    )
    assert inputs.text == (
        "<|begin_of_text|>"
        + begin.format("system")
        + "You are a helpful image captioner."
        + end
        + begin.format("user")
        + image
        + QUESTION
        + end
        + begin.format("assistant")
    )
    assert len(adapter.encode_many([inputs])[0].embeds) == 36, (
        "a tower without class token has none to drop"
    )
    assert (
        Path(tmp_path / "m" / "tokenizer_config.json").exists()
        and not (tmp_path / "m" / "chat_template.jinja").exists()
    )
