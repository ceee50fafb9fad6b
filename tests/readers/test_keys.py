"""Keys of samples: none twice in a run, the same in the next run, other for other questions."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from trimtok_cli.blobs import Address, Held, Within
from trimtok_cli.data import Sample
from trimtok_cli.readers.keys import keyed

ROW = Sample("a", (Path("x/a.png"),), ("a.png",), question="What?", answers=("b",), extra={"c": 1})

MEDIA = [
    Held("data: URI", b"one"),
    Held("data: URI", b"two"),
    Within("a.png", Path("x.tar"), 512, 10),
    Within("a.png", Path("y.tar"), 512, 10),
    Within("b.png", Path("x.tar"), 512, 10),
    Address("http://here/a.png"),
    Address("http://here/b.png"),
    Path("a.png"),
]

CHANGES = {
    "id": {"id": "b"},
    "name": {"names": ("b.png",)},
    "path": {"images": (Path("y/a.png"),)},
    "video": {"video": Path("x/a.mp4")},
    "question": {"question": "Who?"},
    "reference": {"answers": ("c",)},
    "column": {"extra": {"c": 2}},
}


def keys(*samples: Sample) -> list[str]:
    return [sample.key for sample in keyed(samples)]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_key_says_everything_that_a_record_repeats_of_its_input(change):
    assert keys(ROW) == keys(replace(ROW)) != keys(replace(ROW, **change))


def test_pictures_of_all_kinds_have_keys_of_their_own():
    found = [keys(replace(ROW, images=(medium,)))[0] for medium in MEDIA]
    assert len(set(found)) == len(MEDIA)
    assert found == [keys(replace(ROW, images=(medium,)))[0] for medium in MEDIA]
    moved = replace(ROW, images=(Within("a.png", Path("x.tar"), 1024, 10),))
    assert keys(moved)[0] == found[2], "a tar that was packed anew holds the same pictures"


def test_a_sample_that_comes_again_has_a_key_and_a_turn_of_its_own():
    other = replace(ROW, question="Who?")
    found = list(keyed([ROW, other, ROW, ROW, other]))
    assert len({sample.key for sample in found}) == 5
    assert [sample.turn for sample in found] == [1, 1, 2, 3, 2]
    assert [replace(sample, key="", turn=0) for sample in found] == [ROW, other, ROW, ROW, other]


def test_a_key_stays_when_other_samples_come_between():
    other = replace(ROW, question="Who?")
    first, second = keys(ROW, ROW)
    assert keys(other, ROW, other, ROW) == [*keys(other), first, keys(other, other)[1], second]


def test_a_relative_path_is_that_of_its_folder(tmp_path, monkeypatch):
    here = keys(ROW)
    assert here == keys(replace(ROW, images=(tmp_path / "x/../x/a.png",)))
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir("inner")
    assert keys(ROW) != here == keys(replace(ROW, images=(Path("../x/a.png"),)))
    os.rmdir(tmp_path / "inner")
    assert len(keys(ROW)[0]) == 32, "a folder that was removed ends nothing"


def test_odd_names_and_columns_have_keys():
    odd = [
        replace(ROW, names=(os.fsdecode(b"\xff.png"),)),
        replace(ROW, extra=json.loads('{"c": NaN, "d": [{"e": "\\ud800"}]}')),
        replace(ROW, extra={"c": object}),
        replace(ROW, id=1.5, question=None),
    ]
    assert len({*keys(*odd, *odd)}) == 8
