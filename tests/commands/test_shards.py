"""Shards: their union is the whole run, however each of them came about, and only theirs is merged.

The engine is a stand-in that answers at once; all else is the program itself.
"""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.commands.test_cli import rows
from tests.commands.test_replicas import HOSTILE
from tests.outputs.test_survives import ended, repair
from tests.support import stub_replica
from tests.support.stub_engine import Disk, call, contents
from trimtok_cli.commands import replicated
from trimtok_cli.data import Sample
from trimtok_cli.readers import read_images
from trimtok_cli.readers.keys import keyed
from trimtok_cli.readers.shards import Shard

COUNT = 3

SCHEDULERS = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_ARRAY_TASK_COUNT",
    "SLURM_ARRAY_TASK_MIN",
    "SLURM_ARRAY_TASK_MAX",
)


@pytest.fixture
def arguments(bare_model, inputs, loaded, monkeypatch) -> list[object]:
    """A run of eleven inputs, two of which fail, and some of which have odd names."""
    for number, name in enumerate(HOSTILE):
        (inputs / name).write_text("x" * number + "x")
    for name in SCHEDULERS:
        monkeypatch.delenv(name, raising=False)
    return ["caption", inputs, "-m", bare_model, "-q", "--device", "cpu"]


def files(folder: str) -> dict[str, object]:
    """The files of a run, without what tells of shards and of where it ran."""
    there = Path(folder)
    for path in there.glob("shard-*"):
        path.rename(there.parent / f"aside-{path.name}")
    found = contents(there)
    for path in there.parent.glob("aside-*"):
        path.rename(there / path.name.removeprefix("aside-"))
    manifest = json.loads(found["run.json"])
    for name in ("shards", "sources"):
        manifest.pop(name, None)
    manifest["config"].pop("sources")
    return found | {"run.json": manifest}


def answered(arguments: list[object], out: str = "o", count: int = COUNT, *more: object) -> None:
    for number in range(1, count + 1):
        done = call(*arguments, "-o", out, "--shard", f"{number}/{count}", *more)
        assert done.exit_code in (0, 3), done.stderr


def merged(*folders: object, out: str = "m", code: int = 3) -> dict[str, object]:
    done = call("merge", *folders, "-o", out)
    assert done.exit_code == code, done.stderr
    return files(out)


@pytest.fixture
def whole(arguments) -> dict[str, object]:
    """The files of the run that was not cut."""
    assert call(*arguments, "-o", "whole").exit_code == 3
    return files("whole")


@pytest.mark.parametrize("count", [1, 2, 3, 11, 12])
def test_merged_shards_are_the_whole_run(count, arguments, whole):
    """The answers, the errors and the counts; a shard may be empty."""
    answered(arguments, "o", count)
    assert merged("o") == whole and len(rows(Path("m/answers.jsonl"))) == 11
    runs = {row["metadata"]["run"] for row in rows(Path("m/answers.jsonl"))}
    assert runs == {json.loads(Path("m/run.json").read_text())["run"]}
    told = json.loads(Path("m/run.json").read_text())["shards"]
    assert [each["number"] for each in told] == list(range(1, count + 1))
    done = call(*arguments, "-o", "m", "--keep-failed")
    assert (
        done.exit_code == 3
        and "nothing to do"
        in call(*arguments[:-3], *arguments[-2:], "-o", "m", "--keep-failed").stderr
    )


def test_the_merged_run_may_lie_in_the_folder_of_its_shards_and_is_gone_on_with(
    arguments, whole, inputs
):
    answered(arguments)
    assert merged(*sorted(Path("o").iterdir()), out="o") == whole
    assert (
        call("merge", "o/shard-1-of-3", "o/shard-2-of-3", "o/shard-3-of-3", "-o", "o").exit_code
        == 2
    )
    assert call("merge", "o", "-o", "o", "--overwrite").exit_code == 3
    repair(inputs)
    assert call(*arguments, "-o", "o").exit_code == 0, "what failed is tried again"
    shutil.rmtree("whole")
    assert call(*arguments, "-o", "whole").exit_code == 0
    assert files("o") == files("whole")


def test_questions_that_repeat_have_the_keys_of_the_whole_run(arguments, inputs):
    line = ["vqa", inputs / "q.jsonl", *arguments[2:]]
    assert call(*line, "-o", "whole").exit_code == 3
    answered(line)
    assert merged("o") == files("whole")


def test_a_stream_is_cut_like_a_list(arguments, inputs):
    names = "".join(f"{inputs}/p{number}.png\n" for number in range(1, 7))
    line = ["caption", "-", *arguments[2:]]
    assert call(*line, "-o", "whole", stdin=names).exit_code == 3
    for number in (1, 2):
        call(*line, "-o", "o", "--shard", f"{number}/2", stdin=names)
    assert merged("o") == files("whole")


def test_shards_in_several_processes_are_the_same(arguments, whole, monkeypatch):
    monkeypatch.setattr(replicated, "REPLICA", stub_replica.REPLICA)
    answered(arguments, "o", 2, "--processes", 2)
    assert merged("o") == whole


def test_a_shard_that_dies_at_any_call_is_gone_on_with(arguments, whole):
    answered(arguments)
    shutil.move("o/shard-2-of-3", "two")
    line = [*arguments, "-o", "o", "--shard", "2/3"]
    number, dead = 0, True
    while dead:
        number += 3  # every third call will do: test_survives takes each
        dead = ended(Disk(number, half=True), line)
        assert call(*line).exit_code in (0, 3)
        assert contents(Path("o/shard-2-of-3")) == contents(Path("two")), f"call {number}"
        shutil.rmtree("o/shard-2-of-3")
    assert number > 30


def test_merging_that_dies_at_any_call_leaves_the_shards_and_can_be_done_again(arguments, whole):
    answered(arguments)
    before = {path: path.read_bytes() for path in Path("o").rglob("*") if path.is_file()}
    number, dead = 0, True
    while dead:
        number += 1
        dead = ended(Disk(number, half=number % 2 == 0), ["merge", "o", "-o", "m"])
        if Path("m/run.json").exists():
            assert len(rows(Path("m/answers.jsonl"))) == 11, "run.json comes last"
        assert call("merge", "o", "-o", "m", "--overwrite").exit_code == 3
        assert files("m") == whole, f"call {number}"
        shutil.rmtree("m")
    assert number > 15
    assert {path: path.read_bytes() for path in Path("o").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("lasting", [True, False])
def test_a_full_disk_while_merging_is_one_sentence(lasting, arguments, whole):
    answered(arguments)
    number, reached = 0, True
    while reached:
        number += 1
        disk = Disk(number, half=True, code=errno.ENOSPC, lasting=lasting)
        with disk.in_place():
            done = call("merge", "o", "-o", "m")
        reached = len(disk.calls) >= number
        assert done.exit_code in (1, 3) and "Error" not in done.stderr, done.stderr
        assert (done.exit_code == 1) == done.stderr.startswith("error: ")
        assert call("merge", "o", "-o", "m", "--overwrite").exit_code == 3
        assert files("m") == whole
        shutil.rmtree("m")
    assert number > 15


def changed_line(folder: Path, change) -> None:
    file = folder / "answers.jsonl"
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))


def manifest_changed(folder: Path, **values: object) -> None:
    file = folder / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values) + "\n")


ONE, TWO = Path("o/shard-1-of-3"), Path("o/shard-2-of-3")

DAMAGES = {
    "a shard is missing": (lambda: shutil.rmtree(TWO), "1 of 3 shards is missing: 2; run"),
    "a shard is there twice": (
        lambda: shutil.copytree(TWO, "o/shard-9-of-3"),
        "are both shard 2/3",
    ),
    "a shard is not complete": (
        lambda: manifest_changed(TWO, interrupted=True),
        "o/shard-2-of-3 is not complete: run the same command again with --shard 2/3",
    ),
    "no run.json": (lambda: (TWO / "run.json").unlink(), "holds no run of `trimtok caption`"),
    "a run.json that is none": (
        lambda: (TWO / "run.json").write_text("[" * 9999),
        "holds no run of",
    ),
    "a run.json of little": (
        lambda: (TWO / "run.json").write_text(
            json.dumps(
                {
                    k: v
                    for k, v in json.loads((TWO / "run.json").read_text()).items()
                    if k != "started"
                }
            )
        ),
        "is damaged: it has no started",
    ),
    "a run that was not cut": (
        lambda: manifest_changed(TWO, shard=None),
        "is no shard of a run: it was not begun with --shard",
    ),
    "a line is gone": (lambda: changed_line(TWO, lambda lines: lines[1:]), "was changed after"),
    "two lines changed places": (
        lambda: changed_line(TWO, lambda lines: lines[::-1]),
        "was changed after",
    ),
    "a line is there twice": (
        lambda: changed_line(TWO, lambda lines: [*lines, lines[0]]),
        "was changed after",
    ),
    "a torn last line": (
        lambda: changed_line(TWO, lambda lines: [*lines[:-1], lines[-1][:-9]]),
        "the shards hold 10 lines for 10 inputs, which are not the 11",
    ),
    "a line of somebody else": (
        lambda: changed_line(TWO, lambda lines: [b"{}\n", *lines]),
        "lines that are no answers of their run",
    ),
    "another model": (
        lambda: manifest_changed(TWO, model={"commit": "other", "dtype": "float32"}),
        "the model's commit was local and is other",
    ),
    "another command": (lambda: manifest_changed(TWO, command="vqa"), "command was caption"),
}


@pytest.mark.parametrize("case", DAMAGES.values(), ids=DAMAGES.keys())
def test_what_is_no_whole_run_is_not_merged(case, arguments):
    damage, says = case
    answered(arguments)
    damage()
    done = call("merge", "o", "-o", "m")
    assert done.exit_code == 2 and says in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and not Path("m").exists()


OTHERS = {
    "settings": ("--keep 9", "--keep was 11.1% and is 9"),
    "inputs": ("--limit 9", "the inputs were not the same (11 and 9)"),
    "cut": ("--shard 2/4", "there were 3 shards and are 4"),
}


@pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS.keys())
def test_shards_of_different_runs_are_not_merged(case, arguments):
    more, says = case
    answered(arguments)
    shutil.rmtree(TWO)
    last = [] if "--shard" in more else ["--shard", "2/3"]
    call(*arguments, "-o", "other", *more.split(), *last)
    (folder,) = Path("other").iterdir()
    done = call("merge", ONE, folder, "o/shard-3-of-3", "-o", "m")
    assert done.exit_code == 2 and says in done.stderr, done.stderr


def test_inputs_of_which_one_changed_between_two_shards_are_not_merged(arguments, inputs):
    call(*arguments, "-o", "o", "--shard", "1/2")
    (inputs / "p3.png").rename(inputs / "p3b.png")
    call(*arguments, "-o", "o", "--shard", "2/2")
    done = call("merge", "o", "-o", "m")
    assert done.exit_code == 2 and "the inputs were not the same, or lay under" in done.stderr


def test_other_versions_of_libraries_are_told(arguments, whole):
    answered(arguments)
    versions = json.loads((TWO / "run.json").read_text())["versions"]
    manifest_changed(TWO, versions=versions | {"torch": "1.0"})
    done = call("merge", "o", "-o", "m")
    assert done.exit_code == 3 and "in other shards, torch was" in done.stderr


def test_a_shard_goes_on_as_itself_alone(arguments, inputs):
    answered(arguments)
    shutil.copytree(ONE, "other/shard-2-of-3")
    done = call(*arguments, "-o", "other", "--shard", "2/3")
    assert done.exit_code == 2 and "--shard was 1/3 and is 2/3" in done.stderr
    done = call(*arguments, "-o", "other/shard-2-of-3")
    assert done.exit_code == 2 and "--shard was 1/3 and is not set" in done.stderr
    (inputs / "a-new-first.png").write_text("x")
    done = call(*arguments, "-o", "o", "--shard", "1/3")
    assert done.exit_code == 2 and "to what is not asked now" in done.stderr


def test_check_looks_at_the_shard_alone(arguments):
    arguments[arguments.index("-m") + 1] = "llava-1.5-7b"  # which is not on this machine
    call(*arguments, "-o", "o", "--shard", "1/3")
    line = ["check", *arguments[1:], "--keep-failed", "-o", "o", "--json", "--shard"]
    first, second = (json.loads(call(*line, f"{number}/3").stdout)["output"] for number in (1, 2))
    assert (first["would"], first["to_answer"], first["problem"]) == ("resume", 0, "")
    assert (second["would"], second["to_answer"]) == ("begin", 4)


def test_the_shards_of_a_list_are_disjoint_and_cover_it(inputs):
    every = list(keyed(read_images([str(inputs)]).samples))
    for count in range(1, 9):
        shards = [Shard(number, count) for number in range(1, count + 1)]
        cut = [list(shard.cut(every)) for shard in shards]
        assert sorted(each.key for part in cut for each in part) == sorted(
            each.key for each in every
        )
        assert [len(part) for part in cut] == [shard.size(len(every)) for shard in shards]
        assert len({json.dumps(shard.facts | {"number": 0}) for shard in shards}) == 1


def test_a_shard_says_what_it_was_cut_from_at_the_end_alone():
    shard = Shard(1, 2)
    cut = shard.cut(Sample(each, key=f"{each:032x}") for each in range(3))
    assert next(cut).id == 0 and "keys" not in shard.facts
    assert next(cut).id == 2 and next(cut, None) is None and shard.facts["inputs"] == 3


ENVIRONMENTS = {
    "torchrun": ({"RANK": "1", "WORLD_SIZE": "4"}, "shard-2-of-4"),
    "an array from 0": ({"ID": "2", "COUNT": "8", "MIN": "0", "MAX": "7"}, "shard-3-of-8"),
    "an array from 1": ({"ID": "2", "COUNT": "8", "MIN": "1", "MAX": "8"}, "shard-2-of-8"),
    "nothing": ({}, "neither RANK and WORLD_SIZE"),
    "a part of an array": ({"ID": "5", "COUNT": "2", "MIN": "5", "MAX": "6"}, "from 5 to 6"),
    "an array with gaps": ({"ID": "1", "COUNT": "2", "MIN": "1", "MAX": "5"}, "without a gap"),
    "no number": ({"RANK": "first", "WORLD_SIZE": "4"}, "RANK must be a number"),
    "beyond the world": ({"RANK": "4", "WORLD_SIZE": "4"}, "got 5/4"),
    "half an array": ({"ID": "1"}, "SLURM_ARRAY_TASK_COUNT, _MIN or _MAX is not set"),
    "both": ({"ID": "1", "RANK": "0", "WORLD_SIZE": "1"}, "both RANK and SLURM"),
}


@pytest.mark.parametrize("case", ENVIRONMENTS.values(), ids=ENVIRONMENTS.keys())
def test_schedulers_are_asked_only_where_they_are_meant(case, arguments, monkeypatch):
    values, expected = case
    for name, value in values.items():
        known = name in ("RANK", "WORLD_SIZE")
        monkeypatch.setenv(name if known else f"SLURM_ARRAY_TASK_{name}", value)
    done = call(*arguments, "-o", "o", "--shard", "env")
    if expected.startswith("shard-"):
        assert done.exit_code in (0, 3) and [path.name for path in Path("o").iterdir()] == [
            expected
        ]
    else:
        assert done.exit_code == 2 and expected in done.stderr, done.stderr
    assert call(*arguments, "-o", "plain").exit_code == 3
    assert len(rows(Path("plain/answers.jsonl"))) == 11


GPUS = {
    "one each": ({}, "auto", "2"),
    "of those that are visible": ({"CUDA_VISIBLE_DEVICES": "4,5,6"}, "cuda", "6"),
    "the one that it was given": ({"CUDA_VISIBLE_DEVICES": "7"}, "auto", "7"),
    "named": ({}, "cpu", None),
}


@pytest.mark.parametrize("case", GPUS.values(), ids=GPUS.keys())
def test_torchrun_has_a_gpu_for_each_process(case, arguments, monkeypatch):
    visible, device, expected = case
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is as it was, afterwards
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    values = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "2", **visible}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    done = call(*arguments[:-1], device, "-o", "o", "--shard", "env")
    assert done.exit_code in (0, 3), done.stderr
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == expected


WRONG = ("0/4", "5/4", "2", "a/b", "2/4/8", "-1/4", "1/0", "", "٢/٤", "1/9999999")


@pytest.mark.parametrize("shard", WRONG)
def test_a_shard_that_is_none_is_refused(shard, arguments):
    done = call(*arguments, "-o", "o", f"--shard={shard}")
    assert done.exit_code == 2 and "--shard must be" in done.stderr and not Path("o").exists()


@pytest.mark.parametrize("out", [[], ["-o", "o.jsonl"]])
def test_shards_have_a_folder_of_their_own_in_one_that_is_named(out, arguments):
    done = call(*arguments, "--shard", "1/2", *out)
    assert done.exit_code == 2 and "name one folder for all shards" in done.stderr


def test_shards_on_standard_output_are_lines(arguments):
    found = [
        row["image"]
        for number in (1, 2)
        for row in map(
            json.loads, call(*arguments, "-o", "-", "--shard", f"{number}/2").stdout.splitlines()
        )
    ]
    assert len(found) == len({*found}) == 11


def test_more_shards_than_files_may_be_open_is_a_sentence(arguments, monkeypatch):
    answered(arguments)
    opened = Path.open

    def refuse(path, mode="r", *given, **named):
        if path.name == "answers.jsonl" and mode == "rb" and "shard-3" in str(path):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, mode, *given, **named)

    monkeypatch.setattr(Path, "open", refuse)
    done = call("merge", "o", "-o", "m")
    assert done.exit_code == 2 and "Too many open files); raise `ulimit -n`" in done.stderr


@pytest.mark.parametrize("out", ["-", "o/shard-1-of-3", "o/shard-1-of-3/run.jsonl/x.jsonl"])
def test_no_output_of_merging_is_one_of_its_inputs(out, arguments):
    answered(arguments)
    before = {path: path.read_bytes() for path in Path("o").rglob("*") if path.is_file()}
    done = call("merge", "o", "-o", out, "--overwrite")
    assert done.exit_code == (2 if not out.endswith("x.jsonl") else 3), done.stderr
    assert all(path.read_bytes() == held for path, held in before.items())
