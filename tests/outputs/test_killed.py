"""SIGKILL at random moments of runs of a real, tiny model, each begun again by the same command.

KILLS=50 in the environment kills fifty runs instead of two, every second one of a folder with
workers. SOURCES names what is run instead, one after the other: folder,tar,csv,questions,list,stdin,
shard,compare,processes.
"""

import csv
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.stub_engine import contents
from trimtok_cli.outputs.grid_files import NAMES

ROOT = Path(__file__).parents[2]

# Imports everything once; each run is a fork of this process.
RUNS = r"""
import os, random, shutil, signal, sys, time
from trimtok_cli.cli import app
import trimtok_cli.models.loading, trimtok_cli.engine.stream, trimtok_cli.pruners.registry
from trimtok_cli.commands import evaluate, grid_cells
from trimtok_cli.interrupts import protected

# A table shows times; these are the same in every run.
grid_cells.median, evaluate.time.strftime = lambda found: float(len(list(found))), lambda _: "now"

kills, changes, stdin, *arguments = sys.argv[1:]
lots = random.Random(int(os.environ.get("SEED", "0")))

def start(*more):
    child = os.fork()
    if not child:
        code = 1
        try:
            if stdin:
                os.dup2(os.open(stdin, os.O_RDONLY), 0)
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

def speed(workers, size):
    # Options that change nothing but the speed, where the command has them.
    return [] if changes == "none" else ["--workers", workers, "--batch-size", str(size)]

seconds = {workers: whole("-o", f"whole-{workers}", *speed(workers, 1))
           for workers in (("0", "2") if changes == "workers" else ("0",))}
for number in range(int(kills)):
    workers = "2" if number % 2 and "2" in seconds else "0"
    more = ["-o", f"killed-{number}", *speed(workers, 1 + number % 3)]
    killed = 0
    while True:
        child = start(*more)
        time.sleep(lots.uniform(0.1, 1) * seconds[workers])
        os.kill(child, signal.SIGKILL)
        code = finish(child)
        if code != -signal.SIGKILL and not killed:  # runs take less time now than the first one did
            shutil.rmtree(f"killed-{number}")
            seconds[workers] /= 2
            continue
        if code != -signal.SIGKILL or killed == 2:
            break
        killed += 1
    if code == -signal.SIGKILL:
        whole(*more)
    print(killed)
"""

GRID = """
models: MODEL
datasets: {name: jsonl, data: q.jsonl, max_new_tokens: 3}
methods: [{method: fastv, keep: 9, budget_counts: [final, layer-mean]}, random]
keep: 4
seeds: [0, 1]
reference: random
batch_size: 2
device: cpu
"""


def source(name: str, folder: Path) -> list[str]:
    """The arguments of a run over the pictures of a folder, and what its standard input is."""
    paths = sorted(folder.glob("*.png"))
    match name:
        case "tar":
            with tarfile.open("pictures.tar", "w") as tar:
                for path in paths:
                    tar.add(path, path.name)
            return ["", "caption", "pictures.tar"]
        case "csv":
            rows = [["file_name", "n"], *([path.name, number] for number, path in enumerate(paths))]
            with open("pictures.csv", "w", newline="") as file:
                csv.writer(file).writerows(rows)
            return ["", "caption", "pictures.csv", "--image-root", str(folder)]
        case "questions":
            asked = [{"question_id": 1, "image": path.name, "text": "What?"} for path in paths]
            Path("q.jsonl").write_text("".join(json.dumps(each) + "\n" for each in asked))
            return ["", "vqa", "q.jsonl", "--image-root", str(folder)]
        case "list" | "stdin":
            Path("list.txt").write_text("".join(f"{path}\n" for path in paths))
            return ["", "caption", "@list.txt"] if name == "list" else ["list.txt", "caption", "-"]
        case "shard":
            asked = [{"image": path.name, "text": text} for path in paths for text in ("A?", "B?")]
            Path("q.jsonl").write_text("".join(json.dumps(each) + "\n" for each in asked))
            return ["", "vqa", "q.jsonl", "--image-root", str(folder), "--shard", "1/2"]
        case "compare":
            return ["", "compare", str(folder), "--keep", "9,3"]
        case "processes":
            return ["", "caption", str(folder), "--processes", "2", "--device", "cpu"]
    return ["", "caption", str(folder)]


def begin_and_kill(changes: str, arguments: list[str]) -> int:
    """Runs the command once undisturbed, and then as often as KILLS says, each killed and begun again.

    Returns how many were killed.
    """
    kills = os.environ.get("KILLS", "2")
    done = subprocess.run(
        [sys.executable, "-c", RUNS, kills, changes, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    killed = [int(line) for line in done.stdout.split()]
    assert len(killed) == int(kills) and min(killed) > 0, killed
    return len(killed)


def break_some(pictures: list[Path]) -> None:
    """Of eight pictures two are broken."""
    (pictures[0].parent / "p2b.png").write_bytes(b"no")
    (pictures[0].parent / "p6.png").write_bytes(pictures[5].read_bytes()[:100])


@pytest.mark.parametrize("name", os.environ.get("SOURCES", "folder").split(","))
def test_a_run_that_is_killed_at_random_moments_ends_as_an_undisturbed_one(
    name, llava_folder, pictures
):
    """Answers, errors and counts are the same; batches may differ from run to run."""
    break_some(pictures)
    changes = "workers" if name == "folder" and "KILLS" in os.environ else "batches"
    changes = "none" if name == "compare" else changes
    model = ["-m", str(llava_folder), "-q", "--max-new-tokens", "3"]
    kills = begin_and_kill(changes, [*source(name, pictures[0].parent), *model])
    expected = files("whole-0")
    lines = expected.get("answers.jsonl") or expected["compare.jsonl"]
    assert len(lines) == 8 and sum('"status": "error"' in line for line in lines) == 2
    assert len(expected.get("errors.jsonl", lines[:2])) == 2
    for number in range(kills):
        assert files(f"killed-{number}") == expected, f"run {number}"


def test_a_grid_that_is_killed_at_random_moments_ends_with_the_same_table(llava_folder, pictures):
    """All four files of the table are the same bytes, and each cell has the same answers."""
    break_some(pictures)
    paths = sorted(pictures[0].parent.glob("*.png"))
    rows = [{"image": f"pictures/{path.name}", "text": "A?", "answers": ["a"]} for path in paths]
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("grid.yaml").write_text(GRID.replace("MODEL", str(llava_folder)))
    kills = begin_and_kill("none", ["", "evaluate", "grid.yaml", "-q"])
    expected = grid_files("whole-0")
    assert [len(expected[name]) for name in sorted(expected.keys() - set(NAMES))] == [8] * 5
    for number in range(kills):
        assert grid_files(f"killed-{number}") == expected, f"run {number}"


def grid_files(folder: str) -> dict[str, object]:
    """The table's files as they are, and the answers of each cell without their times."""
    tables = {name: Path(folder, name).read_bytes() for name in NAMES}
    cells = {
        str(path.parent.relative_to(folder)): contents(path.parent)["answers.jsonl"]
        for path in sorted(Path(folder).rglob("answers.jsonl"))
    }
    return tables | cells


def files(folder: str) -> dict[str, object]:
    """The files of a run; of the settings in run.json those that change answers."""
    place = next(Path(folder).glob("shard-*"), Path(folder))
    pages = list(place.glob("*.html"))
    for page in pages:  # a page shows times
        assert page.read_text().count("<article") == 8
        page.rename(f"{folder}-{page.name}")
    found = contents(place)
    manifest = json.loads(found["run.json"])
    for key in ("workers", "batch_size", "sources"):
        del manifest["config"][key]
    for holder in (manifest, *manifest["settings"]):
        holder.pop("peak_bytes", None)
        holder.pop("timing_ms", None)
    manifest.pop("replicas", None)
    return found | {"run.json": manifest, "pages": len(pages)}
