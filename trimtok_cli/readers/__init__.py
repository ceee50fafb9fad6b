"""From what the user names to samples: `read_images`, `read_questions`, and `read_any` for either. Opens no image."""

from collections.abc import Sequence
from pathlib import Path

from trimtok_cli.errors import UsageError
from trimtok_cli.readers.paths import is_question_file, read_images
from trimtok_cli.readers.questions import read_questions
from trimtok_cli.readers.source import Source

__all__ = ["Source", "read_any", "read_images", "read_questions"]


def read_any(
    sources: Sequence[str], *, recursive: bool = False, image_root: Path | None = None, limit: int | None = None
) -> Source:
    """One question file, or any number of images, folders, patterns and lists."""
    if not any(map(is_question_file, sources)):
        return read_images(sources, recursive=recursive, limit=limit)
    if len(sources) > 1:
        raise UsageError("a question file must be the only source; put all questions into one file")
    return read_questions(sources[0], image_root=image_root, limit=limit)
