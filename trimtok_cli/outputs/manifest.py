"""run.json: what was run, with what, and how it went. Counts and percentiles are gathered as
results pass. Knows no model.
"""

import dataclasses
import importlib.metadata
import json
import platform
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

from trimtok_cli import __version__
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Result, Seconds
from trimtok_cli.outputs.whole_files import write_whole

STAGES = tuple(field.name for field in dataclasses.fields(Seconds))


class RunSummary:
    """Counts and stage times of a run. Times are kept as a list of floats a stage: 56 bytes a
    sample.
    """

    def __init__(self) -> None:
        self.started, self.start = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.perf_counter()
        self.done = self.failed = self.warned = self.visual = self.kept = self.generated = (
            self.peak_bytes
        ) = 0
        self.finish: Counter[str] = Counter()
        self.times: dict[str, list[float]] = {stage: [] for stage in STAGES}

    def add(self, result: Result) -> None:
        self.finish[result.finish] += 1
        if result.error:
            self.failed += 1
            return
        self.done += 1
        self.warned += bool(result.warnings)
        self.visual += result.tokens.visual
        self.kept += result.tokens.kept
        self.generated += result.tokens.generated
        self.peak_bytes = max(self.peak_bytes, result.peak_bytes)
        for stage in STAGES:
            self.times[stage].append(getattr(result.seconds, stage))

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def as_dict(self) -> dict[str, Any]:
        seconds = self.seconds
        return {
            "counts": {
                "done": self.done,
                "failed": self.failed,
                "with_warnings": self.warned,
                "finish_reason": dict(self.finish),
            },
            "visual_tokens": {"dense": self.visual, "kept": self.kept},
            "generated_tokens": self.generated,
            "timing_ms": {stage: _percentiles(values) for stage, values in self.times.items()},
            "throughput": {
                "seconds": round(seconds, 3),
                "samples_per_second": round((self.done + self.failed) / seconds, 3),
                "generated_tokens_per_second": round(self.generated / seconds, 3),
            },
            "peak_bytes": self.peak_bytes,
        }


def write_run(path: Path, config: RunConfig, summary: RunSummary, **facts: Any) -> None:
    """The manifest, written whole or not at all; `facts` are what only the caller knows: run,
    command, model, interrupted.
    """
    document = {
        **facts,
        "trimtok": __version__,
        "started": summary.started,
        "config": dataclasses.asdict(config),
        "versions": versions(),
        **summary.as_dict(),
    }
    write_whole(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """Python, the platform, and the packages whose version can change an answer."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("torch", "torchvision", "transformers", "tokenizers", "pillow", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def _percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {"p50": 0.0, "p90": 0.0, "mean": 0.0}
    ordered = sorted(values)

    def at(share):
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    return {
        name: round(1000 * v, 3)
        for name, v in (
            ("p50", statistics.median(ordered)),
            ("p90", at(0.9)),
            ("mean", statistics.fmean(ordered)),
        )
    }
