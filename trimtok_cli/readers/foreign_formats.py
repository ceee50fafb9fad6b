"""Formats that are mistaken for question files, in words: by the first bytes, by the first line,
and by a row's columns.

Each function completes the sentence "this file looks like ...", and returns "" where nothing speaks
against a question file. Quotes no content and opens no file.
"""

import json
import re
from functools import lru_cache
from typing import Any

from trimtok_cli.media.kinds import head_kind

WANTED = (
    'write one JSON object a line: {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?"}'
)

_UTF_16 = "UTF-16 text, not UTF-8; save it as UTF-8"

_STARTS = (
    (b"\x1f\x8b", "a gzip archive; unpack it first (gunzip)"),
    (b"PK\x03\x04", "a zip archive (or an office document); unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it first"),
    (b"\xfd7zXZ\0", "an xz archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"PAR1", "a parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"FEA1", "a feather file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF"),
    (b"\xff\xfe", _UTF_16),
    (b"\xfe\xff", _UTF_16),
)

_CONTROLS = re.compile(rb"[\0-\x08\x0e-\x1f\x7f]")

# Plain names of columns -> the published format that has all of them, the fullest first.
# These formats put all rows into one JSON object.
_DOCUMENTS = (
    (("questions",), "a VQAv2 question file, one JSON object with all questions in it"),
    (("annotations", "images"), "a COCO annotation file"),
    (("annotations",), "a VQAv2 annotation file"),
    (("data", "datasettype"), "a TextVQA file, one JSON object with all questions in it"),
    (("data", "datasetname"), "a TextVQA file, one JSON object with all questions in it"),
)

_ROWS = (
    *_DOCUMENTS,
    (("answerid", "prompt", "text"), "an answers file, as trimtok and LLaVA write them"),
    (("imageid", "caption"), "a COCO caption"),
    (("imageid", "bbox"), "a COCO annotation"),
)

TABLE_COLUMNS = frozenset(
    {"question", "questionid", "text", "caption", "prompt", "hint", "answer", "category"}
    | {"index", "id", "image", "imageid", "imagepath", "filename", "filepath", "url"}
)


@lru_cache(4096)
def plain_name(column: str) -> str:
    """A column's name without case, blanks and punctuation: `Image-Path` is `image_path`."""
    return re.sub(r"[\W_]+", "", column.lower())


def binary_format(head: bytes, *, list_of_names: bool = False) -> str:
    """The format of a file by its first bytes; "" for text.

    In a list of names, NULs may stand between the names, and a name may have any bytes.
    """
    if list_of_names and not _CONTROLS.search(head[:4096]):
        return ""  # P3 2019.jpg, GIF89a.png and %PDF.png are names, too
    for start, format in _STARTS:
        if head.startswith(start):
            return format
    if kind := head_kind(head):
        return "a picture" if kind == "image" else "a video"
    if b"\0" not in head[:4096]:
        return ""
    # Every other byte of UTF-16 text in most languages is 0.
    if len(head) > 3 and any(_mostly_zeros(head[start:64:2]) for start in (0, 1)):
        return _UTF_16
    return "" if list_of_names else "binary data, not UTF-8 text"


def is_old_tar(head: bytes) -> bool:
    """Whether a file may be a tar that was written without a mark: a name, zeros, octal numbers."""
    return len(head) >= 512 and head[0] > 0 and bool(re.match(rb"[0-7 ]{6}[ \0]", head[100:107]))


def _mostly_zeros(data: bytes) -> bool:
    return data.count(0) >= len(data) * 0.9


def row_format(columns: set[str], has_question: bool) -> str:
    """The format of a row with these columns (as `plain_name` gives them); "" for a question."""
    for given, format in _ROWS:
        if columns.issuperset(given) and (not has_question or "answerid" in given):
            return format
    return ""


def document_format(head: bytes) -> str:
    """The format of a JSON object over several lines, by the columns that its beginning names."""
    columns = {
        plain_name(name)
        for name in re.findall(r'"([^"\\]{1,40})"\s*:', head.decode("utf-8", "replace"))
    }
    for given, format in _DOCUMENTS:
        if columns.issuperset(given):
            return format
    return "one JSON object over several lines (jq -c . puts each on one)"


def is_unfinished_object(line: str) -> bool:
    """Whether a line is the beginning of a JSON object, without an error in it."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return line.startswith("{") and (
            error.pos >= len(line.rstrip()) or error.msg.startswith("Unterminated")
        )
    except (ValueError, RecursionError):
        pass
    return False


def is_object(text: str) -> bool:
    """Whether a text is one JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def text_format(line: str) -> str:
    """The format of a file by its first line; "" for a line that begins as JSON does."""
    start = line.lstrip("\ufeff \t").lower()
    if start.startswith(("{", "[")):
        return ""
    if start.startswith(("<!doctype html", "<html", "<head", "<body")):
        return "an HTML page; was it saved in place of the file?"
    if start.startswith(("<?xml", "<svg")):
        return "XML"
    if start.startswith("version https://git-lfs"):
        return "a Git LFS pointer; fetch the file itself (git lfs pull)"
    for mark, name in (("\t", "TSV"), (",", "CSV"), (";", "CSV")):
        cells = [plain_name(cell) for cell in line.split(mark)]
        if len(cells) > 1 and TABLE_COLUMNS.intersection(cells):
            if name == "TSV" and {"index", "question", "image"} <= set(cells):
                return "a TSV table as MMBench's"
            return f"a {name} table"
    return "plain text, not JSON"


def refusal(name: str, format: str) -> str:
    """The message for a file `name` that looks like `format`."""
    return f"{name} looks like {format}; {WANTED}"


def media_like(value: Any, endings: frozenset[str], depth: int = 3) -> bool:
    """Whether a value names a picture or a video by its ending, or holds one (`data:`).

    Looks into lists and objects, down to `depth` levels.
    """
    if isinstance(value, str):
        if value.startswith(("data:image/", "data:video/")):
            return True
        if len(value) > 4096 or "\n" in value:
            return False
        bare = re.split(r"[?#]", value, maxsplit=1)[0] if "://" in value else value
        return any(bare.lower().endswith(ending) for ending in endings) and not bare.startswith(".")
    if isinstance(value, (list, dict)) and depth:
        inner = value.values() if isinstance(value, dict) else value[:8]
        return any(media_like(part, endings, depth - 1) for part in inner)
    return False
