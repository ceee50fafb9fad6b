"""The sources that a user names -> samples: `read_images`, `read_questions`, `read_any` for either.

Decodes no image.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from trimtok_cli.errors import UsageError
from trimtok_cli.readers.paths import is_question_file, read_images
from trimtok_cli.readers.questions import read_questions
from trimtok_cli.readers.source import Source

__all__ = ["Source", "read_any", "read_images", "read_questions"]


def read_any(
    sources: Sequence[str],
    *,
    recursive: bool = False,
    image_root: Path | None = None,
    limit: int | None = None,
    allow_text_only: bool = False,
    allow_outside: bool = False,
) -> Source:
    """The samples of one question file, or of any number of images, folders, patterns and lists.

    A JSON file among images is a sidecar of theirs. UsageError where the sources do not go together
    or hold nothing.
    """
    if len(sources) == 1 and (is_question_file(sources[0]) or _is_pipe(sources[0])):
        return read_questions(
            sources[0],
            image_root=image_root,
            limit=limit,
            allow_text_only=allow_text_only,
            allow_outside=allow_outside,
        )
    questions = [source for source in sources if is_question_file(source)]
    if questions and (len(questions) == len(sources) or any(map(_holds_questions, questions))):
        raise UsageError("a question file must be the only source; put all questions into one file")
    return read_images(sources, recursive=recursive, limit=limit)


def _holds_questions(source: str) -> bool:
    """Whether a .jsonl holds questions, as a folder's own metadata.jsonl does not."""
    try:
        return source.lower().endswith(".jsonl") and bool(read_questions(source, limit=1))
    except UsageError:
        return False


def _is_pipe(source: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(source).st_mode)
    except (OSError, ValueError):
        return False
