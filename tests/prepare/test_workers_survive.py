"""Workers are killed, stopped, starved and cut off: every sample has one row, in order."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.light_worker import Light
from tests.support.processes import gone
from trimtok_cli.child_process import Child, Ended
from trimtok_cli.data import Sample
from trimtok_cli.prepare import pool, processes
from trimtok_cli.prepare.pool import prefetch
from trimtok_cli.prepare.sample import Ask, Failed, Prepared

ROOT = Path(__file__).parents[2]
ASK = Ask("What?", timeout=1.0)

DIED = "the worker process that read it died"
LATE = "it was not read and prepared within 1 seconds"
HARMS = {
    "die": f"{DIED} (signal 9)",
    "leave": f"{DIED} (exit code 7)",
    "stop": LATE,
    "hang": LATE,
    "cut": f"{DIED} (",
    "cut-and-stop": LATE,
    "endless": f"{DIED} (",
    "unreadable": "what a worker process prepared cannot be read here",
}


@pytest.fixture
def light(monkeypatch) -> SimpleNamespace:
    """Light workers, whose process ids are kept; each is gone when the test has ended."""
    pids: list[int] = []

    class Kept(Child):
        def __init__(self, *args) -> None:
            super().__init__(*args)
            pids.append(self.process.pid)

    monkeypatch.setattr(processes, "WORKER", "from tests.support.light_worker import main; main()")
    monkeypatch.setattr(processes, "Child", Kept)
    monkeypatch.setattr(pool, "GRACE", 0.5)
    yield SimpleNamespace(pids=pids)
    for pid in pids:
        with pytest.raises(ChildProcessError):  # not even a zombie is left
            os.waitpid(pid, os.WNOHANG)


def questions(*asked: str) -> list[Sample]:
    return [Sample(i, question=question) for i, question in enumerate(asked)]


def run(samples: list[Sample], workers: int) -> list[Prepared | Failed]:
    found = list(prefetch(Light(), samples, ASK, workers=workers))
    assert [each.sample for each in found] == samples
    return found


def outcomes(found: list[Prepared | Failed]) -> list[str]:
    """The prepared inputs of each sample, or its error."""
    return [str(each.error) if isinstance(each, Failed) else each.inputs for each in found]


@pytest.mark.parametrize("harm", HARMS)
def test_a_sample_that_harms_its_worker_is_a_failed_row_and_no_other_is(light, harm):
    found = outcomes(run(questions("a", harm, "b", "c", f"{harm} again", "d"), workers=2))
    assert found[1].startswith(HARMS[harm]) and found[4].startswith(HARMS[harm])
    assert [found[i] for i in (0, 2, 3, 5)] == [f"prepared {name}" for name in "abcd"]


def test_a_sample_whose_worker_died_for_other_reasons_is_prepared_after_all(light):
    assert outcomes(run(questions("once x", "once y", "a"), workers=2)) == [
        "prepared once x",
        "prepared once y",
        "prepared a",
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_ever_more_deaths_end_the_samples_that_caused_them_and_never_the_run(
    light, caplog, workers
):
    found = run(questions(*["die"] * 8, "a", *["leave"] * 4, "b"), workers)
    assert [isinstance(each, Prepared) for each in found] == [False] * 8 + [True] + [False] * 4 + [
        True
    ]
    assert all(each.startswith(DIED) for each in outcomes(found) if not each.startswith("prepared"))
    assert len(light.pids) <= 2 * 12 + workers, "each sample has two chances"
    assert caplog.messages == []


@pytest.mark.parametrize("end", ["die", "leave", "stop", "cut", "unreadable"])
@pytest.mark.parametrize("lived", [0, 1, 3])
def test_when_workers_die_while_they_start_the_run_goes_on_with_fewer_or_none_and_says_so_once(
    light, monkeypatch, caplog, lived, end
):
    monkeypatch.setenv("LIGHT_STARTS", str(lived))
    monkeypatch.setenv("LIGHT_END", end)
    monkeypatch.setattr(pool, "STARTING", 1)
    harmful = {2: "die", 5: "once x", 7: "leave"} if lived else {}
    samples = questions(*(harmful.get(i, f"q{i}") for i in range(12)))
    found = outcomes(run(samples, workers=3))
    for i, each in enumerate(found):
        assert each == f"prepared {samples[i].question}" or (
            i in harmful and each.startswith(DIED)
        ), each
    assert (
        len(caplog.messages) == 1
        and "the run goes on with fewer of them, or without" in caplog.text
    )
    assert len(light.pids) <= lived + 6


def test_what_harmed_a_worker_is_never_tried_in_the_parent(light, monkeypatch):
    """Where no worker is left, the parent prepares the samples that killed none."""
    monkeypatch.setenv("LIGHT_STARTS", "1")
    found = outcomes(run(questions("a", "die", "b", "die"), workers=1))
    assert found[1].startswith(DIED) and [found[0], found[2], found[3]] == [
        "prepared a",
        "prepared b",
        "prepared die",
    ]


def test_a_system_without_room_for_processes_or_threads_is_a_run_without_workers(
    light, monkeypatch, caplog
):
    def refuse(*_: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(processes, "Child", refuse)
    assert outcomes(run(questions("a", "b", "c"), workers=2)) == [
        "prepared a",
        "prepared b",
        "prepared c",
    ]
    assert len(caplog.messages) == 1

    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    caplog.clear()
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    assert outcomes(run(questions("a", "b", "c"), workers=2)) == [
        "prepared a",
        "prepared b",
        "prepared c",
    ]
    assert len(caplog.messages) == 1


def test_processes_started_in_advance_do_the_work_and_those_that_nobody_took_are_ended(light):
    early = processes.Processes()
    early.start(3)
    begun = list(light.pids)
    samples = questions("slow 0.2", "a", "b")
    found = outcomes(list(prefetch(Light(), samples, ASK, workers=2, processes=early)))
    assert found == ["prepared slow 0.2", "prepared a", "prepared b"]
    assert len(begun) == 3 and light.pids == begun, "no further process was started"
    assert len(early.started) == 1
    early.close()
    assert not early.started


def test_a_process_that_died_before_it_had_a_task_is_replaced(light, caplog):
    early = processes.Processes()
    early.start(1)
    os.kill(light.pids[0], signal.SIGKILL)
    found = list(prefetch(Light(), questions("a", "b"), ASK, workers=1, processes=early))
    assert outcomes(found) == ["prepared a", "prepared b"]
    assert len(light.pids) == 2 and caplog.messages == []


def test_a_process_that_cannot_be_started_in_advance_is_tried_again_when_it_is_needed(
    light, monkeypatch, caplog
):
    kept, refused = processes.Child, []

    def refuse(*_: object) -> None:
        refused.append(1)
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    early = processes.Processes()
    monkeypatch.setattr(processes, "Child", refuse)
    early.start(2)
    assert len(refused) == 2 and caplog.messages == []
    monkeypatch.setattr(processes, "Child", kept)
    found = list(prefetch(Light(), questions("a", "b"), ASK, workers=2, processes=early))
    assert outcomes(found) == ["prepared a", "prepared b"]
    assert light.pids and caplog.messages == []


def test_a_sample_that_cannot_be_sent_is_prepared_here(light):
    class Words(str):
        def __reduce__(self):
            raise TypeError("not this one")

    assert outcomes(run([Sample(0, question=Words("a")), Sample(1, question="b")], workers=1)) == [
        "prepared a",
        "prepared b",
    ]


@pytest.mark.parametrize("seed", range(3))
def test_workers_killed_at_random_lose_no_sample_and_change_no_answer(light, seed):
    """SIGKILL, SIGTERM and SIGSTOP at random moments, while they start as well."""
    draw, over, hits = random.Random(seed), threading.Event(), 0
    samples = [Sample(i, question=f"slow {draw.choice((0, 0.02, 0.06))} {i}") for i in range(100)]

    def kill() -> None:
        nonlocal hits
        while not over.wait(draw.uniform(0.02, 0.3)):
            alive = [
                pid
                for pid in light.pids[-3:]
                if Path(f"/proc/{pid}").exists() or sys.platform != "linux"
            ]
            if alive:
                try:
                    os.kill(
                        draw.choice(alive),
                        draw.choice([signal.SIGKILL] * 6 + [signal.SIGTERM] * 3 + [signal.SIGSTOP]),
                    )
                    hits += 1
                except ProcessLookupError:
                    pass

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        found = run(samples, workers=3)
    finally:
        over.set()
        killer.join()
    assert hits > 2
    plain = run(samples, workers=0)
    for got, want in zip(found, plain, strict=True):
        if isinstance(got, Failed):
            assert str(got.error).startswith((DIED, LATE))
        else:
            assert (got.sample, got.question, got.inputs, got.media) == (
                want.sample,
                want.question,
                want.inputs,
                want.media,
            )
    assert sum(isinstance(each, Prepared) for each in found) > 50


def test_no_time_passes_while_a_process_is_stopped():
    """A stop as by Ctrl-Z."""
    work = "(print('begun', flush=True), [time.sleep(0.05) for _ in range(12)], print('done'))"
    code = f"import time; from trimtok_cli.limits import within; within(4, lambda: {work})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(4.5)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=20)[0] == "done\n" and process.returncode == 0


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


PARENT = """
import os, sys, time
from trimtok_cli.child_process import Child
child = Child({code!r}, dict(os.environ))
print(child.process.pid, flush=True)
child.ask(b"hello", 60)
"""
BUSY = {
    "asleep": "time.sleep(60)",
    "in Python": "\nwhile True: pass",
    "in native code that keeps Python's lock": "re.match('(a+)+$', 'a' * 40 + 'b')",
}


@pytest.mark.parametrize("ending", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
@pytest.mark.parametrize("busy", BUSY)
def test_a_child_ends_with_its_parent_whatever_both_are_at(busy, ending):
    code = (
        "import os, re, time; from trimtok_cli.child_process import end_with_parent; "
        f"end_with_parent(lambda: os.read(0, 1)); {BUSY[busy]}"
    )
    code = code.replace(
        "os.read(0, 1)", "[os.read(0, 99) for _ in range(2)]"
    )  # the message, then the pipe's end
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(code=code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    assert not gone_now(pid)
    os.killpg(parent.pid, getattr(signal, ending))
    parent.communicate(timeout=20)
    assert gone(pid)


def gone_now(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_an_answer_has_a_limit_whatever_the_child_does_with_the_pipe():
    """A child that never reads is as late as one that never answers."""
    for message in (b"short", bytes(1 << 20)):
        child, started = Child("import time; time.sleep(60)", dict(os.environ)), time.monotonic()
        with pytest.raises(Ended, match="signal 9") as error:
            child.ask(message, 0.5)
        assert error.value.overdue and time.monotonic() - started < 5 and gone(child.process.pid)
