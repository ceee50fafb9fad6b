"""answers.jsonl: one record a line, one line for each input, in order, flushed as it comes."""

import json
import math
from dataclasses import replace
from typing import Any

from trimtok_cli.data import Result
from trimtok_cli.errors import sentence
from trimtok_cli.outputs.line_file import LineFile
from trimtok_cli.outputs.record import record


class JsonLines:
    """Writes results as lines of `file`. model, run: names that every record repeats."""

    def __init__(self, file: LineFile, *, model: str, run: str) -> None:
        self.file, self.model, self.run = file, model, run

    def write(self, result: Result) -> Result:
        """Writes the result; one whose further columns cannot be written is returned as failed.

        Raises TrimtokError, which names the answers that are safe, if the disk fails;
        BrokenPipeError if nobody reads standard output.
        """
        result, line = self._line(result)
        self.file.write(line)
        return result

    def close(self, failed: bool) -> None:
        """Ends the file. failed: the run ended in an error."""
        self.file.close(failed)

    def _line(self, result: Result) -> tuple[Result, bytes]:
        try:
            return result, line_of(record(result, model=self.model, run=self.run))
        except Exception as error:
            problem = f"the row's columns cannot be written ({sentence(error)})"
        bare = replace(result.sample, extra={})
        result = replace(
            result,
            sample=bare,
            answer="",
            finish="error",
            error=problem,
            error_class="SampleError",
        )
        return result, line_of(record(result, model=self.model, run=self.run))


def to_line(row: dict[str, Any]) -> str:
    """JSON on one line, readable as UTF-8.

    NaN becomes null, because it is not JSON. Only an input's own columns can hold NaN.
    """
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False)


def line_of(row: dict[str, Any]) -> bytes:
    """The line of a record, in bytes.

    A lone surrogate, from a file name that is not UTF-8, cannot be encoded and becomes an escape.
    """
    return (to_line(row) + "\n").encode("utf-8", "backslashreplace")


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """A copy with None for every float that is not finite, however deep, made without recursion."""
    copy = dict(row)
    left: list[Any] = [copy]
    while left:
        holder = left.pop()
        for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
            if isinstance(value, float) and not math.isfinite(value):
                holder[key] = None
            elif isinstance(value, (dict, list)):
                holder[key] = value.copy()
                left.append(holder[key])
    return copy
