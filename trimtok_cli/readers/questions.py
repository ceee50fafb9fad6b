"""A file of rows -> samples, whatever its format: the way to the reader of each.

A format is known by the first bytes, then by the first line; a suffix decides only between those.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

from trimtok_cli.blobs import Stored
from trimtok_cli.errors import UsageError
from trimtok_cli.readers import foreign_formats
from trimtok_cli.readers.json_rows import JsonRows
from trimtok_cli.readers.media_names import MediaNames
from trimtok_cli.readers.reading import Reading
from trimtok_cli.readers.rows import Rules
from trimtok_cli.readers.source import Source
from trimtok_cli.readers.stored import NOWHERE, copied, folder_of, root_at
from trimtok_cli.readers.table import Table
from trimtok_cli.readers.text import HEAD, is_regular, open_bytes
from trimtok_cli.stores import checked, is_stored
from trimtok_cli.wording import shortened

# Names of --input-format.
FORMATS = ("auto", "json", "csv", "tsv", "parquet", "tar")

# Endings by which a file is taken for one of rows before it is opened.
ROW_SUFFIXES = (
    *(".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".tab", ".parquet", ".tar"),
    *(".tar.gz", ".tgz"),  # which are refused in words
)


def read_questions(path: str, reading: Reading = Reading(), *, command: str = "vqa") -> Source:
    """The rows of the file `path`, or of stdin for "-".

    command: vqa, where each row asks; caption, where none does; any, where a row without a question
    is asked the command's prompt. The rows of a regular file are counted first, and read again as
    they are asked for. UsageError where no row can be answered.
    """
    image_root, limit = reading.image_root, reading.limit
    origin, name = None, "stdin" if path == "-" else shortened(path)
    if is_stored(path):
        origin = Stored(checked(path))
        name, path = shortened(origin.name), copied(origin.name)
    root, store = _root(image_root or origin or path, folder=image_root is not None)
    names = MediaNames(root, reading.allow_outside, reading.allow_urls, store)
    rules = Rules(
        names, text_only=reading.allow_text_only, command=command, settings=reading.settings
    )
    if path == "-" and sys.stdin is None:
        raise UsageError("standard input is closed; name a question file")
    try:
        if path == "-":
            return JsonRows(path, rules, name).stream(sys.stdin).first(limit)
        if os.path.isdir(path):
            raise UsageError(
                f"{path} cannot be read as questions: it is a folder; use `trimtok caption {path}`"
            )
        if not is_regular(path):
            return JsonRows(path, rules, name).stream(open_bytes(path)).first(limit)
        table = _table(path, rules, reading.format, name, origin)
        if table is not None:
            source = table.source(Path(path), name, rules.of_table())
        else:
            source = JsonRows(path, rules, name).file()
        if origin is not None or store:
            files = (*source.files, *([origin] if origin else []))
            source = replace(source, root=None if root == NOWHERE else root, files=files)
        return source.first(limit)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{name} cannot be read ({reason}); check the file's name") from error


def _root(place: Path | Stored | str, folder: bool) -> tuple[Path, str]:
    """(root, store) of the names of pictures, that of a folder or of a file."""
    if isinstance(place, Stored):
        return root_at(place.name) if folder else folder_of(place.name)
    return Path(place) if folder else _folder_of(str(place)), ""


def _table(path: str, rules: Rules, format: str, name: str, origin: Stored | None) -> Table | None:
    """The table that a regular file is; None for one of JSON rows. origin: what it is a copy of."""
    if format == "auto":
        format = recognised(path, name)
    if format == "json":
        from trimtok_cli.readers.documents import document_table, read_document

        document = read_document(path, name)
        return document and document_table(document, rules.root, rules.command)
    if format in ("csv", "tsv"):
        from trimtok_cli.readers.delimited import delimited_table

        return delimited_table(path, name, "\t" if format == "tsv" else ",;")
    if format == "parquet":
        from trimtok_cli.readers.parquet import parquet_table

        return parquet_table(path, name)
    from trimtok_cli.readers.archives import archive_table

    return archive_table(path, name, origin)


def recognised(path: str, name: str = "") -> str:
    """The format of a regular file, one of FORMATS; `json` also for a file that is refused.

    name: the file's in messages.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD)
    ending = os.path.splitext(path)[1].lower()
    if head.startswith(b"PAR1"):
        return "parquet"
    if head[257:262] == b"ustar" or (ending == ".tar" and foreign_formats.is_old_tar(head)):
        return "tar"
    if foreign_formats.binary_format(head):
        if ending == ".tar" or path.lower().endswith((".tgz", ".tar.gz")):
            raise UsageError(
                f"{name or shortened(path)} is a packed tar; pictures are read in a plain one: "
                "unpack it first (gunzip)"
            )
        return "json"
    lines = head.decode("utf-8", "replace").removeprefix("\ufeff").lstrip().splitlines()
    first = lines[0] if lines else ""
    if first.startswith(("{", "[")) or not first:
        return "json"
    looks = foreign_formats.text_format(first)
    if "TSV" in looks or ending in (".tsv", ".tab"):
        return "tsv"
    return "csv" if "CSV" in looks or ending == ".csv" else "json"


def _folder_of(path: str) -> Path:
    """The folder of a question file; the current one where the file's own has no pictures.

    A shell's <(...) is a name in /dev. So is standard input, even if it is a file.
    """
    is_handle = path in ("-", "/dev/stdin") or path.startswith(("/dev/fd/", "/proc/"))
    is_device = path.startswith("/dev/") and not os.path.isfile(path)
    return Path() if is_handle or is_device else Path(path).parent
