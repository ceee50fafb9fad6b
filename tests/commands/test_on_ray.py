"""Runs on a Ray cluster: the files are those of a run in one process, whoever dies and whenever.

Ray, its actors and the processes in them are real; the engine is a stand-in that answers at once,
but for one test with a real, tiny model.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.test_cli import rows
from tests.commands.test_replicas import (
    ROOT,
    arguments,  # noqa: F401 (a fixture)
    children_of,
    files,
    program,
    restarts,
    started,
    wait_for_lines,
)
from tests.support.processes import gone
from tests.support.stub_engine import call, without_times
from trimtok_cli.on_ray import cluster

pytest.importorskip("ray")


def cluster_of(head: int, further: int = 0) -> subprocess.Popen:
    command = [sys.executable, ROOT / "tests/support/ray_cluster.py", str(head), str(further)]
    process = subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # Ray ends actors of a machine whose memory others have used up.
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"},
    )
    for line in process.stdout:
        if line.startswith("ADDRESS"):
            process.address = line.split()[1]
            return process
    raise AssertionError("no cluster")


def end(process: subprocess.Popen) -> None:
    process.stdin.close()
    process.wait(timeout=60)


@pytest.fixture(scope="module")
def address():
    process = cluster_of(3)
    yield process.address
    end(process)


@pytest.fixture
def on_ray(address) -> list[object]:
    return ["--engine", "ray", "--ray-address", address]


def told(folder: str) -> dict[str, object]:
    """The files of a run, without what says which engine ran."""
    found = files(folder)
    found["run.json"].pop("engine")
    found["run.json"]["config"].pop("engine")
    return found


def undisturbed(arguments: list[object], code: int = 3) -> dict[str, object]:  # noqa: F811
    done = call(*arguments, "-q", "-o", "whole")
    assert done.exit_code == code, done.stderr
    return told("whole")


@pytest.mark.parametrize("more", [[], ["--batch-size", 3]])
@pytest.mark.parametrize("number", [1, 3])
def test_the_files_are_those_of_one_process(number, more, arguments, on_ray):  # noqa: F811
    expected = undisturbed(arguments)
    done = call(*arguments, *on_ray, "-o", "o", "--processes", number, *more)
    assert done.exit_code == 3, done.stderr
    assert told("o") == expected and len(expected["answers.jsonl"]) == 11
    manifest = json.loads(Path("o/run.json").read_text())
    assert manifest["engine"]["name"] == "ray" and all(
        each["node"] for each in manifest["replicas"].values()
    )
    assert restarts() == 0 and 0 < len(started()) <= number and all(map(gone, started()))


def test_questions_on_standard_output_come_in_order_and_alone(arguments, inputs, on_ray):  # noqa: F811
    line = ["vqa", inputs / "q.jsonl", *arguments[2:], "-o", "-"]
    one, two = call(*line, "-q"), call(*line, *on_ray, "--processes", 2)
    assert (one.exit_code, two.exit_code) == (3, 3), two.stderr
    found = [
        [without_times(json.loads(each)) for each in done.stdout.splitlines()]
        for done in (one, two)
    ]
    assert found[0] == found[1] and len(found[0]) == 6


HARMS = ["once marker", "leave marker", "unreadable marker", "cuda marker", "orphan marker"]


@pytest.mark.parametrize("harm", HARMS)
def test_a_process_or_an_actor_that_dies_in_the_middle_costs_nothing(
    harm,
    arguments,  # noqa: F811
    inputs,
    on_ray,
):
    (inputs / "p4.png").write_text(harm)
    expected = undisturbed(arguments)
    done = call(*arguments, *on_ray, "-o", "o", "--processes", 2, "--batch-size", 2)
    assert done.exit_code == 3, done.stderr
    assert told("o") == expected and restarts() == 1
    assert "and is started anew" in done.stderr


def test_an_input_that_no_process_survives_is_one_failed_row(arguments, inputs, on_ray):  # noqa: F811
    expected = undisturbed(arguments)
    (inputs / "p4.png").write_text("die")
    line = [*arguments, *on_ray, "-o", "o", "--processes", 2]
    done = call(*line, "--batch-size", 4)
    assert done.exit_code == 3, done.stderr
    (lost,) = [row for row in rows(Path("o/answers.jsonl")) if row["image"] == "p4.png"]
    assert (
        "every process that was asked died, 3 of them (the last by signal 9)"
        in (lost["metadata"]["error"])
    )
    assert restarts() == 3 and len(rows(Path("o/answers.jsonl"))) == 11
    (inputs / "p4.png").write_text("x" * 4)
    assert call(*line).exit_code == 3
    assert told("o") == expected, "it was tried again"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_whose_driver_is_ended_goes_on_with_any_engine(
    number,
    arguments,  # noqa: F811
    inputs,
    on_ray,
):
    for each in (3, 4, 6):
        (inputs / f"p{each}.png").write_text("slow 0.6")
    expected = undisturbed(arguments)
    process = program([*arguments, *on_ray], "-o", "o", "--processes", 2)
    wait_for_lines(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), err
    assert b"Traceback" not in err
    assert all(map(gone, started()))
    before = Path("o/answers.jsonl").read_bytes()
    assert before.count(b"\n") in range(1, 11)
    more = [*on_ray, "--processes", 2] if number == signal.SIGKILL else []
    assert call(*arguments, *more, "-o", "o").exit_code == 3
    assert Path("o/answers.jsonl").read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    assert told("o") == expected


def test_processes_that_find_no_place_are_told_of_and_not_waited_for(
    arguments,  # noqa: F811
    inputs,
    on_ray,
    monkeypatch,
):
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    (inputs / "p1.png").write_text("slow 3")
    expected = undisturbed(arguments)
    line = [*arguments, *on_ray, "-o", "o", "--processes", 2]
    done = call(*line, "--ray-resources", "CPU=2")
    assert done.exit_code == 3, done.stderr
    assert "Ray has no place yet for " in done.stderr
    assert "each asks for 2 CPU" in done.stderr and "of 3 CPU free" in done.stderr
    assert told("o") == expected and len(started()) == 1


def test_a_node_that_is_lost_costs_nothing(arguments, inputs, monkeypatch):  # noqa: F811
    """Its actor has no other place: what it held is answered by the one that is left."""
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    for each in (1, 3, 4, 6):
        (inputs / f"p{each}.png").write_text("slow 2")
    expected = undisturbed(arguments)
    nodes = cluster_of(1, further=1)
    try:
        line = [*arguments, "--engine", "ray", "--ray-address", nodes.address]
        process = program(line, "-o", "o", "--processes", 2, "--batch-size", 2)
        wait_for_lines(1)
        nodes.stdin.write("\n")
        nodes.stdin.flush()
        _, err = process.communicate(timeout=200)
    finally:
        end(nodes)
    assert process.returncode == 3, err
    assert b"its process died" in err and told("o") == expected


REFUSED = {
    "no GPU in the cluster": ([], "no node of the cluster has 1 GPU"),
    "another address": (["--ray-address", "127.0.0.1:1"], "no Ray cluster answers"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_a_cluster_that_is_not_there_or_has_no_gpu_is_one_sentence(case, arguments, on_ray):  # noqa: F811
    more, says = case
    done = call(*arguments[:-2], *on_ray, *more, "-o", "o")
    assert done.exit_code in (1, 2) and says in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not Path("o").exists()


def test_a_real_model_in_two_actors_of_which_one_is_killed_and_then_the_driver(
    llava_folder, pictures
):
    """Answers, counts and order are those of one process; a broken picture fails in both."""
    pictures[2].write_bytes(b"no")
    Path("list.txt").write_text("".join(f"{path}\n" for path in pictures * 12))
    line = ["caption", "@list.txt", "-m", llava_folder, "--device", "cpu", "--max-new-tokens", 3]
    assert call(*line, "-q", "-o", "whole").exit_code == 3
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    more = ["-o", "o", "--engine", "ray", "--processes", 2]
    command = list(map(str, [sys.executable, "-m", "trimtok_cli", *line, *more]))
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    wait_for_lines(1)
    actor = next(iter(actors_below(process.pid)))
    os.kill(actor, signal.SIGKILL)
    wait_for_lines(12)
    process.kill()
    process.communicate(timeout=60)
    assert gone(actor)
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300)
    assert done.returncode == 3, done.stderr
    assert told("o") == told("whole") and len(rows(Path("o/answers.jsonl"))) == 84


def actors_below(pid: int) -> list[int]:
    """The actors among the processes that a process has started."""
    found, below = [], children_of(pid)
    while below:
        each = below.pop()
        below += children_of(each)
        name = Path(f"/proc/{each}/cmdline").read_bytes()
        found += [each] * name.startswith(b"ray::Host")
    return found
