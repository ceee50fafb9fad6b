"""A Parquet file: rows whose pictures are paths, bytes, or {bytes, path} as `datasets` writes them.

Read a few rows at a time, so memory does not grow with the file. Needs pyarrow, which is an extra.
"""

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

from trimtok_cli.blobs import Held
from trimtok_cli.errors import UsageError
from trimtok_cli.media.kinds import head_kind
from trimtok_cli.readers.foreign_formats import plain_name
from trimtok_cli.readers.table import Table

# Rows that are read together: a row may hold several large pictures.
_ROWS = 16


def parquet_table(path: str, name: str) -> Table:
    """The rows of the file. UsageError without pyarrow, and where the file is damaged."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise UsageError(
            f"{name} is a parquet file, which needs one more package; run: "
            "pip install 'trimtok[parquet]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            total = file.metadata.num_rows
    except OSError:
        raise
    except Exception as error:
        raise _damaged(name, error) from None

    def rows() -> Iterator[tuple[str, Any]]:
        number = 0
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=_ROWS):
                    for row in batch.to_pylist():
                        number += 1
                        yield f"row {number}", _usual(row, f"row {number}")
        except OSError as error:
            if error.errno:
                raise
            raise _damaged(name, error) from None
        except ArithmeticError as error:  # dates beyond Python's
            raise _damaged(name, error) from None

    return Table("a parquet file", rows, total)


def _damaged(name: str, error: Exception) -> UsageError:
    reason = " ".join(str(error).split())[:120]
    return UsageError(f"{name} is a damaged parquet file ({reason}); fetch it again")


def _usual(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The row as JSON could hold it, but for the pictures, which are blobs."""
    return {str(column): _value(value, f"{place} {column}") for column, value in row.items()}


def _value(value: Any, place: str) -> Any:
    if isinstance(value, Mapping):
        if set(map(plain_name, map(str, value))) == {"bytes", "path"}:
            content, name = value.get("bytes"), value.get("path")
            return Held(os.path.basename(name or "") or place, content) if content else name
        return {str(key): _value(part, place) for key, part in value.items()}
    if isinstance(value, list):
        return [_value(part, f"{place} {i}") for i, part in enumerate(value, start=1)]
    if isinstance(value, bytes):
        return Held(place, value) if head_kind(value[:4096]) else f"{len(value)} bytes"
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
