"""One question file through every engine that is installed: the same files as trimtok's own loop.

The model is the demo model, the processes are real, and each engine is killed in the middle once.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.stub_engine import contents

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples"

ENGINES = {
    "two processes": ["--processes", "2"],
    "ray": ["--engine", "ray", "--processes", "2"],
    "vllm": ["--engine", "vllm", "--vllm-args", "max_model_len=1024"],
}
PACKAGES = {"ray": "ray", "vllm": "vllm"}
MANY, ENOUGH = 24, 6  # questions, and lines after which a run is killed


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    """Questions of which one shows a broken picture."""
    folder = tmp_path_factory.mktemp("questions")
    shutil.copytree(SAMPLES / "images", folder / "images")
    (folder / "images" / "broken.png").write_bytes(b"\x89PNG nothing")
    lines = (SAMPLES / "questions.jsonl").read_text(encoding="utf-8").splitlines()[:MANY]
    lines.insert(
        4, json.dumps({"question_id": "broken", "image": "images/broken.png", "text": "?"})
    )
    path = folder / "q.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def line(questions: Path, out: Path, *more: str) -> list[str]:
    command = [sys.executable, "-m", "trimtok_cli", "vqa", questions, "-m", SAMPLES / "demo/model"]
    command += ["--device", "cpu", "--dtype", "float32", "--keep", "64", "--batch-size", "4"]
    return [*map(str, command), "--max-new-tokens", "12", "-q", "-o", str(out), *more]


def start(command: list[str], folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finished(command: list[str], folder: Path) -> None:
    process = start(command, folder)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 3, said.decode()[-2000:]


def lines(folder: Path) -> int:
    path = folder / "answers.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def local(questions, tmp_path_factory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("local")
    finished(line(questions, folder / "o"), folder)
    return answers(folder / "o")


def answers(folder: Path) -> dict[str, object]:
    """The files of a run: of run.json what it counted."""
    found = contents(folder)
    return found | {"run.json": json.loads(found["run.json"])["counts"]}


def killed(command: list[str], folder: Path) -> None:
    """Kills a run once it has written enough; one that was quicker is begun anew."""
    for _ in range(5):
        process = start(command, folder)
        while process.poll() is None and lines(folder / "killed") < ENOUGH:
            time.sleep(0.01)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            return
        shutil.rmtree(folder / "killed")
    raise AssertionError("the run ended before it was killed, five times")


@pytest.mark.parametrize("engine", ENGINES)
def test_one_question_file_through_every_engine(engine, questions, local, tmp_path):
    if engine in PACKAGES and importlib.util.find_spec(PACKAGES[engine]) is None:
        pytest.skip(f"{PACKAGES[engine]} is not installed")
    finished(line(questions, tmp_path / "whole", *ENGINES[engine]), tmp_path)
    assert answers(tmp_path / "whole") == local
    assert len(local["answers.jsonl"]) == MANY + 1 and len(local["errors.jsonl"]) == 1

    command = line(questions, tmp_path / "killed", *ENGINES[engine])
    killed(command, tmp_path)
    assert ENOUGH <= lines(tmp_path / "killed") <= MANY
    finished(command, tmp_path)
    assert answers(tmp_path / "killed") == local
