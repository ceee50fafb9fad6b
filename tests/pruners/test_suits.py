"""Which method runs on which family, as a table; what cannot run is said once, before a run, as
every row would say it.
"""

import re
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.commands.test_cli import run
from tests.conftest import picture
from tests.support import tiny
from tests.support.families import FAMILIES
from trimtok_cli.engine.prompt_stage import check_method
from trimtok_cli.errors import UsageError
from trimtok_cli.models.loading import load_model
from trimtok_cli.pruners.base import Pruner, Stage
from trimtok_cli.pruners.registry import PRUNERS, build_pruner

KINDS = {"llava": tiny.llava, "siglip": tiny.siglip, "pixtral": tiny.pixtral, **FAMILIES}
SETTINGS = {method: (method, {}) for method, kind in PRUNERS.items() if kind} | {
    "cdpruner by llm": ("cdpruner", {"text": "llm"}),
    "vispruner by embeds": ("vispruner", {"similarity": "embeds"}),
    "visionzip with cls": ("visionzip", {"cls": True}),
    "prumerge adaptive": ("prumerge", {"adaptive": True}),
    "tome by r": ("tome", {"r": 2}),
}

# What a vision tower lacks of what a setting needs; whatever does not stand here runs.
MERGED = (
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "internvl",
    "idefics3",
    "smolvlm",
    "gemma3",
)  # several tower tokens are one visual token
TILED = ("llava_next", "llava_next_video", "llava_onevision")
LAST = "last_saliency and last_keys and features and project"
REFUSED = {
    "cdpruner": dict.fromkeys(KINDS, "relevance"),
    "visionzip": {"pixtral": "saliency and keys"},
    "visionzip with cls": {
        "pixtral": "saliency and keys and cls and features and project",
        "siglip": "cls",
        "llava_onevision": "cls",
        **dict.fromkeys(MERGED, "cls and features and project"),
    },
    "vispruner": {"pixtral": "saliency and features", **dict.fromkeys(MERGED, "features")},
    "vispruner by embeds": {"pixtral": "saliency"},
    "prumerge": dict.fromkeys(("pixtral", *MERGED), LAST),
    "prumerge adaptive": dict.fromkeys(("pixtral", *MERGED), LAST),
    "tome": {
        **dict.fromkeys(("pixtral", *MERGED), "blocks and project"),
        **dict.fromkeys(TILED, "blocks"),
    },
    "tome by r": {
        **dict.fromkeys(("pixtral", *MERGED), "blocks and project"),
        **dict.fromkeys(TILED, "blocks"),
    },
}
ALONE = (
    "llava_onevision",
)  # whose tower offers nothing of several images: a row that has them is refused
REFUSALS = [
    (kind, setting) for kind in KINDS for setting in SETTINGS if kind in REFUSED.get(setting, {})
]
RUNS = [
    (kind, setting)
    for kind in KINDS
    for setting in SETTINGS
    if kind not in REFUSED.get(setting, {})
]


@pytest.fixture(scope="module", params=KINDS)
def family(request, tmp_path_factory):
    return load_model(
        str(KINDS[request.param](tmp_path_factory.mktemp("suits") / request.param)), device="cpu"
    )


def pruner_of(setting: str, keep: int = 12) -> Pruner:
    method, params = SETTINGS[setting]
    return build_pruner(method, {"keep": keep, "seed": 1, **params})


def test_the_table_has_a_cell_for_every_method_on_every_family():
    assert {method for method, _ in SETTINGS.values()} == {
        method for method, kind in PRUNERS.items() if kind
    }
    assert (len(KINDS), len(SETTINGS), len(RUNS), len(REFUSALS)) == (13, 20, 189, 71)


def test_the_table_is_what_is_said_before_a_run(family, request):
    lacks = {}
    for setting in SETTINGS:
        try:
            check_method(family, pruner_of(setting))
        except UsageError as error:
            said = str(error)
            assert (
                said.startswith(f"{SETTINGS[setting][0]} cannot run on this model: ")
                and said.endswith(".")
                and len(said) < 300
            )
            lacks[setting] = re.search(
                "it needs (.*) of the vision tower, which this one does not offer; .", said
            )[1]
    kind = request.node.callspec.params["family"]
    assert lacks == {setting: cells[kind] for setting, cells in REFUSED.items() if kind in cells}


@torch.inference_mode()
@pytest.mark.parametrize(("family", "setting"), REFUSALS, indirect=["family"])
def test_what_is_refused_before_a_run_is_what_every_image_would_be_refused(family, setting):
    pruner = pruner_of(setting)
    inputs = family.prepare([picture(1, 150, 90)], "What?")
    tokens = family.encode_many([inputs], signals=pruner.reads_tower)[0]
    prompt = family.embed(inputs, tokens)
    with pytest.raises(UsageError):
        pruner.select(Stage(0, prompt.embeds, prompt, tokens))


@torch.inference_mode()
@pytest.mark.parametrize("setting", SETTINGS)
def test_several_images_are_refused_in_their_rows_only_where_the_tower_offers_nothing_of_them(
    family, setting, request
):
    kind, pruner = request.node.callspec.params["family"], pruner_of(setting)
    inputs = family.prepare([picture(1, 150, 90), picture(2, 80, 90)], "What?")
    (tokens,) = family.encode_many([inputs], signals=pruner.reads_tower)
    missing = [name for name in pruner.signals if not tokens.signals.offers(name)]
    assert bool(missing) == (
        kind in REFUSED.get(setting, {}) or (kind in ALONE and bool(pruner.signals))
    )
    if kind in ALONE and pruner.signals and (kind, setting) in RUNS:
        prompt = family.embed(inputs, tokens)
        with pytest.raises(
            UsageError, match="which this model family does not offer for such an input"
        ):
            pruner.select(Stage(0, prompt.embeds, prompt, tokens))


def test_nothing_of_the_model_runs_for_it(family, monkeypatch):
    ran = []
    monkeypatch.setattr(
        torch.nn.Module,
        "__call__",
        lambda module, *args, **kwargs: ran.append(type(module).__name__),
    )
    for setting in SETTINGS:
        with suppress(UsageError):
            check_method(family, pruner_of(setting))
    assert ran == []


@pytest.mark.parametrize(
    ("command", "given", "says"),
    [
        ("caption", ["--method", "cdpruner"], "--clip-text .* text=llm"),
        ("vqa", ["--method", "cdpruner"], "--clip-text .* text=llm"),
        (
            "caption",
            ["--method", "fastv", "--param", "layer=9"],
            "layer=9 is behind the model's last layer",
        ),
        (
            "caption",
            ["--method", "pyramiddrop", "--param", "layers=[2, 9]"],
            "is behind the model's last layer",
        ),
    ],
)
def test_the_command_ends_with_one_sentence_and_no_answers(
    command, given, says, llava_folder, pictures
):
    Path("q.jsonl").write_text(f'{{"image": "{pictures[0]}", "question": "What?"}}\n')
    source = pictures[0] if command == "caption" else "q.jsonl"
    done = run(command, source, "-m", llava_folder, "--keep", 5, "-o", "o.jsonl", *given, code=2)
    assert not Path("o.jsonl").exists()
    assert re.search(says, " ".join(done.stderr.split())) and done.stderr.count("Traceback") == 0


def test_a_tower_without_cls_says_so_before_the_run(tmp_path, pictures):
    folder = FAMILIES["gemma3"](tmp_path / "m")
    for method, says in (
        ("prumerge", "last_saliency"),
        ("tome", "tome-projected"),
        ("vispruner", "similarity=embeds"),
    ):
        done = run(
            "caption",
            pictures[0],
            "-m",
            folder,
            "--method",
            method,
            "--keep",
            5,
            "-o",
            "o.jsonl",
            code=2,
        )
        assert says in " ".join(done.stderr.split()) and not Path("o.jsonl").exists()
