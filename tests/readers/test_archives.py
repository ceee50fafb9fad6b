"""Tars of pictures, and Parquet files: pictures that stay where they are."""

import gzip
import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from trimtok_cli.blobs import Held, Within
from trimtok_cli.errors import UsageError
from trimtok_cli.media.images import load_image
from trimtok_cli.readers import read_any
from trimtok_cli.readers.questions import read_questions, recognised
from trimtok_cli.readers.reading import Reading


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def png(color=(1, 2, 3)):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), color).save(buffer, "PNG")
    return buffer.getvalue()


def tar(name, members, format=tarfile.PAX_FORMAT):
    with tarfile.open(name, "w", format=format) as file:
        for member, content in members:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return name


def read(path, command="caption", **options):
    source = read_any([path], Reading(**options), command=command)
    samples = list(source.samples)
    assert source.total == len(samples) and source.files == (Path(path),)
    return samples


def refusal(path, command="vqa", **options):
    with pytest.raises(UsageError) as caught:
        read_questions(path, Reading(**options), command=command)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_of_one_key_are_one_row(format):
    columns = {"caption": "from json", "url": "http://x/a.jpg", "image": "old.png", "width": 4}
    path = tar(
        "a.tar",
        [
            ("00/a.png", png((9, 0, 0))),
            ("00/a.json", json.dumps(columns).encode()),
            ("00/a.txt", b"from text"),
            ("00/b.left.PNG", png((0, 9, 0))),
            ("00/b.right.png", png((0, 0, 9))),
            ("00/b.cls", b"7"),
            ("c.txt", b"no picture"),
            ("../../etc/d.png", png()),
            ("00/" + "long" * 20 + ".png", png()),
        ],
        format,
    )
    assert recognised(path) == "tar"
    a, b, d, long = read(path)
    assert (a.id, a.question, a.extra["caption"], a.extra["width"]) == (
        "00/a",
        None,
        "from json",
        4,
    )
    assert a.names == ("00/a.png",) and isinstance(a.images[0], Within)
    assert [load_image(image)[0].getpixel((0, 0)) for image in (*a.images, *b.images)] == [
        (9, 0, 0),
        (0, 9, 0),
        (0, 0, 9),
    ]
    assert d.id == "../../etc/d" and load_image(d.images[0])[0].size == (4, 3)
    assert long.names[0].endswith("long.png") and sorted(map(str, Path().iterdir())) == ["a.tar"]


def test_a_tar_of_questions():
    row = {"question_id": 5, "question": "What?", "answer": "a cat"}
    path = tar("q.tar", [("1.jpg", png()), ("1.json", json.dumps(row).encode()), ("2.jpg", png())])
    first, second = read_questions(path).samples
    assert (first.id, first.question, first.answers) == (5, "What?", ("a cat",))
    assert "q.tar 2: there is no question" in second.problem


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"[1]", "not a JSON object"), (b"{", "not valid JSON"), (b"\xff", "not UTF-8")],
)
def test_a_broken_member_fails_its_row(content, said):
    path = tar("a.tar", [("1.png", png()), ("2.png", png()), ("2.json", content)])
    good, bad = read(path)
    assert not good.problem and said in bad.problem and bad.problem.startswith("a.tar 2: 2.json")


def test_tars_that_cannot_be_read_are_one_sentence():
    whole = Path(tar("a.tar", [("1.png", png()), ("2.png", bytes(5000))])).read_bytes()
    Path("cut.tar").write_bytes(whole[:3000])
    assert "cut.tar is" in refusal("cut.tar", command="caption")
    assert "without rows" in refusal(tar("none.tar", [("a.txt", b"x")]), command="caption")
    Path("text.tar").write_text("no tar at all")
    assert "no tar" in refusal("text.tar", command="caption", format="tar")
    for name in ("a.tar", "a.tar.gz", "A.TGZ"):
        Path(name).write_bytes(gzip.compress(whole))
        with pytest.raises(UsageError, match=r"is a packed tar.*gunzip"):
            read_any([name], command="caption")


def test_links_and_folders_in_a_tar_lead_nowhere():
    with tarfile.open("a.tar", "w") as file:
        for name, kind in (
            ("l.png", tarfile.SYMTYPE),
            ("h.png", tarfile.LNKTYPE),
            ("d.png", tarfile.DIRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
    assert "without rows" in refusal("a.tar", command="caption")


def test_shards_are_read_one_after_the_other():
    tar("0.tar", [("1.png", png())]), tar("1.tar", [("2.png", png())])
    source = read_any(["0.tar", "1.tar"], command="caption")
    assert source.total == 2 and [sample.id for sample in source.samples] == ["1", "2"]
    assert source.files == (Path("0.tar"), Path("1.tar")) and len(source.quiet_notes) == 2


def test_a_long_tar_is_not_held_in_memory():
    path = tar("a.tar", ((f"{i:06}.png", b"x" * 10) for i in range(2000)))
    tracemalloc.start()
    assert sum(1 for _ in read_any([path], command="caption").samples) == 2000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 700_000, "the samples together take 1.2 million bytes"


# Parquet


def parquet(name, rows):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writing

    writing.write_table(pa.Table.from_pylist(rows), name)
    return name


def test_parquet_rows_hold_their_pictures_or_name_them():
    path = parquet(
        "a.parquet",
        [
            {"id": i, "image": {"bytes": png((i, 0, 0)), "path": f"x/{i}.png"}, "text": "A cat"}
            for i in range(40)
        ],
    )
    samples = read(path)
    assert [sample.id for sample in samples] == list(range(40))
    assert samples[7].images == (Held("7.png", png((7, 0, 0))),) and samples[7].names == ("7.png",)
    assert samples[7].question is None and samples[7].extra["text"] == "A cat"
    path = parquet("b.parquet", [{"file_name": "a.png", "question": "?", "n": None}])
    (sample,) = read_questions(path).samples
    assert sample.images == (Path("a.png"),) and sample.question == "?"


def test_parquet_columns_become_what_json_can_hold():
    import datetime

    rows = [
        {
            "picture": png(),
            "question": "?",
            "when": datetime.date(2026, 1, 2),
            "raw": b"\0\1",
            "f": float("nan"),
        },
        {"picture": None, "question": "?", "when": None, "raw": None, "f": 1.0},
    ]
    first, second = read_questions(parquet("a.parquet", rows)).samples
    assert load_image(first.images[0])[0].size == (4, 3) and first.names == ("row 1 picture",)
    assert json.dumps(dict(first.extra), allow_nan=False) and first.extra["when"] == "2026-01-02"
    assert "there is no picture" in second.problem and "a.parquet row 2" in second.problem


def test_parquet_files_that_cannot_be_read_are_one_sentence():
    whole = Path(parquet("a.parquet", [{"image": "a.png"}])).read_bytes()
    Path("cut.parquet").write_bytes(whole[:-30])
    assert "damaged parquet" in refusal("cut.parquet")
    assert "no question" in refusal("a.parquet")
    assert "--allow-outside" in refusal(
        parquet("o.parquet", [{"image": "/etc/a.png", "text": "?"}])
    )


def test_without_pyarrow_the_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    Path("a.parquet").write_bytes(b"PAR1" + bytes(30))
    assert "pip install 'trimtok[parquet]'" in refusal("a.parquet")
