"""The output formats by name. A format is one file here and one line in FORMATS."""

from typing import Protocol

from trimtok_cli.data import Result
from trimtok_cli.outputs.jsonl import JsonLines
from trimtok_cli.outputs.line_file import LineFile


class Writer(Protocol):
    """Writes results into files of one format."""

    def __init__(self, file: LineFile, *, model: str, run: str) -> None:
        """model, run: names for the records."""

    def write(self, result: Result) -> Result:
        """Writes one result, and returns it as it was written.

        Raises TrimtokError, which names the answers that are safe, if the disk fails;
        BrokenPipeError if nobody reads standard output.
        """

    def close(self, failed: bool) -> None:
        """Ends the files. failed: the run ended in an error."""


FORMATS: dict[str, type[Writer]] = {"jsonl": JsonLines}
