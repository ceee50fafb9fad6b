"""bench.json, written and read. Knows no measurement."""

import json
from pathlib import Path
from typing import Any

from trimtok_cli.bench.derive import derive
from trimtok_cli.bench.spec import PARTS
from trimtok_cli.errors import TrimtokError, UsageError
from trimtok_cli.outputs.destination import Destination
from trimtok_cli.outputs.whole_files import write_whole

NAME = "bench.json"


def write(destination: Destination, document: dict[str, Any]) -> None:
    """Writes bench.json, whole or not at all.

    The caller writes it anew after every row: an interrupted run leaves what it measured. Raises
    TrimtokError where it cannot be written.
    """
    if destination.answers is None:
        return
    try:
        write_whole(destination.answers, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise TrimtokError(
            f"--out: {destination} cannot be written ({error.strerror}); choose another --out."
        ) from None


def read_document(path: Path, option: str = "--against") -> dict[str, Any]:
    """An earlier bench.json with its derived figures. Raises UsageError where there is none.

    option: the one that named the file, for sentences.
    """
    file = path / NAME if path.is_dir() else path
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        return derive(_with_present_names(document))
    except OSError as error:
        raise UsageError(f"{option}: {file} cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{option}: {file} is no {NAME} of this program.") from None


def _with_present_names(document: dict[str, Any]) -> dict[str, Any]:
    """The document in today's names, with every part: `prepare` was `preprocess` once."""
    rows = [
        {"prepare" if name == "preprocess" else name: value for name, value in row.items()}
        for row in document["grid"]
    ]
    return {part: [] for part in PARTS} | document | {"grid": rows}
