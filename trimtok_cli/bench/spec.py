"""The records that a benchmark's YAML is read into. Knows no torch and no model.

An unknown key is an error that names the right one. A list of one may be written as a single value:
`batch: 8` is `batch: [8]`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from trimtok_cli.bounds import like, setting
from trimtok_cli.config import RunConfig
from trimtok_cli.errors import UsageError
from trimtok_cli.resolve import build
from trimtok_cli.wording import brief
from trimtok_cli.yaml_text import read_yaml

MOST = 10**9

number = partial(setting, least=1, most=MOST)


@dataclass(frozen=True)
class Task:
    """The settings of every measurement with a model: the model, its image, and its pruning.

    image: `WIDTHxHEIGHT` of a picture to make, or an image file, or a folder of them. params: the
    method's parameters.
    """

    model: str = ""
    method: str = like(RunConfig, "method")
    keep: str = like(RunConfig, "keep")
    params: dict[str, Any] = field(default_factory=dict)
    image: str = "640x480"
    prompt: str = like(RunConfig, "prompt")


@dataclass(frozen=True)
class Grid(Task):
    """A cell for every model x batch x new tokens x decode.

    Each cell measures dense and every method x keep, in turn. reference: published figures to print
    beside, `{source: ..., rows: {SETTING: {latency_ms: ..., memory_gib: ...}}}`; a SETTING is
    `dense` or `METHOD@KEEP`.
    """

    model: tuple[str, ...] = ()
    method: tuple[str, ...] = like(RunConfig, "method", default=(RunConfig.method,))
    keep: tuple[str, ...] = like(RunConfig, "keep", default=(RunConfig.keep,))
    batch: tuple[int, ...] = number((1,))
    new_tokens: tuple[int, ...] = number((16,))
    decode: tuple[str, ...] = like(RunConfig, "decode", default=(RunConfig.decode,))
    rounds: int = setting(0, least=0, most=MOST)  # 0 takes the benchmark's own
    reference: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PrunerPart:
    """The paper's greedy stage in its reference form against ours.

    `keep` tokens are chosen of `candidates` tokens, each of `width` numbers.
    """

    candidates: int = number(2304)
    keep: int = number(288)
    width: int = number(4096)
    batch: int = number(1)


@dataclass(frozen=True)
class DecodePart(Task):
    """Our decode loops against transformers' own `generate` on the same embeddings."""

    batch: tuple[int, ...] = number((1,))
    new_tokens: int = number(32)


@dataclass(frozen=True)
class OverheadPart(Task):
    """A whole run, from files to answers: samples a second, and the time outside the model.

    workers: processes that prepare samples, as in a run; `auto` is a run's own number.
    """

    method: tuple[str, ...] = like(RunConfig, "method", default=("dense", RunConfig.method))
    batch: tuple[int, ...] = number((1,))
    new_tokens: int = number(16)
    samples: int = number(32)
    workers: int | str = like(RunConfig, "workers")


@dataclass(frozen=True)
class MemoryPart(Task):
    """Resident memory of a whole run after each of `inputs` inputs."""

    inputs: tuple[int, ...] = number((200, 20000))
    batch: int = number(8)
    new_tokens: int = number(2)


@dataclass(frozen=True)
class CountsPart(Task):
    """Launches, bytes, FLOPs and waits of each stage, counted without a device."""

    method: tuple[str, ...] = like(RunConfig, "method", default=("dense", RunConfig.method))
    batch: tuple[int, ...] = number((1,))


@dataclass(frozen=True)
class SchedulePart:
    """A run of the continuous loop without a model: recordings, and slots that a step uses.

    prompt: tokens of a prompt, from the first number to the second. answer: tokens of an answer,
    as mean and standard deviation, at most `longest`.
    """

    title: str = ""
    samples: int = number(256)
    batch: int = number(64)
    prompt: tuple[int, ...] = number((101, 101))
    answer: tuple[int, ...] = setting((60, 20), least=0, most=MOST)
    longest: int = number(128)


PARTS = ("grid", "pruner", "decode", "overhead", "memory", "counts", "schedule")


@dataclass(frozen=True)
class Bench:
    """A whole benchmark.

    models: descriptions of architectures by name, besides the files in configs/bench/models.
    random_weights: models are built from such descriptions and not loaded. warmups: runs of each
    shape that are not counted.
    """

    grid: tuple[Grid, ...] = ()
    pruner: tuple[PrunerPart, ...] = ()
    decode: tuple[DecodePart, ...] = ()
    overhead: tuple[OverheadPart, ...] = ()
    memory: tuple[MemoryPart, ...] = ()
    counts: tuple[CountsPart, ...] = ()
    schedule: tuple[SchedulePart, ...] = ()
    models: dict[str, Any] = field(default_factory=dict)
    random_weights: bool = setting(
        False, "Build models of the real size instead of loading them; no hub, no network."
    )
    device: str = like(RunConfig, "device")
    dtype: str = like(RunConfig, "dtype")
    rounds: int = number(5, "Times that everything is measured.", shown="the preset's")
    warmups: int = setting(3, least=0, most=MOST)
    seed: int = like(RunConfig, "seed", most=MOST)

    def described(self, name: str) -> Mapping[str, Any]:
        """The architecture of a model, from `models` or from a file."""
        return (
            self.models[name]
            if name in self.models
            else read_yaml(name, inside="bench/models", flag="model")[1]
        )

    @property
    def tasks(self) -> list[Task]:
        """Every measurement with a model."""
        return [*self.grid, *self.decode, *self.overhead, *self.memory, *self.counts]

    def model_names(self) -> list[str]:
        """The models of all measurements, each once, in the order in which they are first named."""
        names = [
            name
            for task in self.tasks
            for name in ([task.model] if isinstance(task.model, str) else task.model)
        ]
        return list(dict.fromkeys(names))

    def images(self) -> list[str]:
        """The images of all measurements, each once: sizes, files and folders."""
        return list(dict.fromkeys(task.image for task in self.tasks))


def read_bench(
    file: str, flags: Mapping[str, Any] | None = None, record: type[Bench] = Bench
) -> Bench:
    """The benchmark of a file, or of a preset of configs/bench by its name. Raises UsageError.

    Flags that are not None replace the settings of the file.
    """
    path, values = read_yaml(file, inside="bench", flag="PRESET")
    where = Path(path).name
    bench = build(record, values, where, flags)
    for part in ("grid", "decode", "overhead", "memory", "counts"):
        for task in getattr(bench, part):
            _check_task(task, f"{where}: {part}")
    if not any(getattr(bench, part) for part in PARTS):
        raise UsageError(
            f"{where} measures nothing: give it a grid, or a pruner, decode, overhead, "
            "memory, counts or schedule part."
        )
    return bench


def _check_task(task: Task, where: str) -> None:
    if not task.model:
        raise UsageError(f"{where} names no model.")
    if re.fullmatch(r"\d+x\d+", task.image) is None and not Path(task.image).exists():
        raise UsageError(
            f"{where}: image must be WIDTHxHEIGHT, or a file or folder that is there, "
            f"got {brief(task.image)!r}."
        )
