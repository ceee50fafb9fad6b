"""A finished run's folder, written without a model: what formats are made from."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.support.writing import as_written
from trimtok_cli.data import Media, Result, Sample, Setting, TokenCounts


def answer(name: object, text: str = "", *, failed: str = "", **sample: Any) -> Result:
    """An answer about the picture of this name, or its failure."""
    names = sample.pop("names", (str(name),))
    question = sample.pop("question", "What?")
    key = hashlib.blake2b(repr((name, names, question)).encode(), digest_size=16).hexdigest()
    return Result(
        sample=Sample(sample.pop("id", name), names=names, key=key, **sample),
        question=question,
        answer=text,
        setting=Setting("stub", "6"),
        tokens=TokenCounts(5, 576, 64, 64.0, 7),
        media=(Media(640, 480, "RGB"),),
        finish="error" if failed else "stop",
        error=failed,
        error_class="MediaError" if failed else "",
    )


def finished(
    folder: Path, results: Iterable[Result], root: Path | None = None, **facts: Any
) -> Path:
    """The folder of a run with these answers, whose pictures' names start in `root`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [as_written(result, model="m", run="0123456789ab")[1] for result in results]
    (folder / "answers.jsonl").write_bytes(b"".join(lines))
    manifest: Mapping[str, Any] = {
        "run": "0123456789ab",
        "command": "caption",
        "interrupted": False,
        "started": "2026-11-26T10:00:00+0000",
        "root": "" if root is None else str(root),
        **facts,
    }
    (folder / "run.json").write_text(json.dumps(manifest) + "\n")
    return folder


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
