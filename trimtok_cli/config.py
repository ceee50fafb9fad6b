"""The settings of a run: defaults < YAML (--config) < environment (TRIMTOK_*) < flags. An unknown key is an error.

Knows no model and no method; `keep` and method parameters stay as the user wrote them until the pruner reads them.
"""

import dataclasses
import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any

import yaml

from trimtok_cli.errors import UsageError
from trimtok_cli.sampling import Sampling, check_length

CAPTION_PROMPT = "Describe the image in one sentence."
CHOICES = {
    "budget": ("equal", "tokens", "diversity"),
    "budget_counts": ("final", "layer-mean"),
    "video_backend": ("auto", "decord", "pyav"),
    "video_as": ("auto", "video", "frames"),
    "decode": ("continuous", "simple"),
}
YES_OR_NO = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
PRESETS = tuple(path for path in (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs") if path.is_dir())


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes; run.json holds it as it was resolved."""

    model: str = "llava-1.5-7b"
    revision: str = ""
    trust_remote_code: bool = False
    device: str = "auto"
    dtype: str = "auto"
    method: str = "trimtokenator"
    keep: str = "11.1%"  # the paper's headline: 64 of 576, 320 of 2880
    params: dict[str, Any] = field(default_factory=dict)
    prompt: str = CAPTION_PROMPT
    system: str = ""
    budget: str = "equal"
    budget_counts: str = "final"
    frames: int = 8
    fps: float = 0.0  # 0 is: `frames` of them, whatever the video's length
    start: float = 0.0
    end: float = 0.0  # 0 is the video's end
    video_backend: str = "auto"
    video_as: str = "auto"
    video_timeout: float = 120.0
    clip_text: str = ""
    max_pixels: int = 0  # 0 is no limit of ours
    batch_size: int | str = 1  # or auto
    decode: str = "continuous"
    workers: int | str = "auto"
    timeout: float = 120.0
    max_new_tokens: int | None = None  # None, here and below: what the checkpoint says
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    greedy: bool = False
    seed: int = 0
    limit: int = 0  # 0 is no limit
    sources: dict[str, str] = field(default_factory=dict, init=False, compare=False)  # who said what; the rest are defaults

    @property
    def rows(self) -> int | None:
        """The batch size; None for auto."""
        return None if self.batch_size == "auto" else self.batch_size

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.seed, self.top_k, self.repetition_penalty, self.greedy)

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{_flag(name)} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if min(self.fps, self.start, self.end) < 0 or self.video_timeout <= 0:
            raise UsageError("--fps, --start and --end must not be negative, and --video-timeout must be more than 0.")
        if not 0 < self.timeout < math.inf:
            raise UsageError(f"--timeout must be more than 0 seconds, got {self.timeout:g}.")
        if self.end and self.end <= self.start:
            raise UsageError(f"--end must be later than --start, got {self.end:g} and {self.start:g} seconds.")
        for name, least in (("workers", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if value != "auto" and value < least:
                raise UsageError(f"{_flag(name)} must be auto or at least {least}, got {value}.")
        if self.frames < 1:
            raise UsageError(f"--frames must be at least 1, got {self.frames}.")
        if min(self.limit, self.max_pixels) < 0:
            raise UsageError(f"--limit and --max-pixels must not be negative, got {self.limit} and {self.max_pixels}.")
        check_length(self.max_new_tokens)
        self.sampling  # noqa: B018 which says what is wrong with it


def resolve(flags: Mapping[str, Any], config: str | None = None, environ: Mapping[str, str] = os.environ) -> RunConfig:
    """Lay the sources over each other; a flag that is None was not given. Raises UsageError."""
    fields = {f.name: f for f in dataclasses.fields(RunConfig) if f.init}
    given: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if config:
        path, values = read_yaml(config)
        for key in values:
            if key not in fields:
                raise UsageError(f"{path}: unknown key {key!r}{_suggest(key, fields)}; known keys are {', '.join(fields)}.")
        given |= {key: _convert(fields[key], value, f"{path}: {key}") for key, value in values.items()}
        sources |= dict.fromkeys(given, "config file")
    for key in fields:
        if (value := environ.get(f"TRIMTOK_{key.upper()}")) not in (None, ""):
            given[key] = _convert(fields[key], value, f"environment variable TRIMTOK_{key.upper()}")
            sources[key] = "environment"
    for key, value in flags.items():
        if value is not None:
            value = _convert(fields[key], value, _flag(key))
            given[key] = given.get(key, {}) | value if key == "params" else value
            sources[key] = "flag"
    config = RunConfig(**given)
    config.sources.update({key: source for key, source in sources.items() if given[key] is not None})
    return config


def read_yaml(name: str, *, inside: str = ".", flag: str = "--config") -> tuple[str, dict[str, Any]]:
    """A YAML file by path, or a shipped preset by its name (`llava-1.5-7b`); presets lie in the folder `inside` of configs/."""
    path = Path(name)
    if not path.is_file():
        named = [folder / inside / f"{name.removesuffix('.yaml')}.yaml" for folder in PRESETS]
        path = next((p for p in named if p.is_file()), path)
    if not path.is_file():
        known = sorted({p.stem for folder in PRESETS for p in (folder / inside).glob("*.yaml")})
        raise UsageError(f"{flag} {name}: there is no such file, and no preset of that name; presets are {', '.join(known)}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{flag} {name}: cannot be read as YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(values, dict):
        raise UsageError(f"{flag} {name}: must hold `key: value` lines.")
    return str(path), {str(key).replace("-", "_"): value for key, value in values.items()}


def parse_params(pairs: list[str] | None) -> dict[str, Any] | None:
    """`["pool=0.9", "align=cosine"]` -> a dict, values read as YAML."""
    if not pairs:
        return None
    params = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--param {pair}: write it as NAME=VALUE, for example --param pool=0.9.")
        params[key.strip()] = yaml.safe_load(value)
    return params


def _convert(wanted: dataclasses.Field, value: Any, where: str) -> Any:
    """The value in the field's own type. YAML gives numbers where text is meant (keep: 64), the environment only text."""
    if wanted.name == "params":
        value = yaml.safe_load(value) if isinstance(value, str) else value
        if not isinstance(value, dict):
            raise UsageError(f"{where} must hold names and values, for example {{pool: 0.9}}.")
        return value
    if wanted.type is bool:
        known = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
        if (said := str(value).strip().lower()) not in known:
            raise UsageError(f"{where} must be true or false, got {value!r}.")
        return known[said]
    either = wanted.type == int | str
    if either and str(value).strip() == "auto":
        return "auto"
    may_be_none = isinstance(wanted.type, UnionType) and type(None) in wanted.type.__args__
    if may_be_none and value is None:
        return None
    if wanted.type is bool:
        if str(value).strip().lower() not in YES_OR_NO:
            raise UsageError(f"{where} must be true or false, got {value!r}.")
        return YES_OR_NO[str(value).strip().lower()]
    kind = int if either else wanted.type.__args__[0] if may_be_none else wanted.type
    try:
        if isinstance(value, (list, dict, bool)) or value is None:
            raise ValueError
        if kind is int and float(value) != int(float(value)):
            raise ValueError
        return kind(value)
    except (ValueError, TypeError, OverflowError):
        said = {int: "a whole number", float: "a number"}.get(kind, "text")
        raise UsageError(f"{where} must be {'auto or ' * either}{said}, got {value!r}.") from None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _suggest(word: str, known) -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""
