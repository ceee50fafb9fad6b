"""Arbitrary bytes, rows, lists and names into the readers: they raise nothing but one sentence, and
lose no row and no name.
"""

import io
import json
import math
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.writing import as_written
from trimtok_cli.data import Result, Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.media.kinds import head_kind, media_kind
from trimtok_cli.readers import read_any
from trimtok_cli.readers.paths import read_images
from trimtok_cli.readers.questions import read_questions
from trimtok_cli.readers.reading import Reading

bounded = settings(
    max_examples=60,
    deadline=3000,
    derandomize=True,
    database=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.filter_too_much,
    ],
)
few = settings(bounded, max_examples=30)

TEXTS = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(
    [
        "",
        " ",
        "a.png",
        "b/../a.png",
        "../x.png",
        "/etc/passwd",
        "v.mp4",
        "data:image/png;base64,AA",
        "http://e.com/a.jpg",
        "a\0b",
        "\ud83d",
    ]
)
NUMBERS = st.integers(-3, 10**30) | st.floats(allow_nan=True, allow_infinity=True)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
COLUMNS = TEXTS | st.sampled_from(
    [
        "question_id",
        "id",
        "image",
        "images",
        "image_path",
        "file_name",
        "path",
        "url",
        "image_id",
        "text",
        "question",
        "video",
        "answers",
        "Image",
        "video_name",
        "messages",
        "conversations",
        "questions",
        "label",
        "image_2",
        "QUESTION-ID",
        "metadata",
        "custom_id",
        "body",
    ]
)
ROWS = st.dictionaries(COLUMNS, VALUES, max_size=6) | VALUES
NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: not set(name) & {0, 47} and name not in (b".", b"..")
)
SOUND = {"question_id": "sound", "image": "a.png", "text": "?"}
TEXT_ONLY = Reading(allow_text_only=True)


class Folder:
    """A folder of its own for an example, and the current folder inside the context."""

    def __enter__(self):
        self.before, self.folder = os.getcwd(), tempfile.TemporaryDirectory()
        os.chdir(self.folder.name)
        return Path()

    def __exit__(self, *_):
        os.chdir(self.before)
        self.folder.cleanup()


def samples(call, *args, text_only=False, **options):
    """The samples, each with its media or its problem; None for a refusal of one sentence.

    text_only: a sample may be without a picture.
    """
    try:
        source = call(*args, **options)
        found = list(source.samples)
    except UsageError as error:
        assert "\n" not in str(error) and len(str(error)) < 20_000
        return None
    assert source.total in (None, len(found)) or found[-1].problem
    for sample in found:
        assert sample.problem or sample.images or sample.video or text_only
        assert isinstance(sample.id, str | int | float) and not (
            isinstance(sample.id, float) and not math.isfinite(sample.id)
        )
        assert not sample.problem or not sample.images
        _, line = as_written(
            Result(sample, sample.question or "", error=sample.problem), model="m", run="r"
        )
        assert json.loads(line)
    return found


def stdin(content):
    return io.TextIOWrapper(io.BytesIO(content), encoding="ascii")


@bounded
@given(
    content=st.binary(max_size=300) | TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass"))
)
@example(content=b"[" * 50_000)
@example(content=b'{"a":' * 50_000)
@example(content=b"\xef\xbb\xbf\xef\xbb\xbf{}\r\n\x00")
@example(content=b'{"question_id": ' + b"1" * 5000 + b"}")
def test_any_bytes_as_a_question_file(content):
    with Folder():
        Path("q.jsonl").write_bytes(content)
        found = samples(read_questions, "q.jsonl", TEXT_ONLY, text_only=True)
        assert found is None or found
        samples(read_any, ["q.jsonl"])
        samples(read_images, ["@q.jsonl"])


@bounded
@given(
    rows=st.lists(ROWS, min_size=1, max_size=6),
    text_only=st.booleans(),
    outside=st.booleans(),
    array=st.booleans(),
)
def test_any_rows_come_out_as_many_as_went_in(rows, text_only, outside, array):
    rows = [*rows, SOUND]
    content = json.dumps(rows) if array else "\n".join(map(json.dumps, rows))
    reading = Reading(allow_text_only=text_only, allow_outside=outside)
    with Folder():
        Path("q.jsonl").write_text(content)
        found = samples(read_questions, "q.jsonl", reading, text_only=text_only)
        if found is None:  # the first row may look like the beginning of an array
            assert not array and not isinstance(rows[0], dict)
        else:
            assert len(found) == len(rows) and found[-1].id == "sound" and not found[-1].problem
        for row, sample in zip(rows, found, strict=True) if found else ():
            names = [
                row[column]
                for column in ("image", "video", "image_path", "file_name")
                if isinstance(row, dict) and row.get(column)
            ]
            assert sample.problem or not names or sample.images or sample.video, (
                "answered without its picture"
            )
            assert sample.problem or sample.question in (row.get("text"), row.get("question"))


@bounded
@given(
    lines=st.lists(ROWS.map(json.dumps) | TEXTS, min_size=1, max_size=8),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_a_file_and_a_stream_of_the_same_rows_are_the_same_samples(lines, end):
    content = (end.join([json.dumps(SOUND), *lines]) + end).encode("utf-8", "surrogatepass")
    with Folder():
        Path("q.jsonl").write_bytes(content)
        read, write = os.pipe()
        with os.fdopen(write, "wb") as file:
            file.write(content)
        try:
            streamed = samples(read_questions, f"/dev/fd/{read}", TEXT_ONLY, text_only=True)
        finally:
            os.close(read)
        found = samples(read_questions, "q.jsonl", TEXT_ONLY, text_only=True)
        assert [sample.id for sample in found] == [sample.id for sample in streamed]
        assert [bool(sample.problem) for sample in found] == [
            bool(sample.problem) for sample in streamed
        ]


@bounded
@given(content=st.binary(max_size=200), by=st.sampled_from([b"\n", b"\r\n", b"\0"]))
@example(content=b"#", by=b"\n")
def test_any_bytes_as_a_list_of_names(content, by):
    with Folder():
        Path("list").write_bytes(b"first.png" + by + content)
        listed = samples(read_images, ["@list"])
        streamed = samples(read_images, ["-"], stdin=stdin(b"first.png" + by + content))
        assert listed is None or listed[0].id.startswith("first.png")
        assert (listed is None) == (streamed is None)
        assert listed is None or [sample.id for sample in listed] == [
            sample.id for sample in streamed
        ]


@few
@given(names=st.lists(NAMES, min_size=1, max_size=6, unique_by=lambda name: name))
def test_any_names_in_a_folder_are_found_by_every_way_of_naming_them(names):
    names = [name + b".png" for name in names]
    with Folder():
        os.mkdir("in")
        for name in names:
            Path("in", os.fsdecode(name)).write_bytes(b"\x89PNG\r\n\x1a\n")
        wanted = {f"in/{os.fsdecode(name)}" for name in names}
        hidden = {name for name in wanted if name.startswith("in/.")}
        assert {
            f"in/{sample.id}" for sample in samples(read_images, ["in"]) or []
        } == wanted - hidden
        assert {sample.id for sample in samples(read_images, sorted(wanted))} == wanted
        content = b"\0".join(b"in/" + name for name in names)
        if b"".join(names).count(b"\n") < len(names):
            assert {
                sample.id for sample in samples(read_images, ["-"], stdin=stdin(content + b"\0"))
            } == wanted
        if not any(b"\n" in name for name in names):
            assert {
                sample.id
                for sample in samples(
                    read_images, ["-"], stdin=stdin(content.replace(b"\0", b"\n"))
                )
            } == wanted


@few
@given(
    sources=st.lists(
        TEXTS | st.sampled_from(["in", "in/a.png", "in/*", "**", "@list", "q.jsonl", "in/b.txt"]),
        max_size=4,
    )
)
def test_any_names_on_the_command_line(sources):
    with Folder():
        os.mkdir("in")
        Path("in/a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        Path("in/b.txt").write_bytes(b"text")
        Path("list").write_bytes(b"in/a.png\n")
        Path("q.jsonl").write_text(json.dumps(SOUND))
        for recursive in (False, True):
            samples(read_images, sources, recursive=recursive, stdin=stdin(b"in/a.png\n"))
            if "-" not in sources:
                samples(read_any, sources, Reading(recursive=recursive))


@bounded
@given(
    before=st.lists(st.just(SOUND) | ROWS, min_size=1, max_size=5),
    content=st.binary(max_size=200),
    cut=st.integers(0, 400),
)
def test_a_question_file_that_changes_is_never_taken_for_the_one_that_was_counted(
    before, content, cut
):
    first = "".join(json.dumps(row) + "\n" for row in [SOUND, *before]).encode()
    second = first[:cut] + content
    with Folder():
        Path("q.jsonl").write_bytes(first)
        source = read_questions("q.jsonl", TEXT_ONLY)
        Path("q.jsonl").write_bytes(second)
        found = list(source.samples)
        assert second.startswith(first) or found[-1].problem, "a change was not noticed"


@bounded
@given(
    extra=st.dictionaries(TEXTS, VALUES, max_size=4),
    key=TEXTS | NUMBERS,
    names=st.lists(TEXTS, max_size=3),
    question=TEXTS,
)
def test_any_result_is_one_line_of_json(extra, key, names, question):
    result, line = as_written(
        Result(Sample(key, names=tuple(names), extra=extra), question, answer=question),
        model="m",
        run="r",
    )
    assert line.count(b"\n") == 1 and not result.error
    found = json.loads(line, parse_constant=lambda name: 1 / 0)
    assert found["metadata"]["status"] == "ok" and set(found) >= {
        "question_id",
        "prompt",
        "text",
        "answer_id",
        "image",
    }


@bounded
@given(head=st.binary(max_size=600))
def test_any_bytes_are_an_image_a_video_or_neither(head):
    assert head_kind(head) in ("image", "video", "")
    with Folder():
        Path("d").write_bytes(head)
        assert media_kind("d") == (head_kind(head) if head else "unknown")
        assert media_kind("no\0name") == media_kind("gone") == "unknown" and media_kind(".") == ""


def test_nothing_but_our_own_errors_is_raised_for_what_is_not_a_name():
    for name in (
        "\ud83d",
        "a\0b",
        "x" * 5000,
        "~",
        "//",
        "/dev/null",
        "/dev/zero",
        "[",
        "@",
        "@@",
        "**",
        "--",
        "data:",
        "://",
    ):
        for call in (
            lambda name: read_images([name, name]),
            lambda name: read_images([name]),
            lambda name: read_any([name]),
            read_questions,
        ):
            with pytest.raises(UsageError) as caught:
                list(call(name).samples)
            assert "\n" not in str(caught.value)
