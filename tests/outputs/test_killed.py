"""SIGKILL at random moments of runs of a real, tiny model, each begun again by the same command.

KILLS=50 in the environment kills fifty runs instead of two, every second one with workers.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.stub_engine import contents

ROOT = Path(__file__).parents[2]

# Imports everything once; each run is a fork of this process.
RUNS = r"""
import os, random, signal, sys, time
from trimtok_cli.cli import app
import trimtok_cli.models.loading, trimtok_cli.engine.stream, trimtok_cli.pruners.registry
from trimtok_cli.interrupts import protected

kills, *arguments = sys.argv[1:]
lots = random.Random(int(os.environ.get("SEED", "0")))

def start(*more):
    child = os.fork()
    if not child:
        code = 1
        try:
            sys.argv = ["trimtok", *arguments, *more]
            protected(app)
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            os._exit(code)
    return child

def finish(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def whole(*more):
    begun = time.monotonic()
    code = finish(start(*more))
    assert code == 3, code
    return time.monotonic() - begun

seconds = {workers: whole("-o", f"whole-{workers}", "--workers", workers)
           for workers in (("0", "2") if "KILLS" in os.environ else ("0",))}
for number in range(int(kills)):
    workers = "2" if number % 2 and "2" in seconds else "0"
    more = ["-o", f"killed-{number}", "--workers", workers, "--batch-size", str(1 + number % 3)]
    killed = 0
    while True:
        child = start(*more)
        time.sleep(lots.uniform(0.1, 1) * seconds[workers])
        os.kill(child, signal.SIGKILL)
        code = finish(child)
        if code != -signal.SIGKILL or killed == 2:
            break
        killed += 1
    if code == -signal.SIGKILL:
        whole(*more)
    print(killed)
"""


def test_a_run_that_is_killed_at_random_moments_ends_as_an_undisturbed_one(llava_folder, pictures):
    """Answers, errors and counts are the same; batches may differ from run to run."""
    (pictures[0].parent / "p2b.png").write_bytes(b"no")
    (pictures[0].parent / "p6.png").write_bytes(pictures[5].read_bytes()[:100])
    kills = os.environ.get("KILLS", "2")
    arguments = ["caption", str(pictures[0].parent), "-m", str(llava_folder), "-q"]
    done = subprocess.run(
        [sys.executable, "-c", RUNS, kills, *arguments, "--max-new-tokens", "3"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    killed = [int(line) for line in done.stdout.split()]
    assert len(killed) == int(kills) and sum(killed) >= int(kills) // 2, killed
    expected = files("whole-0")
    assert len(expected["answers.jsonl"]) == 8 and len(expected["errors.jsonl"]) == 2
    for number in range(int(kills)):
        assert files(f"killed-{number}") == expected, f"run {number}"


def files(folder: str) -> dict[str, object]:
    """The files of a run; of the settings in run.json those that change answers."""
    found = contents(Path(folder))
    manifest = json.loads(found["run.json"])
    for name in ("workers", "batch_size", "sources"):
        del manifest["config"][name]
    del manifest["peak_bytes"]
    return found | {"run.json": manifest}
