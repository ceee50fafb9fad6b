"""What a file that is no question file looks like, in words: by its first bytes, by its first line,
and by a row's columns.

Each answer completes the sentence "this file looks like ..."; "" says that nothing speaks against
it. Quotes no content.
"""

import json
import re
from functools import lru_cache
from typing import Any

from trimtok_cli.media.kinds import head_kind

WANTED = (
    'write one JSON object a line: {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?"}'
)

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
    (b"\xff\xfe", "UTF-16 text, not UTF-8; save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text, not UTF-8; save it as UTF-8"),
)

_CONTROLS = re.compile(rb"[\0-\x08\x0e-\x1f\x7f]")

# The columns that give a published format away, the fullest first. None of them is a row of ours.
_ROWS = (
    (("customid", "body"), "an OpenAI batch request"),
    (("messages",), "a chat of messages (OpenAI, Qwen)"),
    (("conversations",), "a LLaVA or ShareGPT conversation"),
    (("questions",), "a VQAv2 question file, one JSON object with all questions in it"),
    (("annotations", "images"), "a COCO annotation file"),
    (("annotations",), "a VQAv2 annotation file"),
    (("data", "datasettype"), "a TextVQA file, one JSON object with all questions in it"),
    (("data", "datasetname"), "a TextVQA file, one JSON object with all questions in it"),
    (("answerid", "prompt", "text"), "an answers file, as trimtok and LLaVA write them"),
    (("imageid", "caption"), "a COCO caption"),
    (("imageid", "bbox"), "a COCO annotation"),
)

_TABLE_COLUMNS = frozenset(
    {
        "question",
        "questionid",
        "image",
        "imageid",
        "imagepath",
        "filename",
        "filepath",
        "text",
        "caption",
        "index",
        "id",
        "hint",
        "answer",
        "category",
        "prompt",
        "url",
    }
)


@lru_cache(4096)
def plain(column: str) -> str:
    """A column's name without case, blanks and punctuation: `Image-Path` and `image_path` are
    one.
    """
    return re.sub(r"[\W_]+", "", column.lower())


def binary(head: bytes, *, list_of_names: bool = False) -> str:
    """What a file with these first bytes is, if not text. NULs may stand between names, and names
    may have any bytes.
    """
    if list_of_names and not _CONTROLS.search(head[:4096]):
        return ""  # P3 2019.jpg, GIF89a.png and %PDF.png are names, too
    for start, what in _STARTS:
        if head.startswith(start):
            return what
    if kind := head_kind(head):
        return "a picture" if kind == "image" else "a video"
    zeros = head[:4096].count(b"\0")
    if (
        zeros
        and len(head) > 3
        and any(head[start:64:2].count(0) >= len(head[start:64:2]) * 0.9 for start in (0, 1))
    ):
        return "UTF-16 text, not UTF-8; save it as UTF-8"
    return "binary data, not UTF-8 text" if zeros and not list_of_names else ""


def foreign(columns: set[str], has_question: bool) -> str:
    """What a row with these columns (as `plain` gives them) is in some other format."""
    for given, what in _ROWS:
        if columns.issuperset(given) and (not has_question or "answerid" in given):
            return what
    return ""


def document(head: bytes) -> str:
    """What a JSON object looks like that does not end on its first line, by the columns that its
    beginning names.
    """
    columns = {
        plain(name) for name in re.findall(r'"([^"\\]{1,40})"\s*:', head.decode("utf-8", "replace"))
    }
    for given, what in _ROWS[3:8]:
        if columns.issuperset(given):
            return what
    return "one JSON object over several lines (jq -c . puts each on one)"


def unfinished(line: str) -> bool:
    """Whether a line is the beginning of a JSON object and nothing else is wrong with it."""
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
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def first_line(line: str) -> str:
    """What text looks like that does not begin as JSON does."""
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
        cells = [plain(cell) for cell in line.split(mark)]
        if len(cells) > 1 and _TABLE_COLUMNS.intersection(cells):
            published = (
                " as MMBench's"
                if name == "TSV" and {"index", "question", "image"} <= set(cells)
                else ""
            )
            return f"a {name} table{published}"
    return "plain text, not JSON"


def sentence(name: str, what: str) -> str:
    return f"{name} looks like {what}; {WANTED}"


def media_like(value: Any, endings: frozenset[str], depth: int = 3) -> bool:
    """Whether a value names a picture or a video: its ending says so, or it holds one (`data:`).
    Looks into lists and objects.
    """
    if isinstance(value, str):
        if value.startswith(("data:image/", "data:video/")):
            return True
        if len(value) > 4096 or "\n" in value:
            return False
        bare = re.split(r"[?#]", value, maxsplit=1)[0] if "://" in value else value
        return any(bare.lower().endswith(ending) for ending in endings) and not bare.startswith(".")
    if isinstance(value, (list, dict)) and depth:
        return any(
            media_like(each, endings, depth - 1)
            for each in (value.values() if isinstance(value, dict) else value[:8])
        )
    return False
