"""The files that a run writes.

A run never writes over its inputs, never shares an output with another run, never leaves torn
lines, and never leaves a file that describes other answers.
"""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.commands.test_cli import rows, run
from trimtok_cli.cli import app
from trimtok_cli.commands import compare as compare_command
from trimtok_cli.commands import run as run_command
from trimtok_cli.errors import TrimtokError, UsageError
from trimtok_cli.outputs import destination as places
from trimtok_cli.outputs import whole_files as whole
from trimtok_cli.outputs.destination import claimed
from trimtok_cli.outputs.line_file import LineFile
from trimtok_cli.outputs.lock import Busy, Lock

SHORT = ["--max-new-tokens", 1]


@pytest.fixture
def no_model(monkeypatch):
    """Fails a test that loads a model, because refusals come before loading."""

    def load(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(run_command, "load", load)
    monkeypatch.setattr(compare_command, "load", load)


@pytest.fixture
def questions(pictures) -> Path:
    folder = pictures[0].parent
    # A run gives its own answers the same name.
    file = folder / "answers.jsonl"
    file.write_text(
        "".join(
            json.dumps({"question_id": i, "image": f"p{i}.png", "text": "What?"}) + "\n"
            for i in (1, 2, 3)
        )
    )
    return file


def snapshot(folder: Path = Path()) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "models" not in path.parts
    }


def link(source: Path, name: str, how: str) -> Path:
    path = Path(name)
    if how == "link":
        path.symlink_to(source)
    elif how == "hard link":
        path.hardlink_to(source)
    else:
        return Path(os.path.relpath(source.parent)) / ".." / source.parent.name / source.name
    return path


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["plain", "overwrite"])
@pytest.mark.parametrize("command", ["vqa", "compare"])
@pytest.mark.parametrize("how", ["path", "link", "hard link"])
def test_an_output_that_is_the_question_file_is_refused(
    how, command, overwrite, questions, no_model
):
    before = questions.read_bytes()
    for asked, out in (
        (questions, link(questions, "other.jsonl", how)),
        (link(questions, "again.jsonl", how), questions),
    ):
        done = run(command, asked, "-o", out, *overwrite, code=2)
        assert "is an input of this run" in done.stderr
    assert (
        questions.read_bytes() == before
        and not list(questions.parent.glob(".*"))
        and not list(questions.parent.glob("*.lock"))
    )


INPUTS = {
    "the answers in a folder": ("vqa", "pictures/answers.jsonl", "pictures"),
    "run.json": ("vqa", "pictures/run.json", "pictures/new/../answers.jsonl"),
    "a manifest beside": ("vqa", "pictures/a.run.json", "pictures/a.jsonl"),
    "a comparison in a folder": ("compare", "pictures/compare.jsonl", "pictures"),
    "a list through a link": ("caption", "@pictures/list.txt", "pictures/link.jsonl"),
    "a list that is a page": ("compare", "@pictures/x.html", "pictures/x.jsonl"),
    "an image under such a name": ("caption", "@pictures/list.txt", "pictures/image.json"),
    "an image of a page's name": ("compare", "pictures/compare.html", "pictures"),
    "settings": ("caption", "pictures/p1.png", "pictures/c.json"),
}


@pytest.mark.parametrize("case", INPUTS.values(), ids=INPUTS.keys())
def test_every_output_is_held_against_every_input(case, pictures, questions, no_model):
    command, source, out = case
    folder = pictures[0].parent
    (folder / "new").mkdir()
    name = Path(source.removeprefix("@"))
    if source.startswith("@"):
        name.write_text("p1.png\nimage.json\n")
        (folder / "image.json").write_bytes(pictures[0].read_bytes())
        (folder / "link.jsonl").symlink_to("list.txt")
    elif name.suffix == ".html":
        name.write_bytes(pictures[0].read_bytes())
    elif not name.exists():
        name.write_bytes(questions.read_bytes())
    (folder / "c.json").write_text("keep: 5\n")
    before = snapshot()
    done = run(command, source, "-o", out, "--overwrite", "-c", folder / "c.json", code=2)
    assert "is an input of this run" in done.stderr and snapshot() == before


def test_a_models_own_file_is_no_output(llava_folder, pictures, no_model):
    before = (llava_folder / "config.json").read_bytes()
    done = run(
        "caption",
        pictures[0],
        "-m",
        llava_folder,
        "-o",
        llava_folder / "config.json",
        "--overwrite",
        code=2,
    )
    assert "is an input" in done.stderr and (llava_folder / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    "image, out",
    [
        ("pictures/kept.png", "pictures"),
        ("pictures", "pictures"),
        ("64x48", "{model}/config.json"),
        ("64x48", "mine.json"),
    ],
)
def test_a_benchmark_writes_over_nothing_that_it_reads(
    image, out, llava_folder, pictures, monkeypatch
):
    """A benchmark reads pictures, models and its own YAML, also through links.

    One of its plots is called kept.png, and a picture may have that name too.
    """
    shutil.copy(pictures[0], "pictures/kept.png")
    Path("mine.yaml").write_text(
        f"decode:\n  - {{model: {llava_folder}, keep: 6, batch: 1, new_tokens: 2, image: "
        f"{image}}}\n"
    )
    link(Path("mine.yaml"), "mine.json", "hard link")
    before, model = snapshot(), snapshot(llava_folder)
    # The refusal comes before anything is measured.
    monkeypatch.setitem(sys.modules, "trimtok_cli.bench.run", None)
    done = run("bench", "mine.yaml", "-o", out.format(model=llava_folder), "--overwrite", code=2)
    assert (
        "is an input of this run" in done.stderr
        and snapshot() == before
        and snapshot(llava_folder) == model
    )


def test_a_redirection_into_an_input_is_refused(questions, monkeypatch):
    """`vqa q.jsonl -o - >> q.jsonl` would read its own answers as questions for ever."""
    with questions.open("r+b") as both:
        monkeypatch.setattr(places.Destination, "written", property(lambda self: [both.fileno()]))
        for read in (questions, both.fileno()):
            with pytest.raises(UsageError, match="is an input"), claimed("-", "vqa", [read]):
                pass
    with pytest.raises(UsageError, match="closed"), claimed_without_stdout(monkeypatch):
        pass


def claimed_without_stdout(monkeypatch):
    monkeypatch.setattr(sys, "__stdout__", None)
    return claimed("-", "vqa")


NAMES = {
    "": "must not be empty",
    "  ": "must not be empty",
    "a\0b": "must not be empty",
    "caps.txt": ".jsonl",
    "caps.csv": "caps.csv/",
    "page.html": ".jsonl",
    "~nosuchuser/x.jsonl": "no such user",
    "/dev/null": "-o -",
    "/dev/full": "-o -",
    "pipe.jsonl": "-o -",
    "file": "no folder",
    "there.jsonl": "--overwrite",
    "there": "--overwrite",
    "mine": "--overwrite",
    "folder.jsonl": "is a folder",
    "piped": "plain file",
    "device": "plain file",
    "inner": "is a folder",
    "waiting": "--overwrite",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_no_output_can_have_is_refused_and_nothing_changes(name, pictures, no_model):
    os.mkfifo("pipe.jsonl")
    Path("folder.jsonl").mkdir()
    Path("file").write_text("mine")
    Path("there.jsonl").write_text("{}\n")
    for folder, content in (("there", "answers.jsonl"), ("mine", "run.json")):
        Path(folder).mkdir()
        Path(folder, content).write_text("{}\n")
    for folder in ("piped", "device", "waiting"):
        Path(folder).mkdir()
    os.mkfifo("piped/answers.jsonl")
    os.mkfifo("waiting/run.json")
    Path("device/answers.jsonl").symlink_to("/dev/null")
    Path("inner/answers.jsonl").mkdir(parents=True)
    before = set(Path().rglob("*"))
    if NAMES[name] != "--overwrite":
        run("caption", pictures[0], "-o", name, "--overwrite", code=2)
    done = run("caption", pictures[0], "-o", name, code=2)
    assert NAMES[name] in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert set(Path().rglob("*")) == before


@pytest.mark.parametrize(
    "name",
    [
        "x" * 300,
        "x" * 300 + ".jsonl",
        "x" * 243 + ".jsonl",
        "x" * 253 + "/y" * 2 + "z" * 260,
        "file/out",
        "file/x.jsonl",
        "/proc/x",
        "/proc/x.jsonl",
    ],
    ids=lambda n: n[-20:],
)
def test_a_place_that_the_disk_will_not_have_is_found_before_the_model_is_loaded(
    name, pictures, no_model
):
    Path("file").write_text("mine")
    done = run("caption", pictures[0], "-o", name, code=1)
    assert "--out" in done.stderr and "cannot be written" in done.stderr and len(done.stderr) < 500
    assert {str(path) for path in Path().iterdir()} == {"file", "pictures"}


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES]
)
def test_a_disk_that_takes_nothing_is_found_before_the_model_is_loaded(
    code, pictures, no_model, monkeypatch
):
    def full(file):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(places.os, "fsync", full)
    done = run("caption", pictures[0], "-o", "new/folder", code=1)
    assert os.strerror(code) in done.stderr and "--out" in done.stderr and not Path("new").exists()


def test_a_home_folder_is_found_and_endings_in_folders_are_not_files(
    llava_folder, pictures, monkeypatch
):
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    for out, file in (
        ("~/x.jsonl", "home/x.jsonl"),
        ("v1.5", "v1.5/answers.jsonl"),
        ("qwen-0.5b", "qwen-0.5b/answers.jsonl"),
        ("caps.txt/", "caps.txt/answers.jsonl"),
        (Path("deep/er"), "deep/er/answers.jsonl"),
    ):
        run("caption", pictures[0], "-m", llava_folder, *SHORT, "-q", "-o", out)
        assert (
            len(rows(Path(file))) == 1
            and Path(file).with_name("x.run.json" if "x.jsonl" in file else "run.json").exists()
        )
        assert len(list(Path(file).parent.iterdir())) == 2, "no lock and no temporary file is left"


def test_a_run_that_never_began_leaves_nothing(pictures):
    for out in (["-o", "a/b"], ["-o", "x.jsonl"], []):
        run("caption", pictures[0], "-m", "./gone", *out, code=2)
    assert [path.name for path in Path().iterdir()] == ["pictures"]


def test_what_stands_in_the_way_of_the_next_try_is_only_what_would_be_lost(llava_folder, pictures):
    """An empty file may be overwritten.

    So may the manifest of a run that was interrupted before its first answer.
    """
    Path("o").mkdir()
    Path("o/answers.jsonl").touch()
    (pictures[0].parent / "q.json").write_text("[{,]")
    run("vqa", "-", "-m", llava_folder, "-o", "o", stdin="[{,]", code=2)
    assert not [path for path in Path("o").iterdir() if path.stat().st_size]
    began = {"trimtok": "0.1.0", "interrupted": True, "counts": {"done": 0, "failed": 0}}
    for manifest, code in (
        (began, 0),
        ({**began, "interrupted": False}, 2),
        ({**began, "counts": {"done": 1, "failed": 0}}, 2),
        ({"mine": 1}, 2),
    ):
        for file in Path("o").iterdir():
            file.unlink()
        Path("o/run.json").write_text(json.dumps(manifest))
        done = run("caption", pictures[0], "-m", llava_folder, *SHORT, "-q", "-o", "o", code=code)
        assert code == 0 or (
            "run.json is already there" in done.stderr
            and json.loads(Path("o/run.json").read_text()) == manifest
        )


def test_a_page_of_somebody_else_is_not_replaced(pictures, no_model):
    Path("o").mkdir()
    Path("o/compare.html").write_text("mine")
    assert "compare.html is already there" in run("compare", pictures[0], "-o", "o", code=2).stderr
    for name in ("kept.png", "batch.png"):
        Path("b").mkdir(exist_ok=True)
        Path("b", name).write_text("mine")
        assert f"{name} is already there" in run("bench", "smoke", "-o", "b", code=2).stderr
        Path("b", name).unlink()


def test_two_runs_of_one_second_get_two_folders(monkeypatch):
    monkeypatch.setattr(places.time, "strftime", lambda form: "now")
    with (
        claimed(None, "caption") as one,
        claimed(None, "caption") as two,
        claimed(None, "vqa") as three,
    ):
        assert (
            len({one.answers, two.answers, three.answers}) == 3
            and one.answers.parent.is_dir()
            and two.answers.parent.is_dir()
        )
    assert not Path("trimtok-out").exists()


HOLD = """import sys, time
from trimtok_cli.outputs.destination import claimed
with claimed(sys.argv[1], "caption"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_on_one_output_is_refused_while_the_first_lives(pictures, no_model):
    """The output is known through links too, and a killed run blocks nobody."""
    Path("o").mkdir()
    Path("other").symlink_to("o")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, "o"], stdout=subprocess.PIPE, text=True, env=environment
    ) as first:
        assert first.stdout.readline() == "held\n"
        held = json.loads(Path("o/answers.jsonl.lock").read_text())
        assert held == {"pid": first.pid, "host": socket.gethostname()}
        for out in ("o", "o/answers.jsonl", "other"):
            for more in ([], ["--overwrite"]):
                done = run("caption", pictures[0], "-o", out, *more, code=2)
                assert f"process {first.pid}" in done.stderr and "another --out" in done.stderr
        first.kill()
    assert Path("o/answers.jsonl.lock").exists()
    with claimed("o", "caption"):
        assert json.loads(Path("o/answers.jsonl.lock").read_text())["pid"] == os.getpid()
    assert not list(Path("o").iterdir())


def test_a_lock_of_another_machine_or_of_somebody_else_is_not_taken_over():
    file = Path("x.lock")
    for text, says in (
        (json.dumps({"pid": 1, "host": "elsewhere"}), "remove x.lock"),
        ("mine\n", "not trimtok's"),
        ("[1]", "not trimtok's"),
    ):
        file.write_text(text)
        with pytest.raises(Busy, match=says):
            Lock(file).take()
        assert file.read_text() == text
    for torn in ("", "{", '{"pid"', '{"pid": 12', '{"pid": 12, "host": "elsewhe'):
        file.write_text(torn)  # a run was killed while it took the lock
        lock = Lock(file)
        lock.take()
        lock.release()
        assert not file.exists()
    Path("precious").write_text("mine")
    file.symlink_to("precious")
    with pytest.raises(OSError):
        Lock(file).take()
    assert Path("precious").read_text() == "mine"


def test_where_the_system_has_no_locks_the_process_number_tells(monkeypatch):
    from trimtok_cli.outputs import lock

    def none(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    Path("x.lock").write_text(json.dumps({"pid": gone.pid, "host": socket.gethostname()}))
    taken = Lock(Path("x.lock"))
    taken.take()
    taken.release()
    Path("x.lock").write_text(json.dumps({"pid": os.getppid(), "host": socket.gethostname()}))
    with pytest.raises(Busy, match=str(os.getppid())):
        Lock(Path("x.lock")).take()


def old_run(llava_folder, pictures) -> dict[str, bytes]:
    run("caption", *pictures[:3], "-m", llava_folder, *SHORT, "-q", "-o", "o")
    return snapshot(Path("o"))


def test_overwriting_keeps_the_old_answers_until_the_first_new_one(
    llava_folder, pictures, monkeypatch
):
    before = old_run(llava_folder, pictures)
    from trimtok_cli.prepare import pool

    def interrupted(*_):
        assert snapshot(Path("o")).items() >= before.items()
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "attempt", interrupted)
    run("caption", *pictures, "-m", llava_folder, *SHORT, "-o", "o", "--overwrite", code=130)
    assert snapshot(Path("o")) == before


def test_the_manifest_says_interrupted_from_the_first_answer_to_the_last(
    llava_folder, pictures, monkeypatch
):
    """The manifest says so even after a SIGKILL, and no old manifest stands beside new answers."""
    old = old_run(llava_folder, pictures)
    seen = []
    real = run_command.Screen.advance

    def advance(self, *results):
        seen.append(
            (json.loads(Path("o/run.json").read_text()), len(rows(Path("o/answers.jsonl"))))
        )
        real(self, *results)

    monkeypatch.setattr(run_command.Screen, "advance", advance)
    run("caption", *pictures, "-m", llava_folder, *SHORT, "-q", "-o", "o", "--overwrite")
    name = json.loads(old["o/run.json"])["run"]
    assert [count for _, count in seen] == list(range(1, 8))
    assert all(manifest["interrupted"] is True and manifest["run"] != name for manifest, _ in seen)
    assert (
        json.loads(Path("o/run.json").read_text())["interrupted"] is False
        and len(list(Path("o").iterdir())) == 2
    )


def test_what_told_of_the_old_answers_goes_when_they_go():
    """A manifest or page never stands beside the answers of another run.

    This holds at whatever moment a run is killed.
    """
    names = ("a.jsonl", "a.run.json", "a.html")
    for name in names:
        Path(name).write_text("old\n")
    place = places.Destination(*map(Path, names))
    seen = []
    output = LineFile(
        place, begin=lambda: seen.append(sorted(path.name for path in Path().glob("a*")))
    )
    assert not seen and all(Path(name).read_text() == "old\n" for name in names)
    output.write(b'{"new": 1}\n')
    assert seen == [["a.jsonl"]] and rows(Path("a.jsonl")) == [{"new": 1}]
    output.write(b'{"new": 2}\n')
    output.close(failed=True)
    assert len(seen) == 1 and len(rows(Path("a.jsonl"))) == 2 and len(list(Path().iterdir())) == 1


class Full:
    """A file on a disk that fills up.

    The write of line `at` takes a part of the line, then writing fails with the error `code`.
    """

    def __init__(self, file, at: int, code: int) -> None:
        self.file, self.at, self.code, self.lines = file, at, code, 0

    def write(self, data) -> int:
        if self.lines < self.at:
            self.lines += 1
            return self.file.write(data)
        if len(data) > 100:
            return self.file.write(data[:100])
        raise OSError(self.code, os.strerror(self.code))

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("command", ["caption", "compare"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
def test_a_disk_that_fills_up_leaves_whole_lines_and_says_how_many(
    code, command, llava_folder, pictures, monkeypatch
):
    real = whole.Lines.__init__

    def lines(self, path):
        real(self, path)
        self.file = Full(self.file, 3, code)

    monkeypatch.setattr(whole.Lines, "__init__", lines)
    done = run(command, *pictures, "-m", llava_folder, *SHORT, "-q", "-o", "o", code=1)
    name = "answers" if command == "caption" else "compare"
    assert f"{name}.jsonl cannot be written ({os.strerror(code)})" in done.stderr
    assert (
        "the first 3 answers are safe" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    )
    assert len(rows(Path(f"o/{name}.jsonl"))) == 3
    page = {"compare.html"} if command == "compare" else set()
    assert {path.name for path in Path("o").iterdir()} == {f"{name}.jsonl", "run.json"} | page
    if command == "caption":
        manifest = json.loads(Path("o/run.json").read_text())
        assert manifest["interrupted"] is True and manifest["counts"]["done"] == 3


@pytest.mark.parametrize("fails", ["manifest", "both"])
def test_a_manifest_that_cannot_be_written_hides_nothing(
    fails, llava_folder, pictures, monkeypatch
):
    written = []

    def write(manifest):
        written.append(manifest.destination.manifest)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        written[0].write_text("{}")

    monkeypatch.setattr(run_command.Manifest, "write", write)
    if fails == "both":
        real = whole.Lines.append

        def append(self, line):
            if self.end:
                raise OSError(errno.EIO, "Input/output error")
            real(self, line)

        monkeypatch.setattr(whole.Lines, "append", append)
    done = run("caption", *pictures[:2], "-m", llava_folder, *SHORT, "-q", "-o", "o", code=1)
    if fails == "both":
        assert (
            "answers.jsonl cannot be written (Input/output error): the first 1 answer"
            in done.stderr
        )
    else:
        assert (
            "run.json cannot be written (No space left on device)" in done.stderr
            and len(rows(Path("o/answers.jsonl"))) == 2
        )
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_document_that_cannot_be_written_leaves_the_old_one(monkeypatch):
    Path("run.json").write_text("old")

    def full(file, data):
        file.write(data[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(whole, "put", full)
    with pytest.raises(OSError):
        whole.write_whole(Path("run.json"), "new one")
    assert Path("run.json").read_text() == "old" and len(list(Path().iterdir())) == 1


def test_an_output_that_vanishes_ends_the_run_at_once(llava_folder, pictures, monkeypatch):
    import shutil

    from trimtok_cli.prepare import pool

    real, calls = pool.attempt, []

    def attempt(*given):
        calls.append(given)
        if len(calls) == 3:
            shutil.rmtree("o")
        return real(*given)

    monkeypatch.setattr(pool, "attempt", attempt)
    done = run("caption", *pictures, "-m", llava_folder, *SHORT, "-q", "-o", "o", code=1)
    assert (
        "was removed while the run went on, with 2 answers in it" in done.stderr and len(calls) <= 4
    )
    assert len(done.stderr.strip().splitlines()) == 1 and not Path("o").exists()


def test_quiet_hides_no_failure(llava_folder, pictures):
    bad = pictures[0].parent / "p2b.png"
    bad.write_bytes(b"no")
    for command in ("caption", "compare"):
        done = run(
            command, pictures[0], bad, "-m", llava_folder, *SHORT, "-q", "-o", command, code=3
        )
        assert (
            "failed: " in done.stderr
            and "p2b.png" in done.stderr
            and len(done.stderr.strip().splitlines()) == 1
        )


EVIL = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\u202egnp.\u2066\x00\x7f\u2028\n"


def test_nothing_that_steers_a_terminal_is_printed(llava_folder, pictures):
    """Names, questions, columns and errors reach the terminal without control characters."""
    row = {"question_id": EVIL, "image": "p1.png", "text": EVIL + "?", "answer": EVIL, EVIL: EVIL}
    lines = [
        row,
        {**row, "image": EVIL + ".png"},
        {**row, "image": "data:image/png;base64," + "A" * 100_000},
        {**row, "image": ["p1.png", EVIL]},
    ]
    file = pictures[0].parent / "q.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for command in ("vqa", "compare"):
        done = run(command, file, "-m", llava_folder, *SHORT, "-v", "-o", command, code=3)
        assert not [c for c in done.stderr if c != "\n" and (not c.isprintable() and c != " ")], (
            "a control character was printed"
        )
        assert "\\x1b" in done.stderr and len(done.stderr) < 20_000
    for args in (
        ["caption", EVIL.replace("\0", "")],
        ["vqa", EVIL.replace("\0", "")],
        ["caption", "x", "--keep", "\x1b[2J"],
        ["caption", pictures[0], "-o", "\x1b[2J.txt"],
    ):
        done = CliRunner().invoke(app, [str(arg) for arg in args])
        assert done.exit_code == 2 and "\x1b" not in done.stderr and "\u202e" not in done.stderr


@pytest.mark.parametrize("name", ["~/none/../../x", "o"])
def test_an_output_is_held_only_as_long_as_the_run(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with claimed(name, "caption") as place:
        assert place.lock.exists()
        start = time.monotonic()
    assert time.monotonic() - start < 1 and not place.lock.exists() and not list(tmp_path.iterdir())


def test_errors_of_a_claim_come_before_it_is_yielded():
    Path("a.jsonl").write_text("x")
    with pytest.raises(UsageError), claimed("a.jsonl", "caption"):
        raise AssertionError("yielded")
    with pytest.raises(TrimtokError), claimed("a.jsonl/x", "caption"):
        raise AssertionError("yielded")


@pytest.mark.parametrize("command", ["vqa", "compare"])
@pytest.mark.parametrize("name", ["link.jsonl", "folder"])
def test_a_link_to_a_picture_that_only_a_question_row_names_is_no_output(
    name, command, questions, pictures, no_model
):
    before = pictures[0].read_bytes()
    Path("folder").mkdir()
    link = (
        Path("folder", "compare.jsonl" if command == "compare" else "answers.jsonl")
        if name == "folder"
        else Path(name)
    )
    link.symlink_to(pictures[0])
    done = run(command, questions, "-o", name, "--overwrite", code=2)
    assert "--out" in done.stderr and pictures[0].read_bytes() == before
