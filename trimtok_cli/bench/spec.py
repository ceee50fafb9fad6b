"""What a benchmark's YAML asks for. An unknown key is an error that names the right one. Knows no
torch and no model.

Lists may be written as single values: `batch: 8` is `batch: [8]`.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtok_cli.config import CAPTION_PROMPT, read_yaml
from trimtok_cli.errors import UsageError
from trimtok_cli.wording import brief, suggestion

Numbers, Names = tuple[int, ...], tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """What every measurement with a model says: which one, what it is shown, how it is pruned.

    image: `WIDTHxHEIGHT` of a picture to make, or an image file, or a folder of them. params are of
    the method.
    """

    model: str = ""
    method: str = "trimtokenator"
    keep: str = "11.1%"
    params: dict[str, Any] = field(default_factory=dict)
    image: str = "640x480"
    prompt: str = CAPTION_PROMPT


@dataclass(frozen=True)
class Grid(Task):
    """Every model x batch x new tokens x decode; in each of these cells dense and every method x
    keep, in turn.

    reference: figures of others to print beside, `{source: ..., rows: {SETTING: {latency_ms: ...,
    memory_gib: ...}}}`, where a SETTING is `dense` or `METHOD@KEEP`.
    """

    model: Names = ()
    method: Names = ("trimtokenator",)
    keep: Names = ("11.1%",)
    batch: Numbers = (1,)
    new_tokens: Numbers = (16,)
    decode: Names = ("continuous",)
    rounds: int = 0  # 0 is the benchmark's
    reference: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PrunerPart:
    """The paper's greedy stage, literally, against ours: `candidates` tokens of `width` numbers,
    `keep` of them chosen.
    """

    candidates: int = 2304
    keep: int = 288
    width: int = 4096
    batch: int = 1


@dataclass(frozen=True)
class DecodePart(Task):
    """Our decode loops against transformers' own `generate` on the same embeddings."""

    batch: Numbers = (1,)
    new_tokens: int = 32


@dataclass(frozen=True)
class OverheadPart(Task):
    """A whole run, from files to answers: its samples a second, and the share of it that is no
    arithmetic of the model.
    """

    method: Names = ("dense", "trimtokenator")
    batch: Numbers = (1,)
    new_tokens: int = 16
    samples: int = 32


@dataclass(frozen=True)
class MemoryPart(Task):
    """Resident memory of a whole run after each of `inputs` inputs."""

    inputs: Numbers = (200, 20000)
    batch: int = 8
    new_tokens: int = 2


PARTS = ("grid", "pruner", "decode", "overhead", "memory")


@dataclass(frozen=True)
class Bench:
    """A whole benchmark. models: descriptions of architectures by name, beside those in
    configs/bench/models.

    random_weights: models are built from such descriptions and not loaded. warmups: runs of each
    shape thrown away.
    """

    grid: tuple[Grid, ...] = ()
    pruner: tuple[PrunerPart, ...] = ()
    decode: tuple[DecodePart, ...] = ()
    overhead: tuple[OverheadPart, ...] = ()
    memory: tuple[MemoryPart, ...] = ()
    models: dict[str, Any] = field(default_factory=dict)
    random_weights: bool = False
    device: str = "auto"
    dtype: str = "auto"
    rounds: int = 5
    warmups: int = 3
    seed: int = 0

    def described(self, name: str) -> Mapping[str, Any]:
        """The architecture of a model: from the benchmark's own, or from a file."""
        return (
            self.models[name]
            if name in self.models
            else read_yaml(name, inside="bench/models", flag="model")[1]
        )

    @property
    def tasks(self) -> list[Task]:
        """Every measurement with a model."""
        return [*self.grid, *self.decode, *self.overhead, *self.memory]

    def model_names(self) -> list[str]:
        """Of all measurements, each once, in the order in which they are first asked for."""
        names = [
            name
            for task in self.tasks
            for name in ([task.model] if isinstance(task.model, str) else task.model)
        ]
        return list(dict.fromkeys(names))

    def images(self) -> list[str]:
        """What the measurements show, each once: sizes, files and folders."""
        return list(dict.fromkeys(task.image for task in self.tasks))


def read_bench(name: str, **flags: Any) -> Bench:
    """A file, or a preset of configs/bench by its name; flags that are not None replace its
    settings. Raises UsageError.
    """
    path, values = read_yaml(name, inside="bench", flag="PRESET")
    return build(
        Bench,
        {**values, **{key: value for key, value in flags.items() if value is not None}},
        Path(path).name,
    )


def build(kind: type, values: Any, where: str) -> Any:
    """A dataclass of this file from plain values."""
    if not isinstance(values, Mapping):
        raise UsageError(f"{where} must hold `key: value` lines, got {brief(values)}.")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    given = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in fields:
            near = suggestion(name, fields)
            raise UsageError(
                f"{where}: unknown key {brief(name)!r}{near}; known keys are {', '.join(fields)}."
            )
        given[name] = _convert(fields[name].type, value, f"{where}: {name}")
    made = kind(**given)
    _check(made, where)
    return made


def _convert(wanted: Any, value: Any, where: str) -> Any:
    """The value in a field's type."""
    item = wanted.__args__[0] if getattr(wanted, "__origin__", None) is tuple else None
    if item is not None:
        values = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_convert(item, each, where) for each in values)
    if dataclasses.is_dataclass(wanted):
        return build(wanted, value, where)
    if getattr(wanted, "__origin__", wanted) is dict:
        if not isinstance(value, dict):
            raise UsageError(f"{where} must hold names and values, got {brief(value)}.")
        return value
    whole = isinstance(value, int) and not isinstance(value, bool)
    fits = {
        int: whole,
        bool: isinstance(value, bool),
        str: isinstance(value, (str, int, float)) and not isinstance(value, bool),
    }
    if not fits[wanted]:
        kind = {int: "a whole number", bool: "true or false", str: "text"}[wanted]
        raise UsageError(f"{where} must be {kind}, got {brief(value)}.")
    return wanted(value)


LEAST = {"rounds": 0, "warmups": 0, "seed": 0}  # every other number is at least 1

MOST = 10**9


def _check(made: Any, where: str) -> None:
    for each in dataclasses.fields(made):
        value = getattr(made, each.name)
        numbers = [n for n in (value if isinstance(value, tuple) else [value]) if type(n) is int]
        if any(n < LEAST.get(each.name, 1) for n in numbers):
            raise UsageError(
                f"{where}: {each.name} must be at least {LEAST.get(each.name, 1)}, got "
                f"{brief(min(numbers))}."
            )
        if any(n > MOST for n in numbers):
            raise UsageError(
                f"{where}: {each.name} must be at most {MOST:,}, got {brief(max(numbers))}."
            )
        if each.name == "model" and not value:
            raise UsageError(f"{where} names no model.")
        if (
            each.name == "image"
            and re.fullmatch(r"\d+x\d+", value) is None
            and not Path(value).exists()
        ):
            raise UsageError(
                f"{where}: image must be WIDTHxHEIGHT, or a file or folder that is there, "
                f"got {brief(value)!r}."
            )
    if isinstance(made, Bench) and not made.rounds:
        raise UsageError(f"{where}: rounds must be at least 1.")
    if isinstance(made, Bench) and not (
        made.grid or made.pruner or made.decode or made.overhead or made.memory
    ):
        raise UsageError(
            f"{where} measures nothing: give it a grid, or a pruner, decode, overhead or "
            "memory part."
        )
