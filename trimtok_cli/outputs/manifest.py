"""run.json: the command, the settings and versions of a run, and its counts and times.

Counts and percentiles are gathered as results pass. Knows no model.
"""

import dataclasses
import importlib.metadata
import json
import platform
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from trimtok_cli import __version__
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Comparison, Result, Seconds, Setting
from trimtok_cli.outputs.destination import Destination
from trimtok_cli.outputs.whole_files import write_whole

STAGES = tuple(field.name for field in dataclasses.fields(Seconds))


class RunSummary:
    """Counts and times of a run with one setting.

    The times of each step are kept as a list of floats: 56 bytes a sample.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
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
        return {"settings": [self.setting.as_dict()], **self.figures()}

    def figures(self) -> dict[str, Any]:
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


class ComparisonSummary:
    """Counts and times of a run with several settings, for each setting."""

    def __init__(self, settings: Sequence[Setting]) -> None:
        self.each = [RunSummary(setting) for setting in settings]
        self.started = self.each[0].started
        self.samples = self.failed = 0

    def add(self, comparison: Comparison) -> None:
        self.samples += 1
        self.failed += any(result.error for result in comparison.results)
        for summary, result in zip(self.each, comparison.results, strict=True):
            summary.add(result)

    def as_dict(self) -> dict[str, Any]:
        return {
            "counts": {"done": self.samples - self.failed, "failed": self.failed},
            "settings": [each.setting.as_dict() | each.figures() for each in self.each],
        }


class Manifest:
    """run.json of one run: written when the run begins, and whole again when it ends.

    facts: run, command, model, and any other facts that only the caller knows. The file says that
    the run is not over until `interrupted` is set to False.
    """

    def __init__(
        self,
        destination: Destination,
        config: RunConfig,
        summary: RunSummary | ComparisonSummary,
        facts: Mapping[str, Any],
    ) -> None:
        self.destination, self.config, self.summary = destination, config, summary
        self.facts, self.interrupted = facts, True

    @property
    def names(self) -> dict[str, str]:
        """The names that every record repeats: model and run."""
        return {"model": self.config.model, "run": self.facts["run"]}

    def write(self) -> None:
        """Writes the file whole or not at all; writes nothing if answers go to standard output."""
        if self.destination.manifest is None:
            return
        document = {
            "interrupted": self.interrupted,
            **self.facts,
            "trimtok": __version__,
            "started": self.summary.started,
            "config": dataclasses.asdict(self.config),
            "versions": versions(),
            **self.summary.as_dict(),
        }
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        write_whole(self.destination.manifest, text)


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

    def at(share: float) -> float:
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    return {
        name: round(1000 * v, 3)
        for name, v in (
            ("p50", statistics.median(ordered)),
            ("p90", at(0.9)),
            ("mean", statistics.fmean(ordered)),
        )
    }
