"""The sources that a user names -> samples: `read_images`, `read_questions`, `read_any` for either.

Decodes no image.
"""

import os
import stat
from collections.abc import Iterable, Sequence
from itertools import chain

from trimtok_cli.errors import UsageError
from trimtok_cli.readers.paths import is_question_file, read_images
from trimtok_cli.readers.questions import ROW_SUFFIXES, read_questions
from trimtok_cli.readers.reading import Reading
from trimtok_cli.readers.source import Source
from trimtok_cli.stores import is_stored

__all__ = ["Reading", "Source", "read_any", "read_images", "read_questions"]

# Endings of files of rows of which several may be named, such as the shards of a data set.
_SHARDS = (".tar", ".parquet", ".csv", ".tsv", ".tab")


def read_any(
    sources: Sequence[str],
    reading: Reading = Reading(),
    *,
    command: str = "any",
    stdin: Iterable[str] | None = None,
) -> Source:
    """The samples of one file of rows, or of any number of images, folders, patterns and lists.

    command: caption, which reads no file of questions, or any. A JSON file among images is a
    sidecar of theirs. UsageError where the sources do not go together or hold nothing.
    """
    is_rows = len(sources) == 1 and (
        _is_row_file(sources[0], reading.format) or _is_pipe(sources[0])
    )
    if is_rows or (len(sources) > 1 and all(_is_shard(source) for source in sources)):
        parts = [read_questions(source, reading, command=command) for source in sources]
        return parts[0] if is_rows else _joined(parts).first(reading.limit)
    questions = [source for source in sources if is_question_file(source)]
    if questions and (len(questions) == len(sources) or any(map(_holds_questions, questions))):
        raise UsageError("a question file must be the only source; put all questions into one file")
    return read_images(
        sources,
        recursive=reading.recursive,
        limit=reading.limit,
        stdin=stdin,
        allow_urls=reading.allow_urls,
    )


def _joined(parts: Sequence[Source]) -> Source:
    """The sources one after the other, as one."""
    return Source(
        chain.from_iterable(part.samples for part in parts),
        sum(part.total or 0 for part in parts),
        tuple(chain.from_iterable(part.files for part in parts)),
        tuple(chain.from_iterable(part.notes for part in parts)),
        tuple(chain.from_iterable(part.quiet_notes for part in parts)),
    )


def _is_row_file(source: str, format: str) -> bool:
    """Whether a source is a file of rows, by its ending or because --input-format says so."""
    if source == "-" or os.path.isdir(source):
        return False
    return source.lower().endswith(ROW_SUFFIXES) or format != "auto"


def _is_shard(source: str) -> bool:
    return source.lower().endswith(_SHARDS) and (is_stored(source) or os.path.isfile(source))


def _holds_questions(source: str) -> bool:
    """Whether a .jsonl holds questions, as a folder's own metadata.jsonl does not."""
    try:
        return source.lower().endswith(".jsonl") and bool(read_questions(source, Reading(limit=1)))
    except UsageError:
        return False


def _is_pipe(source: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(source).st_mode)
    except (OSError, ValueError):
        return False
