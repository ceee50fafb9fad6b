"""Videos through the commands.

The tests cover folders with videos and images, question files, frame rules, damaged files and the
page.
"""

import json
from pathlib import Path

import pytest

from tests.commands.test_cli import rows, run
from tests.conftest import picture
from tests.support.clips import make_clip
from tests.support.families import FAMILIES


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return FAMILIES["qwen2_vl"](tmp_path_factory.mktemp("models") / "qwen2_vl")


@pytest.fixture
def mixed() -> Path:
    folder = Path("mixed")
    folder.mkdir()
    picture(1).save(folder / "b.png")
    make_clip(folder / "a.mp4", 20)
    (folder / "c.mp4").write_bytes((folder / "a.mp4").read_bytes()[:900])
    return folder


def test_a_folder_of_videos_and_images_and_a_damaged_one(llava_folder, qwen, mixed):
    for model, tokens in ((llava_folder, 4 * 36), (qwen, None)):
        out = Path(f"out-{model.name}")
        run(
            "caption",
            mixed,
            "-m",
            model,
            "--frames",
            4,
            "--keep",
            5,
            "--max-new-tokens",
            3,
            "-o",
            out,
            "-b",
            2,
            code=3,
        )
        video, image, cut = rows(out / "answers.jsonl")
        assert [row["image"] for row in (video, image, cut)] == ["a.mp4", "b.png", "c.mp4"]
        meta = video["metadata"]
        assert (meta["status"], meta["visual"]["kept"], meta["visual"]["frames"]) == ("ok", 5, 4)
        assert tokens is None or meta["visual"]["tokens"] == tokens
        assert meta["video"]["frame_times"] == [0.2, 0.7, 1.2, 1.7] and meta["video"][
            "decoder"
        ] in ("decord", "pyav")
        assert image["metadata"]["video"] == {
            "decoder": "",
            "duration": 0.0,
            "frames": 0,
            "frame_times": [],
        }
        assert (
            cut["metadata"]["status"] == "error"
            and "c.mp4" in cut["metadata"]["error"]
            and cut["text"] == ""
        )


def test_frames_as_images_and_the_rule_of_which_frames(qwen, mixed):
    prompts = {}
    for how in ("video", "frames"):
        run(
            "caption",
            mixed / "a.mp4",
            "-m",
            qwen,
            "--video-as",
            how,
            "--fps",
            2,
            "--start",
            0.5,
            "--end",
            1.5,
            "--video-backend",
            "pyav",
            "--keep",
            "all",
            "--max-new-tokens",
            2,
            "-o",
            f"{how}.jsonl",
        )
        (row,) = rows(Path(f"{how}.jsonl"))
        assert (
            row["metadata"]["video"]["frame_times"] == [0.7, 1.2]
            and row["metadata"]["video"]["decoder"] == "pyav"
        )
        prompts[how] = row["metadata"]["prompt_sent"]
    assert prompts["video"].count("video_pad") == 1 and prompts["frames"].count("image_pad") == 2


def test_a_family_without_a_video_path_says_so(llava_folder, mixed):
    done = run("caption", mixed / "a.mp4", "-m", llava_folder, "--video-as", "video", code=1)
    assert "use --video-as frames" in done.stderr


def test_a_question_file_with_videos(qwen, mixed):
    asked = [
        {"question_id": 1, "video": "a.mp4", "text": "What moves?"},
        {"question_id": 2, "image": "b.png", "text": "And here?"},
        {"question_id": 3, "video": "gone.mp4", "text": "?"},
        {"question_id": 4, "image": "b.png", "video": "a.mp4", "text": "Both?"},
    ]
    (mixed / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    run(
        "vqa",
        mixed / "q.jsonl",
        "-m",
        qwen,
        "--frames",
        2,
        "--keep",
        4,
        "--max-new-tokens",
        2,
        "-o",
        "o.jsonl",
        code=3,
    )
    found = rows(Path("o.jsonl"))
    assert [row["metadata"]["status"] for row in found] == ["ok", "ok", "error", "ok"]
    assert "gone.mp4 does not exist" in found[2]["metadata"]["error"]
    assert found[3]["metadata"]["visual"]["kept"] == 8 and found[3]["image"] == ["b.png", "a.mp4"]


def test_compare_shows_the_frames_with_their_tokens(qwen, llava_folder, mixed):
    (mixed / "c.mp4").unlink()
    # Qwen makes one layer of tokens of two frames, and the page shows the first of each pair.
    for model, shown in (
        (llava_folder, 3),
        (qwen, 2),
    ):
        run(
            "compare",
            mixed,
            "-m",
            model,
            "--frames",
            3,
            "--keep",
            6,
            "--max-new-tokens",
            2,
            "-o",
            model.name,
        )
        page = Path(model.name, "compare.html").read_text()
        assert page.count("a.mp4, 0.") + page.count("a.mp4, 1.") >= shown
        assert "No picture" not in page


def test_models_lists_every_alias_and_says_what_is_in_the_cache(monkeypatch, tmp_path):
    from huggingface_hub import constants

    from trimtok_cli.models.catalog import ALIASES, CHECKPOINTS
    from trimtok_cli.models.registry import ADAPTERS

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    there = tmp_path / "models--Qwen--Qwen2-VL-2B-Instruct" / "snapshots" / "abc"
    there.mkdir(parents=True)
    (there / "model.safetensors").write_bytes(b"x")
    lines = [line.split("\t") for line in run("models", "--plain").stdout.splitlines()]
    assert {line[0] for line in lines} == set(ALIASES) and [
        line[0] for line in lines if line[4] == "yes"
    ] == ["qwen2-vl-2b"]
    assert {checkpoint.family for checkpoint in CHECKPOINTS} <= set(ADAPTERS)
    assert "alias" in run("models").stdout


def test_budgets_and_pixels_by_flag(llava_folder, qwen, mixed):
    picture(2, 40, 40).save(mixed / "small.png")
    (mixed / "q.jsonl").write_text(
        json.dumps({"question_id": 1, "image": ["b.png", "small.png"], "text": "Which?"}) + "\n"
    )

    def ask(name, model, *more):
        run("vqa", mixed / "q.jsonl", "-m", model, "--max-new-tokens", 1, "-o", name, *more)
        return rows(Path(name))[0]["metadata"]["visual"]

    whole, less = (
        ask("1.jsonl", qwen, "--keep", "all"),
        ask("2.jsonl", qwen, "--keep", "all", "--max-pixels", 2000),
    )
    assert less["tokens"] < whole["tokens"]
    equal, shared = (
        ask(f"{b}.jsonl", qwen, "--keep", 4, "--budget", b) for b in ("equal", "tokens")
    )
    assert equal["kept"] == shared["kept"] == 8
    final = ask("3.jsonl", llava_folder, "--keep", 20, "--method", "fastv")
    mean = ask(
        "4.jsonl", llava_folder, "--keep", 20, "--method", "fastv", "--budget-counts", "layer-mean"
    )
    assert final["kept"] == 40 and final["layer_mean"] > 40 and abs(mean["layer_mean"] - 40) <= 1
