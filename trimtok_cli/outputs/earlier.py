"""What an earlier run left at a destination: its run.json, and whether it may be touched.

Knows no settings: `fingerprint.py` compares them.
"""

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtok_cli.errors import UsageError

# What a run.json holds that a run is to be gone on with.
_HELD = ("config", "model", "identity", "versions")

RESUME, OVERWRITE, FAIL = EXISTING = ("resume", "overwrite", "fail")


def refuse_others(
    answers: Path, manifest: Path | None, beside: Sequence[Path], existing: str
) -> None:
    """Raises UsageError if a file is there that the run may not replace or go on with.

    beside: every other file that the run writes, the manifest among them. An empty file, and the
    manifest of a run without answers, may be replaced. A run with a run.json may be gone on with.
    """
    holds = answers.exists() and answers.stat().st_size > 0
    began = holds or manifest is None or not _never_began(manifest)
    goes_on = bool(to_go_on_with(answers, manifest, existing))
    for path in [answers] * holds + [*beside]:
        if path.is_dir():
            raise UsageError(f"--out: {path} is a folder and in the way; choose another --out.")
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        if existing == OVERWRITE or goes_on or not os.path.lexists(path):
            continue
        if began or path != manifest:
            reason = ""
            if existing == RESUME and holds:
                reason = " and has no run.json of a run beside it, so it cannot be gone on with"
            raise UsageError(
                f"--out: {path} is already there{reason}; add --overwrite to replace it, or "
                "choose another --out."
            )


def to_go_on_with(answers: Path | None, manifest: Path | None, existing: str) -> dict[str, Any]:
    """The run.json of the run that this one goes on with; empty if it is a new run.

    An empty file of answers is gone on with too, unless its run was ended before the first.
    """
    if existing != RESUME or answers is None or manifest is None or not answers.is_file():
        return {}
    return {} if answers.stat().st_size == 0 and _never_began(manifest) else document(manifest)


def read_manifest(path: Path | None) -> dict[str, Any]:
    """A run.json; empty if there is none that can be read."""
    if path is None or not path.is_file():  # reading a pipe would wait
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def document(manifest: Path) -> dict[str, Any]:
    """The run.json of an earlier run; empty if there is none that can be gone on with."""
    found = read_manifest(manifest)
    try:
        held = all(isinstance(found[name], dict) for name in _HELD)
        whole = held and isinstance(found["run"], str) and found["settings"][0]["method"]
        return found if whole and found["trimtok"] else {}
    except (KeyError, TypeError, IndexError):
        return {}


def _never_began(manifest: Path) -> bool:
    """Whether `manifest` belongs to a run that was interrupted before its first answer."""
    found = read_manifest(manifest)
    try:
        counts = found["counts"]
        return (
            bool(found["trimtok"] and found["interrupted"])
            and not counts["done"] + counts["failed"]
        )
    except (KeyError, TypeError):
        return False
