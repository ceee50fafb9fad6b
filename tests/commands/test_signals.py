"""The ends of real processes.

Signals come at every moment; streams are closed, full or in another encoding.
The model is a stand-in that takes no time, so each process costs half a second. All else is the
program itself.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands.test_cli import rows

ROOT = Path(__file__).parents[2]
CHILD = r'''
import os, sys, time, types
from types import SimpleNamespace

WHERE = sys.argv.pop(1)

def at(place, seconds=20):
    """Says on standard output that it is there, and waits for what comes; code that is called back may swallow it."""
    if WHERE.removeprefix("swallowed ").removeprefix("deleted ") != place:
        return
    if WHERE.startswith("deleted"):
        del Deleted(place).place  # Python itself swallows what is raised while something is deleted
        return
    print("at", place, flush=True)
    try:
        time.sleep(seconds)
    except BaseException:
        if not WHERE.startswith("swallowed"):
            raise

class Deleted:
    def __init__(self, place):
        self.place = place

    def __del__(self):
        print("at", WHERE, flush=True)
        time.sleep(20)

def answer_all(adapter, pruner, samples, ask, **_):
    from trimtok_cli.data import Result
    at("before the first")
    for number in (1, 2) if WHERE == "noisy" else ():  # as native libraries do
        os.write(number, b"noise")
    try:
        for number, sample in enumerate(samples):
            if number == 2:
                at("running")
            yield Result(sample=sample, question="?", answer="ünï → \x1b", finish="stop")
    finally:
        at("closing", 1)

def load(config, screen, meanwhile):
    screen.say("loading")
    at("loading")
    return SimpleNamespace(device=SimpleNamespace(type="cpu")), None

def fake(name, **members):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(members)

def start():
    at("imports")
    from trimtok_cli.commands import run
    fake("trimtok_cli.pruners.registry", build_pruner=lambda *_: None, own_params=lambda *_: {},
         check_idle=lambda *_: None)
    fake("trimtok_cli.engine.stream", answer_all=answer_all)
    fake("trimtok_cli.engine.prompt_stage", check_method=lambda *_: None)
    run.load, run.describe, run.generation = load, lambda _: {}, lambda *_: {}
    write = run.Manifest.write
    def noted(manifest):
        if not manifest.interrupted:
            at("the last line", 0.5)
        write(manifest)
    run.Manifest.write = noted
    from trimtok_cli.cli import app
    try:
        app()
    finally:
        at("exit", 0.5)

if __name__ == "__main__":
    from trimtok_cli import __main__
    __main__._start = start
    __main__.main()
'''


@pytest.fixture
def child(tmp_path):
    """A function that starts the program, which then stops for a while at `where`."""
    (tmp_path / "child.py").write_text(CHILD)
    for i in range(6):
        (tmp_path / f"ünï{i}.png").touch()
    (tmp_path / "list.txt").write_text("".join(f"ünï{i}.png\n" for i in range(6)), encoding="utf-8")

    def start(
        *arguments: str, where: str = "", shell: str = "", env: dict | None = None, **options
    ) -> subprocess.Popen:
        command = [
            sys.executable,
            "child.py",
            where,
            *(arguments or ("caption", "@list.txt", "-o", "o")),
        ]
        # $0 is the interpreter.
        if shell:
            command = ["sh", "-c", f'exec "$0" "$@" {shell}', *command]
        options = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "stdin": subprocess.DEVNULL,
        } | options
        return subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}, **options
        )

    return start


def ended(process: subprocess.Popen, code: int) -> tuple[str, str]:
    out, err = (
        stream.decode("utf-8", "replace") if stream else ""
        for stream in process.communicate(timeout=60)
    )
    assert process.returncode == code, f"{process.returncode}\n{err}"
    assert "Traceback" not in err and "Exception ignored" not in err
    return out, err


# The number of lines written at each place, None if no run has begun there.
PLACES = {
    "imports": None,
    "loading": None,
    "swallowed imports": None,
    "swallowed loading": None,
    "before the first": 0,
    "running": 2,
    "swallowed running": 2,
    "deleted running": 2,
}


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("where", PLACES)
def test_a_signal_ends_the_run_in_one_line_and_keeps_what_is_written(where, times, child):
    every = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    for number in every if where == "running" else [every[(list(PLACES).index(where) + times) % 3]]:
        process = child(where=where)
        assert process.stdout.readline().startswith(b"at ")
        for _ in range(times):
            process.send_signal(number)
        _, err = ended(process, 128 + number)
        assert (
            err.splitlines().count("error: interrupted") == 1
            and err.splitlines()[-1] == "error: interrupted"
        )
        if PLACES[where] is None:
            assert not Path("o").exists(), "a run that never began leaves nothing"
            continue
        assert json.loads(Path("o/run.json").read_text())["interrupted"] is True
        found = rows(Path("o/answers.jsonl")) if PLACES[where] else []
        assert len(found) >= PLACES[where] and not Path("o/answers.jsonl.lock").exists()
        for file in Path("o").iterdir():
            file.unlink()


@pytest.mark.parametrize("where", ["the last line", "exit"])
def test_a_signal_that_comes_too_late_or_again_changes_nothing(where, child):
    """Once all answers are written, the exit code is the run's own.

    Further signals are ignored while files are closed after a first one.
    """
    process = child(where=where)
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    if where == "exit":
        ended(process, 0)
        assert json.loads(Path("o/run.json").read_text())["interrupted"] is False
    else:
        ended(process, 143)
    assert len(rows(Path("o/answers.jsonl"))) == 6


def test_signals_while_a_run_closes_are_passed_over(child):
    process = child(where="closing")
    process.stdout.readline()
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
        time.sleep(0.2)
    ended(process, 130)
    assert (
        len(rows(Path("o/answers.jsonl"))) == 6
        and json.loads(Path("o/run.json").read_text())["interrupted"] is True
    )


def test_a_killed_run_leaves_whole_lines_an_honest_manifest_and_nothing_in_the_way(child):
    process = child(where="running")
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert (
        len(rows(Path("o/answers.jsonl"))) == 2
        and json.loads(Path("o/run.json").read_text())["interrupted"] is True
    )
    assert Path("o/answers.jsonl.lock").exists()
    ended(child("caption", "@list.txt", "-o", "o", "--overwrite"), 0)
    assert len(rows(Path("o/answers.jsonl"))) == 6 and {
        path.name for path in Path("o").iterdir()
    } == {
        "answers.jsonl",
        "run.json",
    }


def test_a_signal_that_was_to_be_ignored_is(child):
    """nohup and background jobs start the program with ignored signals."""
    process = child(
        where="running", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    ended(process, 143)


def test_the_real_program_leaves_at_once_while_libraries_are_imported(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "model").mkdir()
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "trimtok_cli",
        "caption",
        "a.png",
        "-m",
        "./model",
    ]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    for line in process.stderr:
        if b"torch" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read().decode()
    assert (
        process.wait(60) == 130
        and "Traceback" not in rest
        and rest.rstrip().endswith("error: interrupted")
    )


CLOSED = {
    "standard error": (["caption", "@list.txt", "-o", "o"], "2>&-", 0, ""),
    "standard input, of which nothing is read": (["caption", "@list.txt", "-o", "o"], "<&-", 0, ""),
    "standard output, to which nothing is written": (
        ["caption", "@list.txt", "-o", "o"],
        ">&-",
        0,
        "",
    ),
    "all of them": (["caption", "@list.txt", "-o", "o"], "<&- >&- 2>&-", 0, ""),
    "standard input with paths": (
        ["caption", "-", "-o", "o"],
        "<&-",
        2,
        "standard input is closed",
    ),
    "standard input with questions": (
        ["vqa", "-", "-o", "o"],
        "<&-",
        2,
        "standard input is closed",
    ),
    "standard output for answers": (
        ["caption", "@list.txt", "-o", "-"],
        ">&-",
        2,
        "standard output is closed",
    ),
    "standard output for help": (["--help"], ">&-", 0, ""),
    "a full standard output": (
        ["caption", "@list.txt", "-o", "-"],
        ">/dev/full",
        1,
        "standard output cannot be written (No space left",
    ),
    "a full standard output for tables": (["models"], ">/dev/full", 1, "No space left"),
    "a full standard output for lines": (["models", "--plain"], ">/dev/full", 1, "No space left"),
    "a full standard error": (["caption", "@list.txt", "-o", "o"], "2>/dev/full", 0, ""),
    "a full standard error for an error": (["caption", "gone.png"], "2>/dev/full", 2, ""),
}


@pytest.mark.parametrize("case", CLOSED.values(), ids=CLOSED.keys())
def test_streams_that_are_closed_or_full_end_no_run_that_does_not_need_them(case, child):
    arguments, shell, code, says = case
    _, err = ended(
        child(*arguments, shell=shell, where="noisy" if "full" not in shell else ""), code
    )
    assert says in err and (not says or len(err.strip().splitlines()) <= 4)
    if code == 0 and "o" in arguments:
        answers = Path("o/answers.jsonl").read_bytes()
        assert answers.count(b"\n") == 6 and all(
            json.loads(line) for line in answers.splitlines()
        ), "nothing else got into the file"


@pytest.mark.parametrize("read", [0, 1])
@pytest.mark.parametrize("named", [False, True], ids=["pipe", "named pipe"])
def test_a_reader_of_answers_that_leaves_ends_the_run_in_one_sentence(named, read, child):
    Path("list.txt").write_text("ünï0.png\n" * 3000, encoding="utf-8")
    options = {}
    if named:
        os.mkfifo("fifo")
        # Opened for both ways at first, as neither side waits for the other then.
        both = os.open("fifo", os.O_RDWR)
        reader = Path("fifo").open("rb")  # noqa: SIM115 (closed below)
        options = {"stdout": os.open("fifo", os.O_WRONLY)}
        os.close(both)
    process = child("caption", "@list.txt", "-o", "-", **options)
    if named:
        os.close(options["stdout"])
    else:
        reader, process.stdout = process.stdout, None
    for _ in range(read):
        assert json.loads(reader.readline())["text"]
    reader.close()
    _, err = ended(process, 1)
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "nobody reads standard output any more" in error and " written before" in error


def test_a_run_goes_on_where_nobody_reads_its_messages_any_more(child):
    process = child("caption", "@list.txt", "-o", "o", "-v")
    process.stderr.close()
    process.stderr = None
    ended(process, 0)
    assert len(rows(Path("o/answers.jsonl"))) == 6
    assert json.loads(Path("o/run.json").read_text())["interrupted"] is False


@pytest.mark.parametrize("encoding", ["cp1252:strict", "ascii:strict", "latin-1:strict"])
def test_a_terminal_of_any_encoding_is_written_to(encoding, child):
    _, err = ended(child(env={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}), 0)
    assert "6 images, 0 failed" in err
    ended(child("models", env={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}), 0)


def test_a_limit_on_file_sizes_is_like_a_full_disk(child):
    Path("list.txt").write_text("ünï0.png\n" * 300, encoding="utf-8")
    _, err = ended(
        child(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))), 1
    )
    found = rows(Path("o/answers.jsonl"))
    assert (
        50 < len(found) < 300
        and f"the first {len(found)} answers are safe" in err
        and "File too large" in err
    )
    assert json.loads(Path("o/run.json").read_text())["counts"]["done"] == len(found)
    Path("list.txt").write_text("ünï0.png\n", encoding="utf-8")
    _, err = ended(
        child(
            "caption",
            "@list.txt",
            "-o",
            "p",
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
        ),
        1,
    )
    assert "loading" not in err and not Path("p").exists()
