"""run.json: the command, the settings and versions of a run, and its counts and times.

Counts and percentiles are gathered as results pass. Knows no model.
"""

import dataclasses
import importlib.metadata
import json
import platform
import statistics
import time
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from trimtok_cli import __version__
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Comparison, Result, Setting
from trimtok_cli.outputs.destination import Destination
from trimtok_cli.outputs.flags import loops
from trimtok_cli.outputs.read_back import STAGES, Lines
from trimtok_cli.outputs.whole_files import write_whole


class RunSummary:
    """Counts and times of a run with one setting.

    The times of each step are kept, in milliseconds: 48 bytes a sample. answered: the samples of
    this process alone, which its throughput counts.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.started, self.start = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.perf_counter()
        self.done = self.failed = self.warned = self.visual = self.kept = self.generated = (
            self.peak_bytes
        ) = 0
        self.answered = self.generated_before = self.looped = 0
        self.finish: Counter[str] = Counter()
        self.times = {stage: array("d") for stage in STAGES}

    def add_lines(self, lines: Lines) -> None:
        """Counts answers of an earlier run, which this one goes on with."""
        self.finish.update(lines.finish)
        self.done += len(lines.keys)
        self.looped += sum(lines.loops)
        self.warned += sum(lines.warned)
        self.visual += sum(lines.visual)
        self.kept += sum(lines.kept)
        self.generated += sum(lines.generated)
        self.generated_before += sum(lines.generated)
        for stage, ms in zip(STAGES, lines.ms, strict=True):
            self.times[stage].extend(ms)

    def count_failed(self, number: int) -> None:
        """Sets the number of failed samples, those of earlier runs that still stand among them."""
        self.failed = self.finish["error"] = number

    def add(self, result: Result) -> None:
        self.answered += 1
        self.finish[result.finish] += 1
        if result.error:
            self.failed += 1
            return
        self.done += 1
        self.warned += bool(result.warnings)
        self.looped += loops(result.answer)
        self.visual += result.tokens.visual
        self.kept += result.tokens.kept
        self.generated += result.tokens.generated
        self.peak_bytes = max(self.peak_bytes, result.peak_bytes)
        for stage in STAGES:
            self.times[stage].append(1000 * getattr(result.seconds, stage))

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def as_dict(self) -> dict[str, Any]:
        return {"settings": [self.setting.as_dict()], **self.figures()}

    def counts(self) -> dict[str, Any]:
        """What the answers themselves say, whichever process gave them."""
        return {
            "counts": {
                "done": self.done,
                "failed": self.failed,
                "with_warnings": self.warned,
                "cut_off": self.finish["length"],
                "loops": self.looped,
                "finish_reason": dict(sorted((+self.finish).items())),
            },
            "visual_tokens": {"dense": self.visual, "kept": self.kept},
            "generated_tokens": self.generated,
            "timing_ms": {stage: _percentiles(values) for stage, values in self.times.items()},
        }

    def figures(self) -> dict[str, Any]:
        seconds = self.seconds
        return self.counts() | {
            "throughput": {
                "seconds": round(seconds, 3),
                "samples": self.answered,
                "samples_per_second": round(self.answered / seconds, 3),
                "generated_tokens_per_second": round(
                    (self.generated - self.generated_before) / seconds, 3
                ),
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

    def add_earlier(self, comparison: Comparison) -> None:
        """Counts a comparison of an earlier process, which this one's throughput leaves out."""
        self.add(comparison)
        for summary, result in zip(self.each, comparison.results, strict=True):
            summary.answered -= 1
            summary.generated_before += result.tokens.generated

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

    def document(self) -> dict[str, Any]:
        """What the file holds as the run stands now."""
        return {
            "interrupted": self.interrupted,
            **self.facts,
            "trimtok": __version__,
            "started": self.summary.started,
            "config": dataclasses.asdict(self.config),
            "versions": versions(),
            **self.summary.as_dict(),
        }

    def write(self) -> None:
        """Writes the file whole or not at all; writes nothing if answers go to standard output."""
        write_document(self.destination, self.document())


def write_document(destination: Destination, document: Mapping[str, Any]) -> None:
    """Writes run.json, whole or not at all; nothing if answers go to standard output."""
    if destination.manifest is not None:
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        write_whole(destination.manifest, text)


@cache
def versions() -> Mapping[str, str]:
    """Python, the platform, and the packages whose version can change an answer."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("torch", "torchvision", "transformers", "tokenizers", "pillow", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {"p50": 0.0, "p90": 0.0, "mean": 0.0}
    ordered = sorted(values)

    def at(share: float) -> float:
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    return {
        name: round(v, 3)
        for name, v in (
            ("p50", statistics.median(ordered)),
            ("p90", at(0.9)),
            ("mean", statistics.fmean(ordered)),
        )
    }
