"""Comparisons made again from recorded lines: whole, joined by content, and drawn as before."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.support.comparisons import FAST, GRID, make, picture
from trimtok_cli.data import (
    Comparison,
    Kept,
    Media,
    Result,
    Sample,
    Setting,
    TokenCounts,
)
from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.summary import summarize
from trimtok_cli.outputs.comparison import comparison_record
from trimtok_cli.outputs.figure import write_figure
from trimtok_cli.outputs.finished_runs import joined, read_run
from trimtok_cli.outputs.jsonl import line_of
from trimtok_cli.outputs.overlay_files import darkened, file_name, overlaid, write_overlays
from trimtok_cli.outputs.pictures import Loader, Picture, pictures_of
from trimtok_cli.outputs.record import record
from trimtok_cli.outputs.recorded import comparison_of
from trimtok_cli.outputs.token_layout import boxes_of, strips_of
from trimtok_cli.readers.columns import references


def again(comparison: Comparison) -> Comparison:
    """The comparison after its line was written and read."""
    line = line_of(comparison_record(comparison, model="tiny", run="0" * 12))
    return comparison_of(json.loads(line), None)


def staged(sample: Sample) -> Comparison:
    """Dense beside a method of two stages, over two images and a video."""
    boxes = (*GRID, *GRID[:8], *GRID[:4], (0.0, 0.0, 0.0, 0.0), *GRID[:4])
    index = (0,) * 16 + (1,) * 8 + (2,) * 9
    frames = (0,) * 24 + (0,) * 5 + (3,) * 4
    counts = TokenCounts(9, len(boxes), 3, 5.5, 4, ((0, 5), (2, 3)))
    setting = Setting("steps", "3", "tokens", 7, {"pool": 0.9, "layers": [1, 2], "text": "llm"})
    pruned = Result(
        sample,
        sample.question or "",
        "b",
        setting,
        counts,
        FAST,
        kept=(Kept(0, (0, 1, 17, 24, 30)), Kept(2, (1, 17, 30))),
        grid=(4, 4),
        finish="length",
        prompt_sent="<image> ?",
        media=(Media(40, 40, "RGB", times=(0.5, 1.5, 2.5, 3.5)),),
        notes=("cut",),
    )
    dense = replace(
        make("a", sample=sample, boxes=boxes, index=index).results[0], media=pruned.media
    )
    return Comparison(sample, (dense, pruned), boxes, index, frames, ("image", "image", "video"))


def test_a_comparison_is_read_as_it_was_written():
    sample = picture(
        "a.png",
        "sub/b.png",
        video=Path("c.mp4"),
        answers=("a", "b"),
        extra={"task": "color", "prompt": "a column of that name"},
        key="ab" * 16,
    )
    sample = replace(sample, names=("a.png", "sub/b.png", "c.mp4"))
    was = staged(sample)
    now = again(was)
    assert (now.boxes, now.visual_index, now.frame, now.kinds) == (
        was.boxes,
        was.visual_index,
        was.frame,
        was.kinds,
    )
    extra = {"task": "color", "input_prompt": "a column of that name"}
    assert now.sample == replace(sample, extra=extra)
    for before, after in zip(was.results, now.results, strict=True):
        assert after.setting.name == before.setting.name and after.tokens == before.tokens
        assert (after.answer, after.finish, after.notes) == (
            before.answer,
            before.finish,
            before.notes,
        )
        assert after.seconds == before.seconds and after.prompt_sent == before.prompt_sent
    assert now.results[1].kept == was.results[1].kept
    assert [row.median for row in summarize([now])] == [row.median for row in summarize([was])]
    shown = [(each.name, each.number, each.frame) for each in pictures_of(now)]
    assert shown == [(each.name, each.number, each.frame) for each in pictures_of(was)]
    assert shown[2:] == [("c.mp4, 0.50 s", 2, 0), ("c.mp4, 3.50 s", 2, 3)]


def test_a_failed_sample_is_read_as_it_was_written():
    now = again(make(None, None, sample=picture("broken.png")))
    assert [result.error for result in now.results] == ["out of memory"] * 2
    assert [result.setting.name for result in now.results] == ["dense", "trimtokenator@2"]


@pytest.mark.parametrize(
    ("boxes", "most"),
    [
        (GRID, 4),
        (
            tuple(
                (x / 24, y / 24, (x + 1) / 24, (y + 1) / 24) for y in range(24) for x in range(24)
            ),
            24,
        ),
        (((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.3, 1.0), (0.3, 0.0, 1.0, 1.0)), 3),
        (((0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 0.5, 0.5), (0.6, 0.0, 1.1, 0.5)), 3),
        ((), 0),
    ],
)
def test_strips_give_the_boxes_back(boxes, most):
    boxes = tuple(tuple(round(edge, 5) for edge in box) for box in boxes)
    strips = strips_of(boxes, (0,) * len(boxes), ())
    found, pictures, frames = boxes_of(strips)
    assert len(strips) <= most and len(found) == len(boxes)
    for one, other in zip(found, boxes, strict=True):
        assert one == pytest.approx(other, abs=1.2e-5)
    assert pictures == frames == (0,) * len(boxes)


def test_a_widening_row_is_no_strip():
    edges = [round(i * i / 100, 5) for i in range(11)]
    boxes = tuple((a, 0.0, b, 1.0) for a, b in itertools.pairwise(edges))
    assert boxes_of(strips_of(boxes, (0,) * 10, ()))[0] == boxes


def test_strips_end_where_a_picture_or_a_frame_ends():
    boxes, index, frames = GRID[:4], (0, 0, 1, 1), (0, 1, 1, 1)
    strips = strips_of(boxes, index, frames)
    assert [strip[:3] for strip in strips] == [[0, 0, 1], [0, 1, 1], [1, 1, 2]]
    assert boxes_of(strips) == (boxes, index, frames)


def finished(folder: Path, setting: Setting, answers: dict[str, str], **document) -> Path:
    """A folder with the answers of one run, by what was asked."""
    folder.mkdir()
    run = folder.name.encode().hex()[:12].ljust(12, "0")
    lines = []
    for number, (asked, answer) in enumerate(answers.items()):
        key = asked.encode().hex().ljust(32, "0")
        sample = Sample(number, names=("a.png",), extra={"answer": "red"}, key=key)
        counts = TokenCounts(9, 16, 2, 2.0, 1, ((0, 2),))
        result = Result(sample, asked, answer, setting, counts, FAST, finish="stop")
        lines.append(line_of(record(result, model="tiny", run=run)))
    (folder / "answers.jsonl").write_bytes(b"".join(lines))
    told = {"run": run, "config": {"model": "tiny"}, "interrupted": False} | document
    (folder / "run.json").write_text(json.dumps(told))
    return folder


def read(*folders: Path) -> tuple[list[Comparison], list[str]]:
    return joined([read_run(folder, None, references) for folder in folders])


KEEP = Setting("trimtokenator", "2")


def test_runs_are_joined_by_what_was_asked_and_not_by_line(tmp_path):
    pruned = finished(tmp_path / "pruned", KEEP, {"b": "B", "x": "X", "a": "other"})
    dense = finished(tmp_path / "dense", Setting(), {"a": "A", "b": "B", "c": "C"})
    found, notes = read(pruned, dense)
    said = [[result.answer for result in comparison.results] for comparison in found]
    assert said == [["B", "B"], ["A", "other"]]
    assert notes == ["2 samples are not in every run and are left out"]
    rows = summarize(found)
    assert [row.label for row in rows] == ["dense", "trimtokenator@2"]
    assert (rows[1].same, rows[1].samples, rows[1].referenced) == (1, 2, 2)
    assert rows[1].median.stages == ((0, 2),) and found[0].sample.answers == ("red",)


def test_runs_that_cannot_be_joined_say_why(tmp_path):
    dense = finished(tmp_path / "dense", Setting(), {"a": "A"})
    pruned = finished(tmp_path / "pruned", KEEP, {"a": "A"})
    other = finished(tmp_path / "other", KEEP, {"z": "A"})
    model = finished(tmp_path / "model", KEEP, {"a": "A"}, config={"model": "another"})
    for folders, said in (
        ([pruned], "none of these runs is dense"),
        ([dense, other], "share no sample"),
        ([dense, model], "several models (another, tiny)"),
        ([tmp_path], "is no run"),
    ):
        with pytest.raises(UsageError) as error:
            read(*folders)
        assert said in str(error.value)
    twice = finished(tmp_path / "twice", KEEP, {"a": "B"}, interrupted=True)
    found, notes = read(dense, pruned, twice)
    assert [result.answer for result in found[0].results] == ["A", "A"]
    assert "the first is shown" in notes[1] and "is not over" in notes[0]


@pytest.mark.parametrize(
    "line",
    [
        b"[1]\n",
        b'{"runs": [{}]}\n',
        b'{"runs": [], "a": 1}\n',
        b'{"runs": [1, 2\n',
        b'{"a": 1}\n',
        b"\xff\n",
    ],
)
def test_lines_that_are_no_records_are_one_sentence(tmp_path, line):
    (tmp_path / "compare.jsonl").write_bytes(line)
    with pytest.raises(UsageError) as error:
        read(tmp_path)
    assert str(tmp_path) in str(error.value) and "run" in str(error.value)


def test_a_torn_last_line_of_a_comparison_is_left_out(tmp_path):
    lines = [
        line_of(
            comparison_record(
                make("a", "b", sample=Sample(i, key=f"{i:032x}")), model="m", run="0" * 12
            )
        )
        for i in range(2)
    ]
    (tmp_path / "compare.jsonl").write_bytes(lines[0] + lines[1][:-9])
    found, notes = read(tmp_path)
    assert len(found) == 1 and "torn" in notes[0]


def gray(path):
    return Image.new("RGB", (40, 40), (200, 200, 200)), Media(40, 40, "RGB")


def test_an_overlay_darkens_exactly_what_was_dropped():
    comparison = make("a", "b", sample=picture("a.png"), kept=((5, 10),))
    drawn = overlaid(comparison, comparison.results[1], Picture("a", Path("a.png")), Loader(gray))
    for token, (x0, y0, x1, y1) in enumerate(GRID):
        inside = drawn.getpixel((round(40 * (x0 + x1) / 2), round(40 * (y0 + y1) / 2)))
        assert (inside == (200, 200, 200)) == (token in (5, 10)), token
    assert drawn.getpixel((10, 10)) == drawn.getpixel((19, 19)) == (235, 235, 235)
    assert max(drawn.getpixel((9, 9))) < 100 and max(drawn.getpixel((20, 19))) < 100
    dense = overlaid(comparison, comparison.results[0], Picture("a", Path("a.png")), Loader(gray))
    assert dense.getcolors() == [(1600, (200, 200, 200))]


def test_overlays_are_files_of_safe_and_different_names(tmp_path):
    sample = replace(picture("a.png", "b.png"), id="../../etc/pass wd\0.png")
    boxes, index = GRID[:2] * 2, (0, 0, 1, 1)
    comparison = make("a", "b", None, sample=sample, boxes=boxes, index=index, kept=((1,), (0,)))
    assert write_overlays(tmp_path, 7, comparison, Loader(gray)) == 4
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "00007-pass-wd-1-dense.png",
        "00007-pass-wd-1-trimtokenator@1.png",
        "00007-pass-wd-2-dense.png",
        "00007-pass-wd-2-trimtokenator@1.png",
    ]
    assert Image.open(tmp_path / names[0]).size == (40, 40)
    odd = replace(comparison, sample=replace(sample, id="…"))
    assert file_name(1, odd, 1, comparison.results[0]) == "00001-1-dense.png"
    assert (
        write_overlays(tmp_path, 8, make("a", "b", sample=picture("broken.png")), Loader(broken))
        == 0
    )


def broken(path):
    raise OSError("gone")


def test_a_tiny_token_is_bright_without_an_edge():
    drawn = darkened(
        Image.new("RGB", (40, 40), (9, 9, 9)), [(0.0, 0.0, 0.1, 0.1), (0.0, 0.0, 0.0, 0.0)]
    )
    assert drawn.getpixel((0, 0)) == (9, 9, 9) and drawn.getpixel((5, 5)) != (9, 9, 9)


def test_a_figure_shows_three_samples_with_a_cell_for_each_setting(tmp_path):
    told = make("a red cat", "a blue cat", "w" * 3000, sample=picture("a.png"), kept=((1,), (2, 3)))
    evil = make("\u202e\0\x1b[31m", None, sample=picture("broken.png", answers=("\ud800",)))
    path = tmp_path / "fig2.png"
    assert write_figure(path, [make(None, "x"), told, evil, told, told], Loader(gray)) == 3
    figure = Image.open(path)
    assert figure.width == 2 * 32 + 3 * 420 + 2 * 24 and figure.height > 1000
    assert (200, 200, 200) in {color for _, color in figure.getcolors(1 << 20)}
    assert write_figure(tmp_path / "none.png", [make(None, "x")], Loader(gray)) == 0
    assert not (tmp_path / "none.png").exists()
