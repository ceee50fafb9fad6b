"""A method that cannot run on a model is said once, before the run: for every method on every family, as its rows would say it."""

import re
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.conftest import picture
from tests.families import FAMILIES
from tests.test_cli import run
from trimtok_cli.errors import UsageError
from trimtok_cli.models import load_model
from trimtok_cli.pruners import PRUNERS, Stage, build_pruner
from trimtok_cli.stages import check_method

SETTINGS = [(method, {}) for method, kind in PRUNERS.items() if kind] + [
    ("cdpruner", {"text": "llm"}), ("vispruner", {"similarity": "embeds"}), ("visionzip", {"cls": True}),
    ("prumerge", {"adaptive": True}), ("tome", {"r": 2}),
]  # fmt: skip


@pytest.fixture(scope="module", params=["llava", "siglip", "pixtral", *FAMILIES])
def family(request, tmp_path_factory):
    build = {"llava": tiny.llava, "siglip": tiny.siglip, "pixtral": tiny.pixtral, **FAMILIES}[request.param]
    return load_model(str(build(tmp_path_factory.mktemp("suits") / request.param)), device="cpu")


@torch.inference_mode()
@pytest.mark.parametrize(("method", "params"), SETTINGS)
def test_what_is_refused_before_a_run_is_what_every_image_would_be_refused(family, method, params):
    pruner = build_pruner(method, {"keep": 12, **params})  # few layers cannot merge down to less: that is another error
    inputs = family.prepare([picture(1, 150, 90)], "What?")
    tokens = family.encode_many([inputs], taps=pruner.reads_tower)[0]
    prompt = family.embed(inputs, tokens)
    try:
        check_method(family, pruner)
    except UsageError as error:
        assert method in str(error) and str(error).endswith(".") and len(str(error)) < 300
        with pytest.raises(UsageError):
            pruner.select(Stage(0, prompt.embeds, prompt, tokens))
        return
    if pruner.stages(family.num_layers) == (0,):
        assert len(pruner.select(Stage(0, prompt.embeds, prompt, tokens)).kept)


def test_nothing_of_the_model_runs_for_it(family, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *args, **kwargs: pytest.fail("a module was run"))
    for method, params in SETTINGS:
        with suppress(UsageError):
            check_method(family, build_pruner(method, {"keep": 2, **params}))


@pytest.mark.parametrize(
    ("command", "given", "says"),
    [
        ("caption", ["--method", "cdpruner"], "--clip-text .* text=llm"),
        ("vqa", ["--method", "cdpruner"], "--clip-text .* text=llm"),
        ("caption", ["--method", "fastv", "--param", "layer=9"], "layer=9 is behind the model's last layer"),
        ("caption", ["--method", "pyramiddrop", "--param", "layers=[2, 9]"], "is behind the model's last layer"),
    ],
)
def test_the_command_ends_with_one_sentence_and_no_answers(command, given, says, llava_folder, pictures):
    Path("q.jsonl").write_text(f'{{"image": "{pictures[0]}", "question": "What?"}}\n')
    source = pictures[0] if command == "caption" else "q.jsonl"
    done = run(command, source, "-m", llava_folder, "--keep", 5, "-o", "o.jsonl", *given, code=2)
    assert not Path("o.jsonl").exists()
    assert re.search(says, " ".join(done.stderr.split())) and done.stderr.count("Traceback") == 0


def test_a_tower_without_cls_says_so_before_the_run(tmp_path, pictures):
    folder = FAMILIES["gemma3"](tmp_path / "m")
    for method, says in (("prumerge", "last_saliency"), ("tome", "tome-projected"), ("vispruner", "similarity=embeds")):
        done = run("caption", pictures[0], "-m", folder, "--method", method, "--keep", 5, "-o", "o.jsonl", code=2)
        assert says in " ".join(done.stderr.split()) and not Path("o.jsonl").exists()
