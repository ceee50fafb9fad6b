"""Formats of answers: each gets Results, and each gives the times the same names.

A comparison records the settings that it ran.
"""

import json
from dataclasses import fields
from pathlib import Path

from tests.commands.test_cli import run
from tests.support.writing import as_written
from trimtok_cli.bench.batch import STAGES
from trimtok_cli.commands import run as run_module
from trimtok_cli.data import Result, Sample, Seconds
from trimtok_cli.outputs.manifest import STAGES as MANIFEST_STAGES

TIMES = [field.name for field in fields(Seconds)]


def test_a_time_has_one_name_in_every_file():
    _, line = as_written(Result(Sample("a"), "?"), model="m", run="r")
    assert [*json.loads(line)["metadata"]["timing_ms"]][:-1] == TIMES
    assert list(MANIFEST_STAGES) == TIMES and list(STAGES) == TIMES[2:]


def test_a_run_gives_results_to_its_writer_and_writes_nothing_else(
    llava_folder, pictures, monkeypatch
):
    seen = []

    class Names:
        def __init__(self, file, *, model, run):
            self.file, self.model = file, model

        def write(self, result):
            seen.append(result)
            self.file.write(f"{self.model} {result.sample.id}\n".encode())
            return result

        def close(self, failed):
            self.file.close(failed)

    monkeypatch.setattr(run_module, "JsonLines", Names)
    asked = ("-m", llava_folder, "--keep", 4, "--max-new-tokens", 1, "-o", "out")
    run("caption", *pictures[:2], *asked)
    assert all(isinstance(each, Result) for each in seen)
    lines = Path("out/answers.jsonl").read_text().splitlines()
    assert lines == [f"{llava_folder} {each.sample.id}" for each in seen] and len(lines) == 2


def test_a_comparison_has_a_manifest_with_every_setting(llava_folder, pictures):
    asked = ("-m", llava_folder, "--keep", "4,8", "--param", "pool=0.9", "--max-new-tokens", 2)
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    done = run("compare", pictures[0], "broken.png", *asked, "-o", "out", code=3)
    manifest = json.loads(Path("out/run.json").read_text())
    assert manifest["command"] == "compare" and manifest["interrupted"] is False
    assert [each["name"] for each in manifest["settings"]] == [
        "dense",
        "trimtokenator@4 pool=0.9",
        "trimtokenator@8 pool=0.9",
    ]
    assert manifest["settings"][1]["params"] == {"pool": 0.9}
    assert manifest["settings"][2]["visual_tokens"]["kept"] == 8
    assert manifest["counts"] == {"done": 1, "failed": 1}, done.stderr
    row = json.loads(Path("out/compare.jsonl").read_text().splitlines()[0])
    assert [each["setting"] for each in row["runs"]] == [
        each["name"] for each in manifest["settings"]
    ]
    assert {each["metadata"]["run"] for each in row["runs"]} == {manifest["run"]}
