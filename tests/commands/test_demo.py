"""The demo model in samples/demo and the README's commands, run as a newcomer would run them.

The pictures are in the repository, the answers are checked, and nothing comes from the hub.
"""

import json
import os
import re
import shlex
from functools import cache
from pathlib import Path
from random import Random

import pytest
import scenes
import torch
from typer.testing import CliRunner

from trimtok_cli import cli
from trimtok_cli.cli import app

ROOT = Path(__file__).parents[2]
MODEL, SAMPLES = ROOT / "samples" / "demo" / "model", ROOT / "samples"


def trimtok(*args: object, code: int = 0):
    done = CliRunner().invoke(app, [str(a) for a in args])
    assert done.exit_code == code, done.stderr
    return done


def truths() -> list[scenes.Scene]:
    """The scenes in samples/images, drawn again with the same random numbers in the same order."""
    rng, found = Random(1), []
    for _ in range(8):
        scene = scenes.layout(rng)
        asked = scenes.questions(scene, rng)
        rng.sample(range(len(asked)), len(asked))
        found.append(scene)
    return found


def test_captions_of_the_samples_name_most_of_what_is_there_with_64_of_576_tokens():
    """The bounds are the results of the model in the repository, with a little room.

    The README of the model has the scores on 1,000 scenes.
    """
    trimtok("caption", SAMPLES / "images", "--model", MODEL, "--keep", 64, "-o", "out")
    rows = [json.loads(line) for line in Path("out/answers.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and all(row["metadata"]["status"] == "ok" for row in rows)
    assert all(
        row["metadata"]["visual"]["tokens"] == 576 and row["metadata"]["visual"]["kept"] == 64
        for row in rows
    )
    said = {row["image"]: row["text"] for row in rows}
    there = [
        (f"scene-{i + 1:02d}.png", f"{s.color} {s.name}")
        for i, scene in enumerate(truths())
        for s in scene.shapes
    ]
    named = sum(phrase in said[image] for image, phrase in there)
    assert named / len(there) >= 0.65, (named, len(there), said)
    any_shape = rf"\ban? \w+ (?:{'|'.join(scenes.SHAPES)})\b"
    mentioned = sum(len(re.findall(any_shape, text.lower())) for text in said.values())
    assert mentioned - named <= 5, said


def test_the_folder_is_plain_and_small_and_dense_is_what_generate_says():
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from trimtok_cli.data import Sample
    from trimtok_cli.engine.answer import answer
    from trimtok_cli.models.loading import load_model
    from trimtok_cli.prepare.sample import Ask

    assert sum(f.stat().st_size for f in MODEL.iterdir()) < 12 * 2**20
    assert not [f.name for f in MODEL.iterdir() if f.suffix in (".bin", ".pt", ".pkl", ".py")]
    processor, model = (
        AutoProcessor.from_pretrained(MODEL),
        AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32),
    )
    adapter = load_model(str(MODEL), device="cpu")
    from PIL import Image

    for i in range(1, 5):
        path = SAMPLES / "images" / f"scene-{i:02d}.png"
        inputs = processor(
            text=f"USER: <image>\n{scenes.CAPTION_PROMPTS[0]} ASSISTANT:",
            images=Image.open(path),
            return_tensors="pt",
        )
        out = model.generate(**inputs, max_new_tokens=60, do_sample=False)
        want = processor.decode(
            out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        ).strip()
        assert (
            answer(adapter, None, [Sample(i, (path,))], Ask(scenes.CAPTION_PROMPTS[0]))[0].answer
            == want
        )


def test_the_question_file_agrees_with_the_scenes():
    rows = [json.loads(line) for line in (SAMPLES / "questions.jsonl").read_text().splitlines()]
    for i, scene in enumerate(truths()):
        for row in [r for r in rows if r["image"] == f"images/scene-{i + 1:02d}.png"]:
            assert (SAMPLES / row["image"]).exists()
            if row["task"] == "caption":
                assert row["answer"] == scenes.caption(scene)
            if row["task"] == "read":
                assert row["answer"] == scene.text
    assert {row["task"] for row in rows} == {
        "caption",
        "exist",
        "count",
        "color",
        "side",
        "read",
        "bar",
    }


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


COMMANDS = [
    c
    for c in re.findall(r"(?:^|/)(trimtok (?:caption|vqa|compare) .*)$", readme(), re.M)
    if "samples/demo" in c
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A function from a command of the README to its output folder; each command runs once."""

    @cache
    def once(command: str) -> Path:
        out = tmp_path_factory.mktemp("readme") / "out"
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            trimtok(*shlex.split(command)[1:], "-o", out)
        return out

    return once


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_readme_run(command, ran):
    assert list(ran(command).glob("*.jsonl"))


def test_compare_on_the_samples_mostly_agrees_with_dense(ran):
    (command,) = [
        each for each in COMMANDS if each.startswith("trimtok compare samples/questions.jsonl")
    ]
    rows = [json.loads(line) for line in (ran(command) / "compare.jsonl").read_text().splitlines()]
    assert len(rows) == 40 and {
        tuple(run["metadata"]["visual"]["kept"] for run in row["runs"]) for row in rows
    } == {(576, 192, 128, 64)}
    dense = sum(row["runs"][0]["text"] in row["reference"] for row in rows)
    pruned = sum(row["runs"][3]["text"] in row["reference"] for row in rows)
    same = sum(row["runs"][3]["identical_to_dense"] for row in rows)
    assert dense >= 35 and pruned >= 32 and same >= 31, (dense, pruned, same)
    assert (ran(command) / "compare.html").stat().st_size > 100_000


def test_the_python_of_the_readme_runs(monkeypatch, capsys):
    """One of the code blocks defines a method that is never registered."""
    from trimtok_cli.pruners.registry import PRUNERS

    monkeypatch.chdir(ROOT)
    registered = dict(PRUNERS)
    methods = (ROOT / "trimtok_cli" / "pruners" / "README.md").read_text(encoding="utf-8")
    house = (ROOT / "trimtok_cli" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme() + house + methods, re.S)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert "How many shapes are there? ASSISTANT: " in printed[0]
    assert printed[0].endswith(
        "<trimtokenator@64 on LlavaForConditionalGeneration, visual tokens: 576 → 64>"
    )
    assert "576 -> 64" in printed[1]
    # The same question to the same tokens, in both loops.
    assert printed[0].split("ASSISTANT: ")[1].split(" <")[0] == printed[1].split(" 576")[0]
    assert printed[2].startswith("longest@64 ") and printed[2].endswith(" 64")
    assert registered == PRUNERS


def test_the_readme_has_a_row_for_every_method_and_family():
    from trimtok_cli.models.registry import ADAPTERS
    from trimtok_cli.pruners.registry import PRUNERS

    methods = (ROOT / "trimtok_cli" / "pruners" / "README.md").read_text(encoding="utf-8")
    for text in (readme()[readme().index("## The methods") :], methods):
        assert not [name for name, kind in PRUNERS.items() if kind and f"`{name}`" not in text]
    words = readme().lower().replace("-", "").replace(".", "").replace(" ", "")
    assert not [kind for kind in ADAPTERS if kind.replace("_", "") not in words]


def test_the_readme_has_a_row_for_every_command():
    assert len(cli.COMMANDS) >= 7
    assert not [name for name in cli.COMMANDS if f"`trimtok {name}" not in readme()]


PAGES = sorted(
    path
    for folder in ("", ".ci/", "configs/", "samples/**/", "trimtok_cli/**/")
    for path in ROOT.glob(f"{folder}*.md")
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)\)", text)
    near = [link for link in links if not link.startswith("https://")]
    assert text.startswith("#") or near == []
    assert [link for link in near if not (page.parent / link).exists()] == []


def test_the_map_names_every_folder_and_every_module_beside_them():
    text = (ROOT / "trimtok_cli" / "README.md").read_text(encoding="utf-8")
    package = ROOT / "trimtok_cli"
    folders = {path.parent.name for path in package.rglob("__init__.py")} - {"trimtok_cli"}
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert len(folders) > 10 and len(modules) > 10
    assert [name for name in sorted(folders) if f"{name}/" not in text] == []
    assert [name for name in sorted(modules) if name not in text] == []


def test_the_film_is_captioned_through_its_frames():
    rng = Random(1)
    for _ in range(8):
        asked = scenes.questions(scenes.layout(rng), rng)
        rng.sample(range(len(asked)), len(asked))
    there = [(rng.choice(scenes.SHAPES), rng.choice(scenes.COLOR_NAMES)) for _ in range(3)]
    trimtok(
        "caption",
        SAMPLES / "video.mp4",
        "--model",
        MODEL,
        "--frames",
        2,
        "--video-as",
        "frames",
        "--keep",
        128,
        "-o",
        "film.jsonl",
    )
    (row,) = [json.loads(line) for line in Path("film.jsonl").read_text().splitlines()]
    assert (
        row["metadata"]["video"]["frame_times"] == [0.75, 2.25]
        and row["metadata"]["visual"]["kept"] == 128
    )
    assert sum(f"{color} {shape}" in row["text"] for shape, color in there) >= 2, (
        row["text"],
        there,
    )


def test_every_method_runs_on_the_samples_in_one_process():
    done = trimtok(
        "compare",
        SAMPLES / "questions.jsonl",
        "--model",
        MODEL,
        "--methods",
        "all",
        "--keep",
        64,
        "--limit",
        2,
        "--param",
        "cdpruner.text=llm",
        "-o",
        "all",
    )
    from trimtok_cli.pruners.registry import PRUNERS

    rows = [json.loads(line) for line in Path("all/compare.jsonl").read_text().splitlines()]
    assert [run["method"] for run in rows[0]["runs"]] == list(PRUNERS)
    assert (
        not [run for row in rows for run in row["runs"] if run["metadata"]["error"]]
        and "vispruner" in done.stderr
    )


def test_the_record_that_is_shown_has_the_keys_of_a_real_one():
    text = (ROOT / "trimtok_cli" / "outputs" / "README.md").read_text(encoding="utf-8")
    shown = json.loads(re.search(r"```json\n(.*?)```", text, re.S)[1])
    trimtok(
        "caption",
        SAMPLES / "images" / "scene-01.png",
        "--model",
        MODEL,
        "--keep",
        64,
        "-o",
        "one.jsonl",
    )
    real = json.loads(Path("one.jsonl").read_text())
    assert list(shown) == list(real) and list(shown["metadata"]) == list(real["metadata"])
    for key in ("usage", "visual", "timing_ms", "media"):
        assert list(shown["metadata"][key]) == list(real["metadata"][key])


def test_ci_runs_the_readme_s_test_command():
    script = (ROOT / ".ci" / "run").read_text()
    pattern = re.search(r"grep -m1 -E '(.*?)' README.md", script)[1].replace(r"\.", "[.]")
    (command,) = [line for line in readme().splitlines() if re.match(pattern, line)]
    assert command.endswith("-m pytest -n auto --dist loadfile")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
