"""Runs in several processes: the files are those of a run in one, whoever dies and whenever.

The processes are real; the engine in them is a stand-in that answers at once, but for one test with
a real, tiny model.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands.test_cli import rows
from tests.support import stub_engine, stub_replica
from tests.support.processes import gone
from tests.support.stub_engine import call, contents
from trimtok_cli.commands import replicated
from trimtok_cli.replicas import group

ROOT = Path(__file__).parents[2]

HOSTILE = ("p\n7.png", "p8 \x1b[31m.png", "p9<b>&amp;.png", os.fsdecode(b"p10\xff.png"), "ünï.png")


@pytest.fixture
def arguments(bare_model, inputs, monkeypatch) -> list[object]:
    """A run of eleven inputs, two of which fail, and some of which have odd names."""
    monkeypatch.setattr(replicated, "REPLICA", stub_replica.REPLICA)
    stub_engine.install(monkeypatch)
    for number, name in enumerate(HOSTILE):
        (inputs / name).write_text("x" * number + "x")
    return ["caption", inputs, "-m", bare_model, "--device", "cpu"]


def files(folder: str = "o") -> dict[str, object]:
    """The files of a run, without what says in which processes it ran."""
    found = contents(Path(folder))
    manifest = json.loads(found["run.json"])
    manifest.pop("replicas", None)
    manifest["config"].pop("sources")
    manifest["config"].pop("batch_size")
    return found | {"run.json": manifest}


def undisturbed(arguments: list[object], code: int = 3) -> dict[str, object]:
    """The files of the same run in one process, which a picture cannot harm."""
    done = call(*arguments, "-q", "-o", "whole")
    assert done.exit_code == code, done.stderr
    return files("whole")


def restarts(folder: str = "o") -> int:
    told = json.loads(Path(folder, "run.json").read_text())["replicas"]
    return sum(each["restarts"] for each in told.values())


def started() -> list[int]:
    return [int(path.name.split("-")[1]) for path in Path("starts").iterdir()]


@pytest.mark.parametrize("more", [[], ["--batch-size", 3]])
@pytest.mark.parametrize("number", [1, 3])
def test_the_files_are_those_of_one_process(number, more, arguments):
    expected = undisturbed(arguments)
    done = call(*arguments, "-o", "o", "--processes", number, *more)
    assert done.exit_code == 3, done.stderr
    assert files() == expected and len(expected["answers.jsonl"]) == 11
    assert len(rows(Path("o/answers.jsonl"))) == 11 and restarts() == 0
    assert "11 images, 2 failed" in done.stderr and f"in {number} process" in done.stderr
    assert 0 < len(started()) <= number  # the last ones may find nothing left to answer
    assert all(map(gone, started()))


def test_questions_on_standard_output_come_in_order(arguments, inputs):
    line = ["vqa", inputs / "q.jsonl", *arguments[2:], "-o", "-"]
    one, two = call(*line, "-q"), call(*line, "-q", "--processes", 2)
    assert (one.exit_code, two.exit_code) == (3, 3)
    found = [
        [stub_engine.without_times(json.loads(each)) for each in done.stdout.splitlines()]
        for done in (one, two)
    ]
    assert found[0] == found[1] and len(found[0]) == 6
    assert [
        each["input_category"] if "input_category" in each else each["category"]
        for each in found[1]
    ]


def test_an_input_stream_is_answered_to_its_end(arguments, inputs):
    names = "".join(f"{inputs}/p{number}.png\n" for number in (1, 3, 4, 6))
    done = call("caption", "-", *arguments[2:], "-o", "o", "--processes", 2, stdin=names)
    assert done.exit_code == 0, done.stderr
    assert [Path(row["image"]).name for row in rows(Path("o/answers.jsonl"))] == [
        "p1.png",
        "p3.png",
        "p4.png",
        "p6.png",
    ]


HARMS = {
    "killed": "once marker",
    "left": "leave marker",
    "unreadable": "unreadable marker",
    "device lost": "cuda marker",
    "noise": "noise",
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
@pytest.mark.parametrize("number", [1, 2])
def test_a_process_that_dies_in_the_middle_costs_nothing(number, harm, arguments, inputs):
    (inputs / "p4.png").write_text(harm)
    expected = undisturbed(arguments)
    done = call(*arguments, "-o", "o", "--processes", number, "--batch-size", 2)
    assert done.exit_code == 3, done.stderr
    assert files() == expected
    assert restarts() == (harm != "noise")
    assert ("and is started anew" in done.stderr) == (harm != "noise")


@pytest.mark.parametrize("number", [1, 2])
def test_an_input_that_no_process_survives_is_one_failed_row(number, arguments, inputs):
    expected = undisturbed(arguments)
    (inputs / "p4.png").write_text("die")
    done = call(*arguments, "-o", "o", "--processes", number, "--batch-size", 4)
    assert done.exit_code == 3, done.stderr
    found = rows(Path("o/answers.jsonl"))
    (lost,) = [row for row in found if row["image"] == "p4.png"]
    assert lost["metadata"]["error_class"] == "SampleError" and lost["text"] == ""
    assert (
        "every process that was asked died, 3 of them (the last by signal 9)"
        in (lost["metadata"]["error"])
    )
    assert restarts() == 3
    assert [row["image"] for row in rows(Path("o/errors.jsonl"))] == ["p2.png", "p4.png", "p5.png"]
    (inputs / "p4.png").write_text("x" * 4)
    assert call(*arguments, "-o", "o", "--processes", 2).exit_code == 3
    assert files() == expected, "it was tried again"


def test_processes_that_die_over_and_over_end_the_run_which_then_goes_on(
    arguments, inputs, monkeypatch
):
    monkeypatch.setattr(group, "MOST_DEATHS", 4)
    for number in (3, 4):
        (inputs / f"p{number}.png").write_text("die")
    done = call(*arguments, "-o", "o", "--processes", 1)
    assert done.exit_code == 1, done.stderr
    assert "process 1: its process died again and again (signal 9)" in done.stderr
    assert "the same command with -o o/answers.jsonl goes on" in done.stderr
    assert json.loads(Path("o/run.json").read_text())["interrupted"] is True
    for number in (3, 4):
        (inputs / f"p{number}.png").write_text("x")
    assert call(*arguments, "-o", "o", "--processes", 2).exit_code == 3
    assert files() == undisturbed(arguments)


STARTS = {
    "one that dies": ("die 1", 3, "the run goes on without process"),
    "all that die": ("die 0", 1, "its process died while it loaded the model (exit code 9)"),
    "one that refuses": ("refuse 1", 3, "the run goes on without process"),
    "all that refuse": ("refuse 0", 1, "error: this model cannot be loaded: \\x1b[31m a file"),
    "one with another dtype": ("dtype", 3, "--dtype was float32 and is float16"),
}


@pytest.mark.parametrize("case", STARTS.values(), ids=STARTS.keys())
def test_a_process_that_cannot_start_is_left_out_and_none_is_an_error(
    case, arguments, inputs, monkeypatch
):
    begin, code, says = case
    (inputs / "p1.png").write_text("starts 3" if begin == "die 1" else "starts 2")
    expected = undisturbed(arguments)
    monkeypatch.setenv("STUB_START", begin)
    done = call(*arguments, "-o", "o", "--processes", 2)
    assert done.exit_code == code, done.stderr
    assert "Traceback" not in done.stderr and "\x1b" not in done.stderr
    if code == 1:
        assert says in done.stderr and not Path("o").exists()
    elif "dtype" in begin:
        assert ("is float16" in done.stderr) or ("is float32" in done.stderr)
        assert files()["answers.jsonl"] == expected["answers.jsonl"]
    else:
        assert says in done.stderr and files() == expected
    assert all(map(gone, started()))


def test_a_model_that_does_not_fit_ends_the_run_as_it_does_in_one_process(arguments, inputs):
    (inputs / "p3.png").write_text("refuse")
    done = call(*arguments, "-o", "o", "--processes", 2)
    assert done.exit_code == 1
    assert "error: the model does not fit its processor" in done.stderr
    assert len(rows(Path("o/answers.jsonl"))) <= 2
    (inputs / "p3.png").write_text("xxx")
    assert call(*arguments, "-o", "o").exit_code == 3
    assert files() == undisturbed(arguments)


def program(arguments: list[object], *more: object, **options) -> subprocess.Popen:
    command = [sys.executable, ROOT / "tests/support/stub_replica.py", *arguments, *more]
    return subprocess.Popen(
        list(map(str, command)),
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )


def wait_for_lines(number: int) -> None:
    file = Path("o/answers.jsonl")
    for _ in range(1500):
        if file.exists() and file.read_bytes().count(b"\n") >= number:
            return
        time.sleep(0.1)
    raise AssertionError("no line was written")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_whose_parent_is_ended_goes_on_with_any_number_of_processes(
    number, arguments, inputs
):
    """Ctrl-C ends all of them, no written line is lost, and no process lives on."""
    for each in (3, 4, 6):
        (inputs / f"p{each}.png").write_text("slow 0.6")
    expected = undisturbed(arguments)
    process = program(arguments, "-o", "o", "--processes", 2, start_new_session=True)
    wait_for_lines(1)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), err
    assert b"Traceback" not in err
    assert number == signal.SIGKILL or err.splitlines()[-1] == b"error: interrupted"
    before = Path("o/answers.jsonl").read_bytes()
    assert before.count(b"\n") in range(1, 11)
    assert json.loads(Path("o/run.json").read_text())["interrupted"] is True
    assert all(map(gone, started()))
    more = {signal.SIGINT: ["--processes", 3], signal.SIGTERM: ["--processes", 1]}.get(number, [])
    assert call(*arguments, "-o", "o", *more).exit_code == 3
    assert Path("o/answers.jsonl").read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    assert files() == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_models_load_leaves_no_file_and_no_process(number, arguments, monkeypatch):
    monkeypatch.setenv("STUB_START", "wait")
    process = program(arguments, "-o", "o", "--processes", 2)
    for _ in range(600):
        if Path("starts").exists() and len(started()) == 2:
            break
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and b"Traceback" not in err
    assert not Path("o").exists() and len(started()) == 2 and all(map(gone, started()))


def test_a_complete_run_starts_no_process(arguments, monkeypatch):
    assert call(*arguments, "-o", "o").exit_code == 3
    done = call(*arguments, "-o", "o", "--processes", 2, "--keep-failed")
    assert done.exit_code == 3 and "nothing to do" in done.stderr and not Path("starts").exists()


REFUSED = {
    "a GPU of no kind": (["--gpus", "first"], "--gpus must be all, or numbers or UUIDs"),
    "a GPU twice": (["--gpus", "0,1,0"], "names a GPU twice"),
    "an empty list": (["--gpus", "0,,1"], "--gpus must be all"),
    "a GPU on a CPU": (["--gpus", "0", "--device", "cpu"], "--device cpu contradict each other"),
    "one GPU of several": (["--gpus", "0", "--device", "cuda:1"], "contradict each other"),
    "both": (["--gpus", "0", "--processes", "2"], "--gpus and --processes contradict"),
    "processes on a GPU": (["--processes", "2"], "--processes is for the CPU"),
    "no process": (["--processes", "0", "--device", "cpu"], "at least 1"),
    "a GPU by its name on a cluster": (
        ["--gpus", "5", "--engine", "ray"],
        "--processes N says how",
    ),
    "one GPU of a cluster": (["--device", "cuda:1", "--engine", "ray"], "Ray says which GPU"),
    "a cluster's CPUs": (["--device", "cpu", "--engine", "ray"], "say how many with --processes"),
    "a cluster for another engine": (["--ray-address", "auto"], "are for --engine ray"),
    "resources for another engine": (["--ray-resources", "CPU=2"], "are for --engine ray"),
    "resources that are none": (["--engine", "ray", "--ray-resources", "2"], "NAME=AMOUNT"),
    "a cluster's client": (["--engine", "ray", "--ray-address", "ray://h:1"], "Ray Client is not"),
    "a GPU that is hidden": (["--gpus", "2"], "CUDA_VISIBLE_DEVICES leaves 2 to be used"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_meant_is_refused_before_anything_is_loaded(case, arguments, monkeypatch):
    more, says = case
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    done = call(*arguments[:-2], *more, "-o", "o")
    assert done.exit_code == 2 and says in done.stderr, done.stderr
    assert not Path("starts").exists() and not Path("o").exists()


def test_a_cluster_without_ray_is_one_sentence(arguments, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = call(*arguments, "--engine", "ray", "--processes", 2, "-o", "o")
    assert done.exit_code == 2 and "pip install 'trimtok[ray]', on every node" in done.stderr
    assert "Traceback" not in done.stderr and not Path("o").exists()


def test_a_real_model_in_two_processes_of_which_one_is_killed(llava_folder, pictures):
    """Answers, counts and order are those of one process; a broken picture fails in both."""
    pictures[2].write_bytes(b"no")
    Path("list.txt").write_text("".join(f"{path}\n" for path in pictures * 15))
    line = ["caption", "@list.txt", "-m", llava_folder, "--device", "cpu", "--max-new-tokens", 3]
    assert call(*line, "-q", "-o", "whole").exit_code == 3
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "trimtok_cli", *line, "-o", "o", "--processes", 2]
    process = subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE)
    wait_for_lines(1)
    os.kill(children_of(process.pid)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 3, err
    assert b"and is started anew" in err and b"\x1b" not in err, "no terminal, no colors"
    assert files() == files("whole") and len(rows(Path("o/answers.jsonl"))) == 105


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True)
    return list(map(int, listed.stdout.split()))
