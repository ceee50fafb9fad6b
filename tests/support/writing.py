"""A result's line as a writer writes it, without a file."""

from typing import Any

from trimtok_cli.data import Result
from trimtok_cli.outputs.jsonl import JsonLines


class Kept:
    """In place of a file: the lines that were written."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def write(self, line: bytes) -> None:
        self.lines.append(line)


def as_written(result: Result, **names: Any) -> tuple[Result, bytes]:
    """The result as it was written, and its line."""
    file = Kept()
    result = JsonLines(file, **names).write(result)
    (line,) = file.lines
    return result, line
