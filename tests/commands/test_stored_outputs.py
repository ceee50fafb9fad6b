"""Outputs in an object store: what is there, from which machine a run goes on, what is refused.

A machine is a folder in which the command runs: the local files of an output lie below it.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import fsspec
import pytest

from tests.commands.test_cli import rows
from tests.support import stub_engine, stub_replica
from tests.support.stub_engine import call, contents
from trimtok_cli import stores
from trimtok_cli.commands import replicated
from trimtok_cli.commands.check_output import output_of
from trimtok_cli.commands.options import AnswerOptions
from trimtok_cli.errors import ModelError, UsageError
from trimtok_cli.outputs import mirror
from trimtok_cli.outputs.destination import claimed
from trimtok_cli.resolve import resolve

ROOT = Path(__file__).parents[2]


@pytest.fixture
def arguments(bare_model, inputs, monkeypatch) -> list[object]:
    """A run of eleven inputs, two of which fail."""
    monkeypatch.setattr(replicated, "REPLICA", stub_replica.REPLICA)
    stub_engine.install(monkeypatch)
    for number in range(7, 12):
        (inputs / f"p{number}.png").write_text("x" * number)
    return ["caption", inputs, "-m", bare_model, "--device", "cpu", "-q"]


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path) -> str:
    fs = fsspec.filesystem("memory")
    if fs.exists("/bucket"):
        fs.rm("/bucket", recursive=True)
    return "memory://bucket/run" if request.param == "memory" else f"file://{tmp_path}/store/run"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Goes to another machine's folder, where nothing of the others is."""

    def go(name: str) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)

    go("one")
    return go


def sent(store: str) -> dict[str, object]:
    """The files of a store's folder, as `contents` has them, without its small object."""
    folder = Path("fetched")
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for entry in stores.entries(store):
        stores.fetch(entry.path, folder / entry.name)
    found = contents(folder)
    found["run.json"] = json.loads(found["run.json"])
    found["run.json"]["config"].pop("sources")
    return found


def local(folder: str) -> dict[str, object]:
    found = contents(Path(folder))
    found["run.json"] = json.loads(found["run.json"])
    found["run.json"]["config"].pop("sources")
    return found


def undisturbed(arguments: list[object]) -> dict[str, object]:
    assert call(*arguments, "-o", "whole").exit_code == 3
    return local("whole")


def here(store: str) -> Path:
    return mirror.local_folder(stores.checked(store))


@pytest.mark.parametrize("ending", ["", "/", "/answers.jsonl"])
def test_the_files_in_the_store_are_those_of_a_local_run(ending, arguments, store, machine):
    expected = undisturbed(arguments)
    done = call(*arguments, "-o", store + ending)
    assert done.exit_code == 3, done.stderr
    found = sent(store)
    assert found == expected or (ending == "/answers.jsonl" and len(found) == len(expected))
    assert found["answers.jsonl"] == expected["answers.jsonl"]
    again = call(*arguments[:-1], "-o", store + ending, "--keep-failed")
    assert again.exit_code == 3 and f"nothing to do: 11 images are in {store}" in again.stderr


@pytest.mark.parametrize("ending", ["", "/", "/answers.jsonl"])
def test_json_names_the_addresses_of_the_files_not_of_their_copies(
    ending, arguments, store, machine
):
    done = call(*arguments, "-o", store + ending, "--json")
    said = json.loads(done.stdout)
    assert (said["answers"], said["manifest"]) == (f"{store}/answers.jsonl", f"{store}/run.json")


def test_a_run_goes_on_from_another_machine_with_what_was_sent_last(arguments, store, machine):
    expected = undisturbed(arguments)
    assert call(*arguments, "-o", store, "-n", 4).exit_code == 3
    machine("two")
    done = call(*arguments[:-1], "-o", store)
    assert done.exit_code == 3 and "going on with" in done.stderr
    assert sent(store) == expected
    machine("one")
    done = call(*arguments[:-1], "-o", store, "--keep-failed")
    assert done.exit_code == 3 and "nothing to do: 11 images" in done.stderr
    assert sent(store) == expected


def test_an_end_before_anything_was_sent_is_gone_on_with_here(
    arguments, store, machine, monkeypatch
):
    expected = undisturbed(arguments)

    def fail(*_):
        raise OSError(5, "the network is down")

    with monkeypatch.context() as patch:
        patch.setattr(stores, "put", fail)
        done = call(*arguments, "-o", store)
    assert done.exit_code == 1 and "cannot be written (the network is down)" in done.stderr
    assert "and the same command sends them" in done.stderr
    assert len(rows(here(store) / "answers.jsonl")) == 11
    assert call(*arguments, "-o", store, "--keep-failed").exit_code == 3
    assert sent(store)["answers.jsonl"] == expected["answers.jsonl"]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("at", range(1, 5))
def test_a_sending_that_ends_anywhere_is_made_good(
    before, at, arguments, store, machine, monkeypatch
):
    """The process dies before or after the nth object; the same machine goes on, then another."""
    expected = undisturbed(arguments)
    put, calls = stores.put, []

    def dying(file, address):
        calls.append(address)
        if len(calls) == at and before:
            raise KeyboardInterrupt
        put(file, address)
        if len(calls) == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stores, "put", dying)
        call(*arguments, "-o", store)
    assert len(calls) == at
    done = call(*arguments, "-o", store)
    assert done.exit_code == 3, done.stderr
    assert sent(store) == expected
    machine("two")
    done = call(*arguments[:-1], "-o", store, "--keep-failed")
    assert done.exit_code == 3 and "nothing to do" in done.stderr


def test_answers_are_sent_while_the_run_goes_on(arguments, store, machine, monkeypatch):
    monkeypatch.setattr(mirror, "EVERY", 0.0)
    put, states = stores.put, []

    def looking(file, address):
        put(file, address)
        if address.endswith("run.json"):
            states.append(json.loads(stores.read(address))["interrupted"])

    monkeypatch.setattr(stores, "put", looking)
    assert call(*arguments, "-o", store).exit_code == 3
    assert states[0] is True and states[-1] is False


def test_two_machines_that_both_answered_are_not_mixed(arguments, store, machine):
    assert call(*arguments, "-o", store, "-n", 3).exit_code == 3
    machine("two")
    assert call(*arguments, "-o", store, "-n", 5).exit_code == 3
    before = sent(store)
    machine("one")
    with (here(store) / "answers.jsonl").open("a") as file:
        file.write('{"begun": ')
    done = call(*arguments, "-o", store)
    assert done.exit_code == 2 and "has answers that were not sent: remove one" in done.stderr
    assert sent(store) == before
    assert call(*arguments, "-o", store, "--overwrite").exit_code == 3
    assert sent(store) == undisturbed(arguments)


def test_a_store_that_another_run_writes_meanwhile_is_left_alone(
    arguments, store, machine, monkeypatch
):
    """The other's version is seen before anything is sent."""
    answered = stub_engine.answer_all

    def other(*given, **more):
        stores.put(Path("other.json"), f"{store}/{mirror.VERSION}")
        yield from answered(*given, **more)

    Path("other.json").write_text('{"version": "x", "files": []}')
    stub_engine.install(monkeypatch, other)
    done = call(*arguments, "-o", store)
    assert done.exit_code == 1 and "was written by another run meanwhile" in done.stderr
    assert {entry.name for entry in stores.entries(store)} <= {mirror.VERSION}
    assert len(rows(here(store) / "answers.jsonl")) == 11


def test_what_is_there_of_somebody_else_stays(arguments, store, machine):
    Path("mine.txt").write_text("mine")
    stores.put(Path("mine.txt"), f"{store}/answers.jsonl")
    done = call(*arguments, "-o", store)
    assert done.exit_code == 2 and "has answers.jsonl that no run has sent whole" in done.stderr
    assert stores.read(f"{store}/answers.jsonl") == b"mine"
    assert call(*arguments, "-o", store, "--overwrite").exit_code == 3
    assert len(sent(store)["answers.jsonl"]) == 11


def test_an_output_that_was_removed_is_no_silent_beginning(arguments, store, machine):
    assert call(*arguments, "-o", store, "-n", 3).exit_code == 3
    for entry in list(map(lambda each: each.path, stores.entries(store))):
        stores.remove(entry)
    stores.remove(f"{store}/{mirror.VERSION}")
    done = call(*arguments, "-o", store)
    assert done.exit_code == 2 and "no longer has what was sent to it from" in done.stderr


def test_shards_go_to_a_store_and_share_a_run(arguments, store, machine):
    for number in (1, 2):
        machine(f"m{number}")
        done = call(*arguments, "-o", store, "--shard", f"{number}/2")
        assert done.exit_code == 3, done.stderr
    runs = {
        json.loads(stores.read(f"{store}/shard-{number}-of-2/run.json"))["run"] for number in (1, 2)
    }
    assert len(runs) == 1


REFUSED = {
    "a key": (["caption", "{in}", "-o", "s3://me:word@b/run"], "a key has no place"),
    "an input": (
        ["vqa", "{store}/answers.jsonl", "-o", "{store}/answers.jsonl"],
        "is an input of this run",
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_kept_is_refused(case, arguments, inputs, store, machine):
    line, says = case
    stores.put(inputs / "q.jsonl", f"{store}/answers.jsonl")
    line = [each.replace("{in}", str(inputs)).replace("{store}", store) for each in line]
    done = call(*line, "--overwrite", "-m", arguments[3], "--device", "cpu")
    assert done.exit_code == 2 and says in done.stderr, done.stderr
    assert "word" not in done.stderr and "Traceback" not in done.stderr
    assert stores.read(f"{store}/answers.jsonl") == (inputs / "q.jsonl").read_bytes()


def test_check_takes_the_same_line(arguments, store, machine):
    assert call(*arguments, "-o", store, "-n", 4).exit_code == 3
    config = resolve({"model": str(arguments[3]), "device": "cpu", "limit": 4})
    found = output_of("caption", config, AnswerOptions(out=store), [])
    assert (found.would, found.problem) == ("resume", "")


def test_other_commands_write_to_no_store(machine):
    for command in ("compare", "merge", "bench", "sweep", "evaluate"):
        with (
            pytest.raises(UsageError, match=f"`trimtok {command}` writes to no store"),
            claimed("memory://b/run", command),
        ):
            raise AssertionError


def test_a_killed_run_goes_on_here_and_sends_all(arguments, inputs, tmp_path, machine):
    """SIGKILL: nothing of the local files is lost, although nothing was sent."""
    store = f"file://{tmp_path}/store/run"
    for each in (3, 4):
        (inputs / f"p{each}.png").write_text("slow 1")
    expected = undisturbed(arguments)
    line = [sys.executable, ROOT / "tests/support/stub_replica.py", *arguments, "-o", store]
    process = subprocess.Popen(
        list(map(str, [*line, "--processes", 1])), env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    file = here(store) / "answers.jsonl"
    while not (file.exists() and file.read_bytes().count(b"\n")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -9 and not (tmp_path / "store").exists()
    before = file.read_bytes()
    assert call(*arguments, "-o", store).exit_code == 3
    found = sent(store)
    assert found["answers.jsonl"] == expected["answers.jsonl"]
    assert file.read_bytes().startswith(before[: before.rindex(b"\n") + 1])


def test_a_run_that_ends_early_says_that_its_answers_were_not_sent(
    arguments, store, machine, monkeypatch
):
    def engine(*given, **options):
        yield from islice(stub_engine.answer_all(*given, **options), 3)
        raise ModelError("the model is gone")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = undisturbed(arguments)
    stub_engine.install(monkeypatch, engine)
    with monkeypatch.context() as patch:
        patch.setattr(stores, "put", full)
        done = call(*arguments[:-1], "-o", store)
    assert done.exit_code == 1 and "the model is gone" in done.stderr
    assert "not sent: " in done.stderr and "the answers are in" in done.stderr
    stub_engine.install(monkeypatch)
    assert call(*arguments, "-o", store).exit_code == 3
    assert sent(store) == expected
