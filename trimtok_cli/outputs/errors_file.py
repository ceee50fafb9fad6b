"""errors.jsonl: the failed samples of a run, a line each, beside the answers that hold them too."""

from pathlib import Path

from trimtok_cli.outputs.journal import Journal
from trimtok_cli.outputs.jsonl import to_line
from trimtok_cli.outputs.whole_files import discard, write_whole


def write_errors(path: Path | None, journal: Journal) -> None:
    """Writes the file whole, or removes it if nothing failed. Raises OSError."""
    if path is None:
        return
    if rows := journal.failures():
        write_whole(path, "".join(to_line(row) + "\n" for row in rows))
    else:
        discard(path)
