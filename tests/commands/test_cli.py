"""The commands as a user runs them: files, exit codes and error messages.

They run on a tiny random model, nearly all of them in the process of the tests.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from trimtok_cli.cli import COMMANDS, app
from trimtok_cli.commands import run as run_command

KEYS = ["question_id", "prompt", "text", "answer_id", "model_id", "image", "metadata"]


def run(*args: object, code: int = 0, stdin: str | None = None):
    done = CliRunner().invoke(app, [str(a) for a in args], input=stdin)
    assert done.exit_code == code, f"{done.exit_code}\n{done.stderr}\n{done.exception!r}"
    assert "Traceback" not in done.stderr
    return done


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_caption_writes_a_record_an_image_in_order_and_a_manifest(llava_folder, pictures):
    done = run(
        "caption",
        pictures[0].parent,
        "-m",
        llava_folder,
        "--keep",
        5,
        "--max-new-tokens",
        3,
        "-o",
        "out",
        "--batch-size",
        3,
    )
    assert done.stdout == ""
    found = rows(Path("out/answers.jsonl"))
    assert [row["image"] for row in found] == [p.name for p in pictures]
    for row in found:
        assert list(row) == KEYS
        meta = row["metadata"]
        assert (meta["status"], meta["error"], meta["method"]) == ("ok", "", "trimtokenator")
        assert meta["visual"] == {
            "tokens": 36,
            "kept": 5,
            "grid": [6, 6],
            "frames": 1,
            "layer_mean": 5.0,
            "stages": [[0, 5]],
        }
        assert meta["usage"]["prompt_tokens_dense"] - meta["usage"]["prompt_tokens"] == 31
        assert 1 <= meta["usage"]["completion_tokens"] <= 3
        assert set(meta["timing_ms"]) == {
            "load",
            "prepare",
            "encode",
            "prune",
            "prefill",
            "decode",
            "batch_size",
        }
        assert meta["media"]["width"] == Image.open(pictures[0].parent / row["image"]).width
        assert "USER: <image>" in meta["prompt_sent"] and row["prompt"] in meta["prompt_sent"]
    assert len({row["answer_id"] for row in found}) == 7
    manifest = json.loads(Path("out/run.json").read_text())
    assert (
        manifest["counts"]["done"] == 7
        and manifest["counts"]["failed"] == 0
        and manifest["interrupted"] is False
    )
    assert manifest["config"]["keep"] == "5" and manifest["visual_tokens"] == {
        "dense": 252,
        "kept": 35,
    }
    assert (
        manifest["versions"]["torch"]
        and manifest["model"]["family"] == "llava"
        and manifest["run"] == found[0]["metadata"]["run"]
    )
    assert "36 → 5 visual tokens" in done.stderr and "7 images, 0 failed" in done.stderr


def test_bad_files_are_rows_and_the_exit_code_says_so(llava_folder, pictures):
    folder = pictures[0].parent
    (folder / "p2b.jpg").write_bytes(b"<html>not found</html>")
    (folder / "p3b.png").write_bytes(b"")
    (folder / "[red] [bold] ünï.png").write_bytes(pictures[0].read_bytes())
    (folder / "p9.png").write_bytes(pictures[0].read_bytes()[:300])
    done = run(
        "caption",
        folder,
        "-m",
        llava_folder,
        "--max-new-tokens",
        2,
        "-o",
        "a.jsonl",
        "--batch-size",
        4,
        code=3,
    )
    found = {row["image"]: row for row in rows(Path("a.jsonl"))}
    assert len(found) == 11
    bad = {name for name, row in found.items() if row["metadata"]["status"] == "error"}
    assert bad == {"p2b.jpg", "p3b.png", "p9.png"}
    for name in bad:
        row = found[name]
        assert (
            row["text"] == ""
            and row["metadata"]["error"]
            and row["metadata"]["finish_reason"] == "error"
            and list(row) == KEYS
        )
        assert list(row["metadata"]) == list(found["p1.png"]["metadata"]), (
            "the same keys in every line"
        )
    assert "[red] [bold] ünï.png" in done.stderr and "3 failed" in done.stderr
    assert json.loads(Path("a.run.json").read_text())["counts"]["failed"] == 3


def test_vqa_carries_columns_through_and_streams_to_stdout(llava_folder, pictures):
    lines = [
        {
            "question_id": 7,
            "image": "p1.png",
            "text": "Is it <image> so?",
            "category": "yes/no",
            "answer": "yes",
        },
        {
            "question_id": "b",
            "image": ["p1.png", "p2.png"],
            "text": "Which one?",
            "text_extra": [1, None],
        },
        {"question_id": 9, "text": "No picture?", "metadata": "mine"},
        "{broken",
        {"question_id": 11, "image": "gone.png", "text": "Where?"},
    ]
    file = Path("questions.jsonl")
    file.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n"
    )
    done = run(
        "vqa",
        file,
        "--allow-text-only",
        "--image-root",
        pictures[0].parent,
        "-m",
        llava_folder,
        "--keep",
        "25%",
        "--max-new-tokens",
        2,
        "-o",
        "-",
        code=3,
    )
    found = [json.loads(line) for line in done.stdout.split("\n") if line]
    assert [row["question_id"] for row in found][:3] == [7, "b", 9] and len(found) == 5
    assert (
        found[0]["category"] == "yes/no"
        and found[0]["answer"] == "yes"
        and found[0]["prompt"] == "Is it <image> so?"
    )
    assert found[1]["image"] == ["p1.png", "p2.png"] and found[1]["text_extra"] == [1, None]
    assert (found[1]["metadata"]["visual"]["tokens"], found[1]["metadata"]["visual"]["kept"]) == (
        72,
        18,
    )
    assert (
        found[2]["input_metadata"] == "mine"
        and found[2]["metadata"]["visual"]["tokens"] == 0
        and found[2]["metadata"]["status"] == "ok"
    )
    assert [row["metadata"]["status"] for row in found] == ["ok", "ok", "ok", "error", "error"]
    assert "line 4" in found[3]["metadata"]["error"] and "gone.png" in found[4]["metadata"]["error"]


def test_too_many_placeholders_is_a_failed_row(llava_folder, pictures):
    Path("q.jsonl").write_text(
        json.dumps({"question_id": 1, "image": str(pictures[0]), "text": "<image> and <image>?"})
        + "\n"
    )
    run("vqa", "q.jsonl", "-m", llava_folder, "-o", "o.jsonl", code=3)
    assert "2 <image> placeholders for 1 images" in rows(Path("o.jsonl"))[0]["metadata"]["error"]


def test_compare_writes_records_and_a_page(llava_folder, pictures):
    (pictures[0].parent / "p4b.png").write_bytes(b"no")
    done = run(
        "compare",
        pictures[0].parent,
        "-m",
        llava_folder,
        "--keep",
        "3,9,all",
        "--max-new-tokens",
        3,
        "-o",
        "cmp",
        "-n",
        5,
        code=3,
    )
    found = rows(Path("cmp/compare.jsonl"))
    assert [row["image"] for row in found] == ["p1.png", "p2.png", "p3.png", "p4.png", "p4b.png"]
    for row in found[:4]:
        assert [r["method"] for r in row["runs"]] == ["dense", "trimtokenator", "trimtokenator"]
        assert [len(r["kept_tokens"]) for r in row["runs"]] == [36, 3, 9]
        assert row["runs"][0]["identical_to_dense"] is True
        assert len({r["metadata"]["timing_ms"]["encode"] for r in row["runs"]}) == 1, (
            "the tower ran once"
        )
    page = Path("cmp/compare.html").read_text()
    assert "p1.png" in page and page.count("data:image/") >= 4
    assert "visual tokens" in done.stderr and "same: answers as dense's" in done.stderr


def test_dense_and_keep_all_give_the_same_answers(llava_folder, pictures):
    for name, options in {
        "dense": ["--method", "dense"],
        "all": ["--keep", "all"],
        "many": ["--keep", "36"],
    }.items():
        run(
            "caption",
            *pictures,
            "-m",
            llava_folder,
            "--max-new-tokens",
            4,
            "-o",
            f"{name}.jsonl",
            "-q",
            *options,
        )
    texts = {
        name: [row["text"] for row in rows(Path(f"{name}.jsonl"))]
        for name in ("dense", "all", "many")
    }
    assert texts["dense"] == texts["all"] == texts["many"]


@pytest.mark.parametrize("place", ["flag", "environment", "config file"])
@pytest.mark.parametrize(
    "flags", [["--keep", "64"], ["--param", "pool=0.9"], ["--keep", "11%", "--param", "pool=0.9"]]
)
def test_flags_that_say_how_to_prune_contradict_dense(flags, place, pictures, monkeypatch):
    """The contradiction is found before a model is loaded.

    Dense only ignores pruning settings that come from a file or the environment.
    """
    monkeypatch.setattr(run_command, "load", lambda *_: pytest.exit("a model was loaded"))
    Path("c.yaml").write_text(
        "method: dense\n" if place == "config file" else "keep: 5\nparams: {pool: 0.7}\n"
    )
    if place == "environment":
        monkeypatch.setenv("TRIMTOK_METHOD", "dense")
    method = ["--method", "dense"] if place == "flag" else []
    done = run("caption", *pictures, "-m", ".", "-c", "c.yaml", *method, *flags, code=2)
    assert f"{flags[0]} " in done.stderr and "--method dense prunes nothing" in done.stderr


def test_dense_needs_nothing_of_what_files_say_of_pruning(llava_folder, pictures):
    Path("c.yaml").write_text("keep: 5\nparams: {pool: 0.7}\n")
    for number, more in enumerate(([], ["--keep", "all"])):
        run(
            "caption",
            pictures[0],
            "-m",
            llava_folder,
            "-c",
            "c.yaml",
            "--method",
            "dense",
            "-o",
            f"{number}.jsonl",
            "--max-new-tokens",
            1,
            *more,
        )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["caption", "nowhere"], "nowhere"),
        (["caption", "."], "no image"),
        (["caption", "x.png", "--keep", "0"], "--keep"),
        (["caption", "x.png", "--keep", "12x"], "12x"),
        (["caption", "x.png", "--method", "trimtokenizer"], "did you mean trimtokenator?"),
        (["caption", "x.png", "--param", "pol=0.9"], "did you mean pool?"),
        (["caption", "x.png", "--param", "pool=3"], "pool"),
        (["caption", "x.png", "--batch-size", "0"], "--batch-size"),
        (["caption", "x.png", "--config", "nope"], "demo"),
        (["caption", "x.png", "--device", "cuda:99"], "--device"),
        (["caption", "x.png", "--dtype", "float12"], "--dtype"),
        (["vqa", "nowhere.jsonl"], "nowhere.jsonl"),
        (["compare", "x.png", "--keep", "all"], "--keep"),
        (["caption", "x.png", "-o", "there.jsonl"], "--overwrite"),
        (["caption", "x.png", "--nonsense"], "nonsense"),
    ],
)
def test_usage_errors_are_one_sentence_and_exit_2(args, says, llava_folder, pictures):
    Path("x.png").write_bytes(pictures[0].read_bytes()) if args[1] == "x.png" else None
    Path("there.jsonl").write_text("kept\n")
    done = run(*args, "-m", llava_folder, code=2)
    assert says in " ".join(done.stderr.split())
    assert Path("there.jsonl").read_text() == "kept\n"


NUMBERS = [
    (command, option)
    for command in COMMANDS
    for option in re.findall(
        r"(--[a-z-]+) .*<(?:int|float)",
        CliRunner(env={"COLUMNS": "200"}).invoke(app, [command, "--help"]).stdout,
    )
]


@pytest.mark.parametrize(("command", "option"), NUMBERS)
def test_a_number_that_is_none_is_one_line_that_names_its_flag(command, option):
    first = {"bench": "cpu", "evaluate": "demo-smoke"}.get(command, "x")
    done = run(command, first, option, "abc", code=2)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert option in done.stderr and (done.stdout, len(NUMBERS) > 60) == ("", True)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["captoin"], "error: no such command 'captoin'. Did you mean 'caption'?"),
        (["--versoin"], "--version"),
        (["caption", "x", "--kep", "3"], "--keep"),
        (["caption", "x", "--prompt"], "`trimtok caption --help` says what there is."),
        (["serve", "x", "--port", "0"], "--port"),
    ],
)
def test_a_wrong_command_line_is_one_line(args, says):
    done = run(*args, code=2)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert says in done.stderr and done.stdout == ""


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"bench", "models", "methods", "env"}))
def test_a_command_without_arguments_shows_its_help(name):
    done = CliRunner().invoke(app, [name])
    shown = " ".join(f"{done.stdout} {done.stderr}".split())
    assert done.exit_code == 2 and " ".join(COMMANDS[name].split()[:4]) in shown


@pytest.mark.parametrize(
    ("model", "says", "code"),
    [
        ("./gone", "no such folder", 2),
        ("llava-1.5-7c", "did you mean llava-1.5-7b", 2),
        ("owner/name", "cannot be loaded", 1),
    ],
)
def test_a_model_that_is_not_there_is_one_sentence_exit_2_for_a_wrong_name_and_exit_1_else(
    model, says, code, pictures
):
    done = run("caption", pictures[0], "-m", model, "-o", "o.jsonl", code=code)
    assert (
        says in done.stderr
        and "Traceback" not in done.stderr
        and len(done.stderr.strip().splitlines()) <= 3
    )
    assert not Path("o.jsonl").exists(), (
        "a run that never began must not stand in the next one's way"
    )


def test_a_place_that_cannot_be_written_is_one_sentence_and_exit_1(llava_folder, pictures):
    Path("file").write_text("not a folder")
    done = run("caption", pictures[0], "-m", llava_folder, "-o", "file/out", code=1)
    assert "--out" in done.stderr and "cannot be written" in done.stderr


def test_an_unknown_family_names_the_known_ones(tmp_path, pictures):
    (tmp_path / "m").mkdir()
    # The library knows the first family and not the second.
    for family in ("bert", "no-such-family"):
        (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": family}))
        done = run("caption", pictures[0], "-m", tmp_path / "m", "-o", "o.jsonl", code=1)
        assert family in done.stderr and "llava_next, llava_next_video" in done.stderr
        assert len(done.stderr.strip().splitlines()) <= 3


def test_ctrl_c_keeps_what_is_written(llava_folder, pictures, monkeypatch):
    from trimtok_cli.prepare import pool

    real, calls = pool.attempt, []

    def third_is_interrupted(preprocessor, sample, ask):
        calls.append(sample)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(preprocessor, sample, ask)

    monkeypatch.setattr(pool, "attempt", third_is_interrupted)
    run("caption", *pictures, "-m", llava_folder, "--max-new-tokens", 2, "-o", "o.jsonl", code=130)
    assert len(rows(Path("o.jsonl"))) == 2
    assert json.loads(Path("o.run.json").read_text())["interrupted"] is True


def test_workers_are_for_gpus_and_many_inputs_unless_they_are_asked_for(monkeypatch):
    from trimtok_cli.commands.session import count_workers

    assert [count_workers(setting, "cpu", None) for setting in ("auto", 0, 3)] == [0, 0, 3]
    monkeypatch.setattr(os, "sched_getaffinity", lambda of: range(5), raising=False)
    assert [count_workers("auto", "cuda", total) for total in (32, 33, None)] == [0, 4, 4]


@pytest.fixture
def begun(monkeypatch):
    """The worker processes of a run, as they are started."""
    from trimtok_cli.prepare import processes

    children = []

    class Noted(processes.Child):
        def __init__(self, *args) -> None:
            super().__init__(*args)
            children.append(self)

    monkeypatch.setattr(processes, "Child", Noted)
    return children


def test_workers_are_started_before_the_model_loads_and_end_with_a_load_that_fails(
    llava_folder, pictures, begun, monkeypatch
):
    from trimtok_cli.errors import ModelError
    from trimtok_cli.models import loading

    real, seen = loading.load_model, []

    def noted(*args, **options):
        seen.append(len(begun))
        return real(*args, **options)

    def fails(*args, **options):
        seen.append([child.alive for child in begun[2:]])
        raise ModelError("this model does not load.")

    options = ["-m", llava_folder, "--max-new-tokens", 2, "--workers", 2, "--device", "cpu"]
    monkeypatch.setattr(loading, "load_model", noted)
    run("caption", *pictures[:3], *options, "-o", "with.jsonl")
    assert seen == [2] and len(begun) == 2, "one for each worker, and no more"
    run("caption", pictures[0], "-m", llava_folder, "--max-new-tokens", 2, "-o", "without.jsonl")
    assert len(begun) == 2, "nobody asked for workers"
    assert rows(Path("with.jsonl"))[0]["text"] == rows(Path("without.jsonl"))[0]["text"]
    monkeypatch.setattr(loading, "load_model", fails)
    done = run("caption", pictures[0], *options, "-o", "never.jsonl", code=1)
    assert "this model does not load" in done.stderr
    assert seen[2:] == [[True]], "one input needs one worker"
    assert len(begun) == 3 and not any(child.alive for child in begun)


def test_paths_on_stdin_lists_and_globs(llava_folder, pictures):
    options = ["-m", llava_folder, "--max-new-tokens", 1, "-q", "--overwrite", "-o", "o.jsonl"]
    run("caption", "-", *options, stdin=f"{pictures[2]}\n{pictures[0]}\n")
    assert [row["image"] for row in rows(Path("o.jsonl"))] == [str(pictures[2]), str(pictures[0])]
    run("caption", str(pictures[0].parent / "p[1-3].png"), *options)
    assert len(rows(Path("o.jsonl"))) == 3


def test_help_shows_examples_and_every_shared_option():
    for command in ("caption", "vqa", "check", "compare"):
        said = " ".join(run(command, "--help").stdout.split())
        assert "Examples:" in said and f"trimtok {command}" in said
        for option in (
            "--model",
            "--keep",
            "--method",
            "--out",
            "--config",
            "--device",
            "--dtype",
            "--limit",
            "--seed",
        ):
            assert option in said
    assert run("--version").stdout.startswith("trimtok 0.")


def test_every_module_of_a_command_is_in_the_list_of_commands():
    folder = Path(__file__).parents[2] / "trimtok_cli" / "commands"
    modules = {path.stem for path in folder.glob("*.py") if "\nEXAMPLES = " in path.read_text()}
    assert modules == set(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "imported"),
    [("--help", set()), ("--version", set()), ("models --help", {"models"})],
)
def test_a_command_is_imported_when_it_is_called(arguments, imported):
    code = (
        "import sys\nfrom trimtok_cli.cli import COMMANDS, app\n"
        "try:\n    app(sys.argv[1:])\nfinally:\n    print('', *(name for name in COMMANDS"
        " if f'trimtok_cli.commands.{name}' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0 and set(done.stdout.splitlines()[-1].split()) == imported
