"""A Parquet table of the records, failed ones among them. Needs pyarrow, which is an extra."""

from collections.abc import Iterable, Iterator
from io import BufferedWriter, RawIOBase
from itertools import islice
from pathlib import Path
from typing import Any, cast

from trimtok_cli.errors import UsageError
from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.exports.columns import columns
from trimtok_cli.outputs.exports.form import Made, Wanted
from trimtok_cli.outputs.whole_files import writing

_GROUP = 10_000  # rows that are held and written together


def check_parquet() -> None:
    """Raises UsageError if pyarrow is not installed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise UsageError(
            "--format parquet needs one more package; run: pip install 'trimtok[parquet]'"
        ) from None


def write_parquet(answers: Answers, target: Path, wanted: Wanted) -> Made:
    check_parquet()
    import pyarrow
    from pyarrow import parquet

    table, made = columns(answers), Made(str(target))
    kinds = {
        int: pyarrow.int64(),
        float: pyarrow.float64(),
        bool: pyarrow.bool_(),
        str: pyarrow.string(),
    }
    schema = pyarrow.schema([(column.name, kinds[column.kind]) for column in table])
    with (
        writing(target) as bare,
        BufferedWriter(cast(RawIOBase, _Open(bare))) as file,
        parquet.ParquetWriter(file, schema) as writer,
    ):
        for group in _groups(answers.records()):
            cells = {
                column.name: [_sound(column.value(record)) for record in group] for column in table
            }
            writer.write_table(pyarrow.table(cells, schema=schema))
            made.rows += len(group)
    return made


def _groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    left = iter(records)
    while group := list(islice(left, _GROUP)):
        yield group


def _sound(value: Any) -> Any:
    """The value; a lone surrogate, from a file name that is not UTF-8, becomes an escape."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


class _Open(RawIOBase):
    """A file that is written through a buffer, and stays open when the buffer is closed."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int | None:
        return cast("int | None", self.file.write(data))
