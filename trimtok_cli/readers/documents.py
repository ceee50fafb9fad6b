"""JSON documents that hold all rows in one object: VQAv2, TextVQA and GQA questions, COCO
annotations.

Each becomes rows of the usual columns; the other columns ride along. Opens no picture.
"""

import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from trimtok_cli.errors import UsageError
from trimtok_cli.readers.columns import Problem
from trimtok_cli.readers.foreign_formats import is_unfinished_object
from trimtok_cli.readers.table import Table

# Bytes of a document, which is read at once.
MOST_BYTES = 1 << 30

# Columns of a document that hold its rows.
_LISTS = ("questions", "data", "annotations", "images")

# What each question of GQA has; its other columns of programs and objects are long, and left out.
_GQA = ("imageId", "question")
_GQA_LEFT_OUT = ("semantic", "semanticStr", "annotations", "entailed", "equivalent")

# The names of COCO's folders and files, where the document does not say which it asks about.
_SPLITS = ("val2014", "train2014", "test2015", "val2017", "train2017")


def read_document(path: str, name: str) -> dict[str, Any] | None:
    """The object that is the whole file; None for a file of rows, and one of no known document."""
    with open(path, "rb") as file:
        line = file.readline(1 << 16)
        while line and not line.strip(b"\xef\xbb\xbf\t\r\n "):
            line = file.readline(1 << 16)
        text = line.decode("utf-8", "replace").removeprefix("\ufeff").strip()
        if not text.startswith("{") or not (is_unfinished_object(text) or _is_document(text)):
            return None
        file.seek(0)
        head = file.read(1 << 20)
        if not any(f'"{key}"'.encode() in head for key in (*_LISTS, _GQA[0])):
            return None
        if os.path.getsize(path) > MOST_BYTES:
            raise UsageError(
                f"{name} is one JSON object of more than {MOST_BYTES >> 20} MB; write its rows "
                "one a line (jq -c)"
            )
        try:
            document = json.loads((head + file.read()).decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return None
    return document if isinstance(document, dict) and _is_known(document) else None


def _is_document(text: str) -> bool:
    try:
        return _is_known(json.loads(text))
    except (ValueError, RecursionError):
        return False


def _is_known(document: dict[str, Any]) -> bool:
    return _rows_in(document) or _is_gqa(document)


def _is_gqa(document: dict[str, Any]) -> bool:
    """Whether an object holds GQA's questions, by their ids."""
    first = next(iter(document.values()), None)
    return isinstance(first, dict) and all(key in first for key in _GQA)


def _rows_in(document: dict[str, Any]) -> bool:
    """Whether an object holds rows; a row itself may hold a list of `images`, by their names."""
    return any(
        isinstance(document.get(key), list)
        and all(isinstance(row, dict) for row in document[key][:1])
        for key in ("questions", "data")
    ) or all(
        isinstance(document.get(key), list)
        and all(isinstance(row, dict) for row in document[key][:1])
        for key in ("images", "annotations")
    )


def document_table(document: dict[str, Any], root: Path, command: str) -> Table:
    """The rows of a document. root: the folder of the pictures; command: caption, vqa or any.

    UsageError for COCO annotations, which ask nothing, under vqa.
    """
    if isinstance(document.get("questions"), list):
        coco = _CocoNames(root, str(document.get("data_subtype") or ""))
        return _listed(
            "a VQAv2 question file",
            "question",
            document["questions"],
            lambda row: _vqa_row(row, coco),
        )
    if isinstance(document.get("data"), list):
        return _listed(
            "a TextVQA question file",
            "entry",
            document["data"],
            lambda row: _textvqa_row(row, root),
        )
    if _is_gqa(document):
        rows = [
            {"question_id": key, **row} if isinstance(row, dict) else row
            for key, row in document.items()
        ]
        return _listed("a GQA question file", "question", rows, lambda row: _gqa_row(row, root))
    if command == "vqa":
        raise UsageError(
            "COCO annotations ask nothing; describe their pictures with `trimtok caption`"
        )
    captions: dict[Any, list[str]] = {}
    for note in document["annotations"]:
        if isinstance(note, dict) and isinstance(note.get("caption"), str):
            key = note.get("image_id")
            if isinstance(key, int | str):
                captions.setdefault(key, []).append(note["caption"])
    return _listed(
        "a COCO annotation file",
        "image",
        document["images"],
        lambda row: _coco_row(row, captions),
    )


def _listed(what: str, noun: str, rows: list[Any], usual: Callable[[Any], Any]) -> Table:
    """The table of a list of rows; `usual` gives a row the usual columns."""

    def walk() -> Iterator[tuple[str, Any]]:
        return ((f"{noun} {number}", usual(row)) for number, row in enumerate(rows, start=1))

    return Table(what, walk, len(rows))


# Pictures that lie under no pattern, after which only one is tried.
_MOST_MISSES = 100


class _CocoNames:
    """COCO's file names: the first pattern under which a picture lies in the root.

    A document asks about one folder, so a pattern that was right once is tried first. Where none
    was right for many pictures, the first stands for all.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root = root
        self.misses = 0
        split = split.replace("test-dev", "test")
        splits = (split,) if split else _SPLITS
        self.patterns = [
            folder + pattern
            for each in splits
            for pattern in (f"COCO_{each}_{{:012d}}.jpg", "{:012d}.jpg")
            for folder in ("", f"{each}/", f"images/{each}/")
        ]

    def name(self, image_id: int) -> str:
        tried = self.patterns if self.misses < _MOST_MISSES else self.patterns[:1]
        for number, pattern in enumerate(tried):
            name = pattern.format(image_id)
            if os.path.exists(os.path.join(self.root, name)):
                self.patterns.insert(0, self.patterns.pop(number))
                return name
        self.misses += 1
        return self.patterns[0].format(image_id)


def _vqa_row(row: Any, coco: _CocoNames) -> Any:
    if not isinstance(row, dict) or "image" in row:
        return row
    key = row.get("image_id")
    if isinstance(key, str) and key.isascii() and key.isdigit():
        key = int(key)
    if not isinstance(key, int) or isinstance(key, bool) or key < 0:
        return Problem("image_id is no number, and there is no image")
    return {**row, "image": coco.name(key)}


def _textvqa_row(row: Any, root: Path) -> Any:
    # What TextVQA writes beside the picture's id are addresses of the same picture.
    left_out = [name for name in row if name.startswith("flickr_")] if isinstance(row, dict) else ()
    return _with_jpg(row, "image_id", ("", "train_images/", "test_images/"), root, left_out)


def _gqa_row(row: Any, root: Path) -> Any:
    return _with_jpg(row, "imageId", ("", "images/"), root, _GQA_LEFT_OUT)


def _with_jpg(
    row: Any, column: str, folders: Sequence[str], root: Path, left_out: Collection[str]
) -> Any:
    """The row with the picture whose id a column holds, in the first of the folders that has it."""
    if not isinstance(row, dict) or "image" in row:
        return row
    key = row.get(column)
    if not isinstance(key, str) or not key:
        return Problem(f"{column} is no name, and there is no image")
    names = [f"{folder}{key}.jpg" for folder in folders]
    found = next((name for name in names if os.path.exists(root / name)), names[0])
    others = {name: value for name, value in row.items() if name not in left_out}
    return {**others, "image": found}


def _coco_row(row: Any, captions: dict[Any, list[str]]) -> Any:
    if not isinstance(row, dict):
        return row
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        return Problem("file_name is missing")
    others = {key: value for key, value in row.items() if key != "file_name"}
    key = row.get("id")
    told = captions.get(key, []) if isinstance(key, int | str) else []
    caption = {"caption": told[0], "answers": told} if told else {}
    return {**others, "image": name, **caption}
