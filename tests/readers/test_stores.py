"""What lies in an object store is read as the same files on a disk are: order, names, answers.

memory:// stands for s3:// and gs://, which differ in what fsspec does alone; file:// is read by
worker processes as well.
"""

import json
import os
import shutil
import tarfile
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from tests.support import stub_engine
from tests.support.stub_engine import call, without_times
from trimtok_cli import stores
from trimtok_cli.blobs import Stored, Within
from trimtok_cli.data import Result, Seconds, Setting, TokenCounts
from trimtok_cli.errors import MediaError, UsageError
from trimtok_cli.media.images import load_image
from trimtok_cli.readers import read_any, read_questions
from trimtok_cli.readers.reading import Reading

QUESTIONS = [
    {"question_id": 1, "image": "b/x10.png", "text": "Which?"},
    {"question_id": 2, "image": "b/x2.png", "text": "Why?", "category": "c"},
    {"question_id": 3, "image": "gone.png", "text": "Where?"},
    {"question_id": 4, "image": "../secret.png", "text": "Out?"},
    {"question_id": 5, "text": "None?"},
    {"question_id": 6, "image": "empty.png", "text": "Empty?"},
]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Pictures in a tree, with what a search passes over, and files of questions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trimtok_cli.readers.stored.copied", stored_copy)
    here = tmp_path / "in"
    for number, name in enumerate(
        ("a.png", "img10.png", "img2.png", "b/x10.png", "b/x2.png", "b/c/y.jpg", "noending")
    ):
        path = here / name
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (40 + number, 30), (number, 2, 3)).save(path, "PNG")
    (here / "empty.png").write_bytes(b"")
    (here / "notes.txt").write_text("no picture")
    (here / ".hidden.png").write_bytes((here / "a.png").read_bytes())
    (here / "@eaDir").mkdir()
    (here / "@eaDir" / "t.png").write_bytes((here / "a.png").read_bytes())
    lines = "".join(json.dumps(row) + "\n" for row in QUESTIONS)
    (here / "q.jsonl").write_text(lines + "{broken\n")
    (here / "q.csv").write_text("question_id,image,text\n1,a.png,Which?\n2,gone.png,Why?\n")
    with tarfile.open(here / "all.tar", "w") as tar:
        for name in ("a.png", "img2.png"):
            tar.add(here / name, name)
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    return here


def stored_copy(address: str) -> str:
    """Without the memory of earlier tests, whose stores are others."""
    from trimtok_cli.readers import stored

    return stored.copied.__wrapped__(address)


def in_memory(folder: Path) -> str:
    fs = fsspec.filesystem("memory")
    if fs.exists("/bucket"):
        fs.rm("/bucket", recursive=True)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            fs.pipe_file(f"/bucket/in/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return "memory://bucket/in"


def on_disk(folder: Path) -> str:
    return f"file://{folder}"


@pytest.fixture(params=[in_memory, on_disk])
def address(request, folder) -> str:
    return request.param(folder)


@pytest.fixture
def looking(monkeypatch):
    """An engine that says what it sees: the pixels' digest, or why there are none."""
    stub_engine.install(monkeypatch, seen)


def seen(adapter, pruner, samples, ask, **options):
    for sample in samples:
        told = {"error": sample.problem, "error_class": "SampleError"}
        if not sample.problem:
            try:
                image, facts = load_image(sample.images[0])
                told = {"answer": f"{image.size} {image.getpixel((0, 0))}", "media": (facts,)}
                told |= {"tokens": TokenCounts(5, 36, 6, 6.0, 3), "seconds": Seconds(decode=0.1)}
            except MediaError as error:
                told = {"error": str(error), "error_class": "MediaError"}
        asked = sample.question or ask.prompt
        yield Result(sample=sample, question=asked, setting=Setting("stub", "6"), **told)


def lines(out: str, place: str) -> list[dict]:
    """The records, without times and keys, and with one name for the place of the inputs."""
    text = Path(out, "answers.jsonl").read_text().replace(place, "PLACE")
    text = text.replace(place.removeprefix("file://"), "PLACE")
    found = [without_times(json.loads(line)) for line in text.splitlines()]
    for row in found:
        row["metadata"].pop("key")
    return found


RUNS = {
    "folder": (["caption", "{}"], 4),
    "folders": (["caption", "{}", "-r"], 7),
    "subfolder and picture": (["caption", "{}/b", "{}/a.png"], 3),
    "questions": (["vqa", "{}/q.jsonl"], 7),
    "questions, pictures elsewhere": (["vqa", "{}/q.jsonl", "--image-root", "{}/b"], 7),
    "csv": (["vqa", "{}/q.csv"], 2),
    "tar": (["caption", "{}/all.tar"], 2),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_a_store_is_read_as_the_same_files_on_a_disk(
    run, folder, address, bare_model, looking, tmp_path
):
    line, number = run
    found = []
    for out, place in (("local", str(folder)), ("store", address)):
        arguments = [each.format(place) for each in line]
        done = call(*arguments, "-q", "-m", bare_model, "--device", "cpu", "-o", out)
        assert done.exit_code in (0, 3), done.stderr
        found.append(lines(out, place))
    local, stored = found
    for row in (*local, *stored):  # a name of a file alone says on which side it lies
        error = row["metadata"]["error"]
        row["metadata"]["error"] = error.replace("--allow-outside", "--allow-...").replace(
            "--allow-urls", "--allow-..."
        )
    # A picture of a disk that lies within the root by its path is one of the root's folder.
    assert len(stored) == len(local) >= number and stored == local


def test_a_run_from_a_store_is_gone_on_with(folder, address, bare_model, looking):
    line = ["caption", address, f"{address}/b", "-q", "-m", bare_model, "--device", "cpu"]
    first = call(*line, "-n", 3, "-o", "o")
    assert first.exit_code in (0, 3), first.stderr
    assert call(*line, "-o", "o").exit_code == 3
    assert call(*line, "-o", "whole").exit_code == 3
    assert lines("o", "-") == lines("whole", "-")
    tar = ["caption", f"{address}/all.tar", *line[3:], "-o", "t"]
    assert call(*tar).exit_code == 0
    done = call(*(each for each in tar if each != "-q"))
    assert done.exit_code == 0 and "nothing to do: 2 images" in done.stderr


def test_a_row_reaches_no_store_that_nobody_named(folder):
    """An address of a store in a row is read under the root, or where --allow-urls says so."""
    inside, outside = in_memory(folder) + "/a.png", "memory://bucket/other/a.png"
    rows = [{"question_id": n, "image": i, "text": "?"} for n, i in enumerate((inside, outside))]
    Path("local.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fsspec.filesystem("memory").pipe_file("/bucket/in/rows.jsonl", Path("local.jsonl").read_bytes())

    def problems(path: str, **options) -> list[str]:
        return [sample.problem for sample in read_questions(path, Reading(**options)).samples]

    with pytest.raises(UsageError, match="nothing is fetched unless --allow-urls"):
        read_questions("local.jsonl")
    first, second = problems("memory://bucket/in/rows.jsonl")
    assert not first and "lies outside of memory://bucket/in; name its folder" in second
    assert problems("local.jsonl", allow_urls=True) == ["", ""]
    assert problems("memory://bucket/in/rows.jsonl", allow_urls=True) == ["", ""]
    root = Stored("memory://bucket/other")
    assert [bool(each) for each in problems("local.jsonl", image_root=root)] == [True, False]
    Path("local.jsonl").write_text(
        "".join(
            json.dumps({"question_id": 1, "image": name, "text": "?"}) + "\n"
            for name in ("a.png", "/etc/passwd", "../../x.png", f"file://{folder}/a.png")
        )
    )
    found = problems("local.jsonl", image_root=Stored("memory://bucket/in"))
    assert not found[0] and all("lies outside of" in each for each in found[1:])
    found = problems("local.jsonl", image_root=Stored("memory://bucket/in"), allow_urls=True)
    assert not found[0] and "lies outside of" in found[1] and "lies outside of" in found[3]


REFUSED = {
    "a key": ("s3://AKIA:wJalr@bucket/photos", "a key has no place in an address"),
    "nothing": ("s3://", "names nothing"),
    "a missing folder": ("memory://bucket/none", "memory://bucket/none does not exist"),
    "a missing file of rows": ("memory://bucket/q.jsonl", "cannot be read (No such file"),
    "no picture": ("memory://bucket/in/notes.txt", "is no image and no video"),
    "an empty folder": ("memory://bucket/in/b/c/none", "does not exist"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_read_is_one_sentence_that_tells_no_secret(case, folder, bare_model):
    in_memory(folder)
    source, says = case
    done = call("caption", source, "-m", bare_model, "-o", "o")
    assert done.exit_code == 2 and says in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "wJalr" not in done.stderr
    assert not Path("o").exists()


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("az", "adlfs")])
def test_a_package_that_is_missing_is_named(scheme, package, folder, bare_model, monkeypatch):
    def missing(name):
        raise ImportError(f"Install {package} to access {name}")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    for line in (["caption", f"{scheme}://b/photos"], ["vqa", f"{scheme}://b/q.jsonl"]):
        done = call(*line, "-m", bare_model)
        assert done.exit_code == 2 and f"pip install {package}" in done.stderr
        assert "Traceback" not in done.stderr


class Failing(Exception):
    """An error of a library, which quotes what it was given."""


def test_an_error_of_a_library_is_told_without_its_words(folder, monkeypatch):
    address = in_memory(folder)
    fs = fsspec.filesystem("memory")

    def fail(*_, **__):
        raise Failing("SECRET-KEY was refused")

    monkeypatch.setattr(type(fs), "cat_file", fail)
    with pytest.raises(MediaError, match="cannot be read \\(Failing of the store\\)") as caught:
        load_image(Stored(f"{address}/a.png"))
    assert "SECRET" not in str(caught.value)
    monkeypatch.setattr(type(fs), "info", fail)
    with pytest.raises(UsageError, match="Failing of the store") as told:
        read_any([address])
    assert "SECRET" not in str(told.value)


def test_a_member_of_a_tar_in_a_store_is_read_where_it_lies(folder):
    address = in_memory(folder)
    samples = list(read_any([f"{address}/all.tar"], command="caption").samples)
    assert [type(sample.images[0]) for sample in samples] == [Within, Within]
    assert samples[0].images[0].file == Stored(f"{address}/all.tar")
    assert (
        load_image(samples[1].images[0])[0].tobytes()
        == load_image(folder / "img2.png")[0].tobytes()
    )


def test_addresses_are_brought_to_one_form():
    assert stores.checked("memory://bucket//a/./b/") == "memory://bucket/a/b"
    assert stores.checked("FILE:///data/x/../y") == "file:///data/y"
    assert stores.is_stored("S3://b") and not stores.is_stored("https://b/a.png")
    assert stores.shown_address("s3://key:word@b/a") == "s3://b/a"
    assert stores.shown_address("s3://b/a@2x.png") == "s3://b/a@2x.png"


def test_worker_processes_read_a_store(folder, llava_folder):
    line = ["caption", "-m", llava_folder, "--device", "cpu", "--max-new-tokens", 2, "-q"]
    for out, place in (("local", str(folder)), ("store", f"file://{folder}")):
        assert call(*line, place, "-o", out, "--workers", int(out == "store")).exit_code == 3
    assert lines("local", str(folder)) == lines("store", f"file://{folder}")


def test_what_is_put_is_whole_and_what_is_removed_is_gone(folder, tmp_path):
    (tmp_path / "x.txt").write_text("x" * 100)
    for address in ("memory://bucket/out/x.txt", f"file://{tmp_path}/out/deep/x.txt"):
        stores.put(tmp_path / "x.txt", address)
        assert stores.read(address) == b"x" * 100 and stores.read(address, 3, 5) == b"xx"
        stores.fetch(address, tmp_path / "back.txt")
        assert (tmp_path / "back.txt").read_text() == "x" * 100
        stores.remove(address)
        stores.remove(address)
        with pytest.raises(FileNotFoundError):
            stores.read(address)
    assert os.listdir(tmp_path / "out" / "deep") == []
    shutil.rmtree(tmp_path / "out")
