"""trimtok check: what it foresees is what a run then meets, and no weights are loaded for it."""

import json
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
import transformers
from PIL import Image

from tests.commands.test_cli import rows, run
from tests.conftest import picture
from tests.support import families, tiny
from tests.support.clips import make_clip
from tests.support.generating import continuous, requests
from trimtok_cli.commands import survey
from trimtok_cli.commands.terminal.findings import lines_of
from trimtok_cli.generation.capacity import places_of
from trimtok_cli.outputs.lock import Lock
from trimtok_cli.prepare import pool
from trimtok_cli.tokens import Prompt

ROOT = Path(__file__).parents[2]


@pytest.fixture
def no_weights(monkeypatch) -> None:
    """Whatever reads weights fails."""

    def refuse(*_, **__):
        raise AssertionError("weights are loaded")

    for model in (transformers.PreTrainedModel, transformers.AutoModelForImageTextToText):
        monkeypatch.setattr(model, "from_pretrained", refuse)
    monkeypatch.setattr(safetensors, "safe_open", refuse)


def checked(*args: object, code: int = 0, stdin: str | None = None) -> dict:
    """What `trimtok check --json` says."""
    return json.loads(run("check", *args, "--json", code=code, stdin=stdin).stdout)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header tells of a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def hostile(tmp_path) -> Path:
    """A folder of what nobody has looked at: seven files that are broken, and four sound ones."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    picture(1, 400, 300).save(folder / "a.jpg")
    picture(2, 200, 300).save(folder / "b.png")
    (folder / "b-copy.png").write_bytes((folder / "b.png").read_bytes())
    # As long as another file, and not the same.
    same_size = bytearray((folder / "b.png").read_bytes())
    same_size[-1] ^= 1
    (folder / "b-other.png").write_bytes(same_size)
    (folder / "c-cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:2000])
    (folder / "d-empty.jpg").write_bytes(b"")
    (folder / "e-text.png").write_text("no picture at all\n" * 20)
    (folder / "f-bomb.png").write_bytes(bomb(60_000, 60_000))
    (folder / "g-page.jpg").write_bytes(b"<html>not found</html>")
    (folder / "h-gone.png").symlink_to(folder / "nowhere.png")
    (folder / "i-loop.png").symlink_to(folder / "i-loop.png")
    (folder / "inner").mkdir()
    (folder / "inner" / "up").symlink_to(folder)
    return folder


def test_what_is_found_in_hostile_files_is_what_a_run_then_meets(hostile, llava_folder):
    options = [hostile, "-r", "-m", llava_folder, "--keep", 5, "--max-new-tokens", 1]
    found = checked(*options, code=3)
    run("caption", *options, "-o", "out", code=3)
    failed = {row["image"]: row["error"] for row in rows(Path("out/errors.jsonl"))}
    assert len(failed) == 6 and "f-bomb.png" in failed
    assert {each["image"]: each["error"] for each in found["problems"]} == failed
    assert {each["kind"] for each in found["problems"]} == {"file"}
    told = json.loads(Path("out/run.json").read_text())
    assert found["samples"] == {"total": 10, "looked_at": 10, "sound": 4, "failed": 6}
    assert told["counts"]["done"] == 4 and told["counts"]["failed"] == 6
    assert [sorted(names) for names in found["duplicates"]["same_content"]] == [
        sorted(str(hostile / name) for name in ("b.png", "b-copy.png"))
    ]
    formats = found["files"]["formats"]
    assert formats.pop("unreadable") == 2  # the empty one, and a link that leads nowhere
    assert formats == {"PNG": 4, "JPEG": 2, "a text file": 1, "an HTML page": 1}
    assert any("i-loop.png" in note for note in found["notes"])


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to this user")
def test_a_file_that_may_not_be_read_is_broken(hostile):
    (hostile / "a.jpg").chmod(0)
    found = checked(hostile, code=3)
    assert any("may not be read" in each["error"] for each in found["problems"])


FAMILIES = {
    "llava": tiny.llava,
    "pixtral": tiny.pixtral,
    "llava_next": families.llava_next,
    "llava_onevision": families.llava_onevision,
    "qwen2_5_vl": families.qwen2_5_vl,
    "internvl": families.internvl,
    "idefics3": families.idefics3,
    "gemma3": families.gemma3,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_foreseen_are_those_of_the_run(family, tmp_path, pictures):
    """Images of many shapes, two in one prompt, and a video, in every family."""
    folder = FAMILIES[family](tmp_path / "model-of-family")
    clip = make_clip(tmp_path / "pictures" / "clip.mp4")
    asked = [
        {"question_id": n, "image": path.name, "text": "What?"} for n, path in enumerate(pictures)
    ]
    asked.append({"question_id": 8, "image": [pictures[0].name, pictures[5].name], "text": "Same?"})
    asked.append({"question_id": 9, "video": clip.name, "text": "What happens?"})
    file = tmp_path / "pictures" / "q.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in asked))
    for keep in ("7", "30%"):
        options = [file, "-m", folder, "--keep", keep, "--max-new-tokens", 2, "--frames", 3]
        found = checked(*options)
        run("vqa", *options, "-o", f"out-{keep}")
        told = [row["metadata"] for row in rows(Path(f"out-{keep}/answers.jsonl"))]
        assert found["command"] == "vqa" and found["samples"]["sound"] == len(told) == 9
        tokens = found["tokens"]
        for name, of_run in (("dense", "tokens"), ("kept", "kept")):
            counts = [row["visual"][of_run] for row in told]
            assert tokens[name] == {
                "total": sum(counts),
                "mean": sum(counts) / 9,
                "least": min(counts),
                "most": max(counts),
            }
        lengths = [row["usage"]["prompt_tokens"] for row in told]
        assert found["memory"]["longest_prompt"] == max(lengths)
        text = [row["usage"]["prompt_tokens"] - row["visual"]["kept"] for row in told]
        assert tokens["text"]["total"] == sum(text)


def test_no_weights_are_loaded_and_their_bytes_are_known(
    no_weights, llava_folder, pictures, adapter
):
    found = checked(pictures[0].parent, "-m", llava_folder, "--keep", 5, "-b", 3)
    memory = found["memory"]
    weights = {p.data_ptr(): p.numel() * p.element_size() for p in adapter.model.parameters()}
    assert memory["weights_bytes"] == sum(weights.values()) and memory["dtype"] == "float32"
    config = adapter.config
    width = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    assert memory["cache_bytes_a_token"] == 2 * 4 * config.num_hidden_layers * width
    places = places_of(memory["longest_prompt"] + memory["new_tokens"])
    assert memory["cache_bytes_an_answer"] == places * memory["cache_bytes_a_token"]
    loop = continuous(adapter, lag=1, max_new_tokens=memory["new_tokens"])
    embeds, none = torch.zeros(memory["longest_prompt"], config.hidden_size), torch.arange(0)
    loop.add(requests([Prompt(embeds, torch.arange(len(embeds)), none, none, none)]))
    loop.step()
    assert loop.steps.slots.length == places, "a run's slot is the one that check counts"
    assert memory["total_bytes"] == memory["weights_bytes"] + 3 * memory["cache_bytes_an_answer"]
    half = checked(pictures[0], "-m", llava_folder, "--dtype", "bfloat16")["memory"]
    assert 2 * half["weights_bytes"] == memory["weights_bytes"]
    on_cuda = checked(pictures[0], "-m", llava_folder, "--device", "cuda")["memory"]
    assert on_cuda["dtype"] == "bfloat16", "for a device that need not be there yet"


def test_workers_change_nothing_that_is_found(hostile, llava_folder):
    options = [hostile, "-r", "-m", llava_folder, "--keep", 5]
    alone = checked(*options, "--workers", 0, code=3)
    assert checked(*options, "--workers", 2, code=3) == alone
    assert checked(*options[:2], "--workers", 2, code=3)["problems"] == alone["problems"]


def test_a_model_that_is_not_here_leaves_the_files(no_weights, hostile):
    found = checked(hostile, "-r", code=3)
    assert found["tokens"] is None and found["memory"] is None and len(found["problems"]) == 6
    assert found["model"] == {
        "name": "llava-1.5-7b",
        "here": False,
        "note": "it is not on this machine",
        "stated_tokens": "576 an image",
    }
    told = run("check", hostile, "-r", code=3).stdout
    assert "it is not on this machine" in told and "576 an image" in told


def test_a_model_that_cannot_be_loaded_is_one_sentence(no_weights, bare_model, pictures):
    done = run("check", pictures[0], "-m", bare_model, code=1)
    assert done.stderr.count("error: ") == 1 and "cannot be loaded" in done.stderr
    (bare_model / "config.json").write_text("{")
    done = run("check", pictures[0], "-m", bare_model, code=1)
    assert done.stderr.count("error: ") == 1 and "is not JSON" in done.stderr
    assert "no such folder" in run("check", pictures[0], "-m", "nowhere", code=2).stderr
    assert run("check", "nowhere.png", code=2).stderr.count("error: ") == 1
    assert "did you mean vqa" in run("check", pictures[0], "--for", "vqs", code=2).stderr
    for_vqa = run("check", *pictures[:2], "--for", "vqa", code=2)
    assert "give one file of questions" in for_vqa.stderr


def test_rows_are_read_and_their_files_decoded_once(llava_folder, pictures, tmp_path, monkeypatch):
    asked = [
        {"question_id": 1, "image": "p1.png", "text": "What?"},
        {"question_id": 2, "image": "p1.png", "text": "Which?"},
        {"question_id": 3, "image": "p1.png", "text": "Which?"},
        {"question_id": 4, "image": "gone.png", "text": "What?"},
        {"question_id": 5, "image": "gone.png", "text": "Who?"},
        {"question_id": 6, "image": "../../etc/a.png", "text": "What?"},
        {"question_id": 7, "image": "p1.png", "text": "<image> and <image>?"},
    ]
    file = tmp_path / "pictures" / "q.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in asked) + "{torn\n")
    prepared: list[object] = []
    attempt = pool.attempt

    def counted(preprocessor, sample, ask):
        prepared.append(sample.id)
        return attempt(preprocessor, sample, ask)

    monkeypatch.setattr(pool, "attempt", counted)
    found = checked(file, "-m", llava_folder, "--keep", 5, "--workers", 0, code=3)
    assert prepared == [1, 4, 6, 7, "line 8"], "a picture is decoded once"
    assert found["samples"] == {"total": 8, "looked_at": 8, "sound": 3, "failed": 5}
    assert [(each["sample"], each["kind"]) for each in found["problems"]] == [
        (4, "file"),
        (6, "row"),
        (7, "question"),
        ("line 8", "row"),
    ]
    assert "q.jsonl line 6: " in found["problems"][1]["error"]
    assert found["duplicates"]["asked_again"] == ["p1.png"], "the row 3 asks what the row 2 asked"
    assert found["tokens"]["dense"]["total"] == 3 * 36 and found["tokens"]["kept"]["total"] == 15


def test_a_question_longer_than_the_model_is_found(llava_folder, pictures, tmp_path):
    file = tmp_path / "pictures" / "q.jsonl"
    asked = [{"image": "p1.png", "text": text} for text in ("What?", "long " * 30_000)]
    file.write_text("".join(json.dumps(row) + "\n" for row in asked))
    found = checked(file, "-m", llava_folder, code=3)
    assert found["samples"]["failed"] == 1 and "positions" in found["problems"][0]["error"]


def test_the_same_picture_named_twice_is_told(pictures):
    found = checked(pictures[0], pictures[1], pictures[0])
    assert found["duplicates"]["asked_again"] == [str(pictures[0])]
    assert found["files"]["count"] == 2 and found["samples"]["sound"] == 3
    assert "asked again" in run("check", pictures[0], pictures[0]).stdout


def test_paths_on_standard_input(pictures):
    found = checked("-", stdin=f"{pictures[0]}\n{pictures[1]}\nnowhere.png\n", code=3)
    assert found["samples"] == {"total": 3, "looked_at": 3, "sound": 2, "failed": 1}


def test_what_existing_would_do_is_what_it_does(hostile, llava_folder, monkeypatch):
    options = [hostile, "-m", llava_folder, "--max-new-tokens", 1, "-o", "out"]
    assert checked(*options, code=3)["output"] == {
        "answers": "out/answers.jsonl",
        "would": "begin",
        "problem": "",
        "done": 0,
        "failed": 0,
        "new": 10,
        "to_answer": 10,
    }
    assert not Path("out").exists(), "nothing is left of the look"
    run("caption", *options, "--limit", 8, code=3)
    before = snapshot(Path("out"))
    there = {"done": 4, "failed": 4, "new": 2}
    for more, would, counts, left in (
        ([], "resume", there, 6),
        (["--keep-failed"], "resume", there, 2),
        (["--only-failed"], "resume", there, 4),
        (["--existing", "overwrite"], "overwrite", {"done": 0, "failed": 0, "new": 10}, 10),
    ):
        output = checked(*options, *more, code=3)["output"]
        assert (output["would"], output["problem"], output["to_answer"]) == (would, "", left), more
        assert {name: output[name] for name in counts} == counts
    for more, says in (
        (["--keep", 9], "was begun with other settings: --keep was 11.1% and is 9"),
        (["--existing", "fail"], "is already there"),
    ):
        output = checked(*options, *more, code=2)["output"]
        assert output["would"] == "refuse" and says in output["problem"]
    lock = Lock(Path("out/answers.jsonl.lock"))
    lock.take()
    told = run("check", *options, code=2).stdout
    lock.release()
    assert "another run" in told and "10 for caption" in told, (
        "the files are looked at all the same"
    )
    assert snapshot(Path("out")) == before
    run("caption", *options, code=3)
    assert checked(*options, code=3)["output"]["done"] == 4
    (hostile / "a.jpg").unlink()
    output = checked(*options, code=2)["output"]
    assert (
        output["would"] == "refuse" and "holds an answer to what is not asked" in output["problem"]
    )
    assert output["problem"] in run("caption", *options, code=2).stderr.replace("\n", "")


def test_an_output_over_an_input_is_found(pictures, tmp_path):
    file = tmp_path / "pictures" / "q.jsonl"
    file.write_text(json.dumps({"image": "p1.png", "text": "What?"}) + "\n")
    output = checked(file, "-o", file, code=2)["output"]
    assert output["would"] == "refuse" and "is an input of this run" in output["problem"]
    assert checked(file)["output"] is None, "without --out a run makes a new folder"


def test_an_interruption_tells_what_was_found_so_far(hostile, llava_folder, monkeypatch):
    add = survey.Survey._add

    def interrupted(self, what, prepared):
        if len(self.outcomes) == 5:
            raise KeyboardInterrupt
        add(self, what, prepared)

    monkeypatch.setattr(survey.Survey, "_add", interrupted)
    found = checked(hostile, "-m", llava_folder, code=130)
    assert found["complete"] is False and found["samples"]["looked_at"] == 5
    assert len(found["problems"]) == found["samples"]["failed"] > 0
    done = run("check", hostile, "-m", llava_folder, code=130)
    assert "ended after 5 samples" in done.stdout and "error: interrupted" in done.stderr


def test_the_time_is_that_of_the_row_most_like_the_run(llava_folder, pictures):
    document = json.loads((ROOT / "tests/golden/bench.json").read_text())
    for row in document["grid"]:
        row["model"] = str(llava_folder)
    Path("bench.json").write_text(json.dumps(document))
    options = [pictures[0].parent, "-m", llava_folder, "--keep", 8, "--bench", "bench.json"]
    time = checked(*options)["time"]
    rows_of = [row for row in document["grid"] if row["method"] == "trimtokenator"]
    nearest = min(rows_of, key=lambda row: (abs(row["tokens"]["kept"] - 8), abs(row["batch"] - 1)))
    wall = np.array(nearest["seconds"]["wall"]) / nearest["batch"] + np.array(nearest["preprocess"])
    assert time["measured"] == nearest["key"] and time["samples"] == 7
    assert time["seconds"] == pytest.approx(7 * float(np.median(wall)))
    assert "as measured: " in run("check", *options).stdout
    other = checked(*options, "--method", "fastv")["time"]
    assert list(other) == ["note"] and "no row of" in other["note"]
    assert checked(*options, "--method", "fastv")["tokens"]["exact"] is False
    Path("bench.json").write_text("{}")
    assert "--bench: bench.json is no bench.json" in run("check", *options, code=2).stderr


def test_few_problems_are_shown_and_names_cannot_command_the_terminal(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(25):
        (folder / f"{number}\x1b[31m.png").write_bytes(b"")
    told = run("check", folder, code=3).stdout
    assert told.count("is empty") == 20 and "and 5 more; -v shows all" in told
    assert "\x1b" not in told and r"\x1b[31m" in told
    assert run("check", folder, "-v", code=3).stdout.count("is empty") == 25
    quiet = run("check", folder, "-q", code=3)
    assert "is empty" in quiet.stdout and "files" not in quiet.stdout and quiet.stderr == ""


def test_lines_say_all_that_was_found_or_nothing(pictures):
    found = checked(pictures[0])
    assert [line.split("  ")[0] for line in lines_of(found)] == ["samples", "files", "model"]
    assert lines_of(found, errors_alone=True) == []
    assert Image.open(pictures[0]).format in found["files"]["formats"] and "torch" in sys.modules
