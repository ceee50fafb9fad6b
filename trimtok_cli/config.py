"""The settings of a run: defaults < YAML (--config) < environment (TRIMTOK_*) < flags. An unknown
key is an error.

Knows no model and no method; `keep` and method parameters stay as the user wrote them until the
pruner reads them.
"""

import dataclasses
import math
import os
import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from trimtok_cli.bounds import check_number, flag, like, setting
from trimtok_cli.data import LENGTH, Sampling
from trimtok_cli.errors import UsageError
from trimtok_cli.wording import brief, suggestion
from trimtok_cli.yaml_text import MOST_CHARACTERS, load

CAPTION_PROMPT = "Describe the image in one sentence."

YES_OR_NO = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}

_WORDS = {
    bool: "true or false",
    float: "a number",
    int: "a whole number",
    str: "text",
    dict: "names and values",
}

PREFIX = "TRIMTOK_"  # of environment variables

PRESETS = tuple(
    path
    for path in (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")
    if path.is_dir()
)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes; run.json holds it as it was resolved. UsageError
    where a value does not fit.

    A bound is where a larger value means nothing more, or a mistake: no model reads 10,000 frames.
    """

    model: str = setting("llava-1.5-7b", path=True)
    revision: str = setting("", empty=True)
    trust_remote_code: bool = setting(False)
    device: str = setting("auto")
    dtype: str = setting("auto")
    method: str = setting("trimtokenator")
    keep: str = setting("11.1%")  # the paper's headline: 64 of 576, 320 of 2880
    params: dict[str, Any] = field(default_factory=dict)
    prompt: str = setting(CAPTION_PROMPT)
    system: str = setting("", empty=True)
    budget: str = setting("equal", choices=("equal", "tokens", "diversity"))
    budget_counts: str = setting("final", choices=("final", "layer-mean"))
    frames: int = setting(8, least=1, most=10_000)
    fps: float = setting(
        0.0, least=0, most=1000
    )  # 0 is: `frames` of them, whatever the video's length
    start: float = setting(0.0, least=0, most=10**7)
    end: float = setting(0.0, least=0, most=10**7)  # 0 is the video's end
    video_backend: str = setting("auto", choices=("auto", "decord", "pyav"))
    video_as: str = setting("auto", choices=("auto", "video", "frames"))
    video_timeout: float = setting(120.0, above=0, most=86_400)
    clip_text: str = setting("", empty=True, path=True)
    max_pixels: int = setting(0, least=0, most=10**10)  # 0 is no limit of ours
    batch_size: int | str = setting(1, least=1, most=4096)  # or auto
    decode: str = setting("continuous", choices=("continuous", "simple"))
    workers: int | str = setting("auto", least=0, most=256)
    timeout: float = setting(120.0, above=0, most=86_400)
    max_new_tokens: int | None = setting(
        None, **LENGTH
    )  # None, here and below: what the checkpoint says
    temperature: float | None = like(Sampling, "temperature")
    top_p: float | None = like(Sampling, "top_p")
    top_k: int | None = like(Sampling, "top_k")
    repetition_penalty: float | None = like(Sampling, "repetition_penalty")
    greedy: bool = like(Sampling, "greedy")
    seed: int = like(Sampling, "seed")
    limit: int = setting(0, least=0, most=10**12)  # 0 is no limit
    sources: dict[str, str] = field(
        default_factory=dict, init=False, compare=False
    )  # who said what; the rest are defaults

    @property
    def rows(self) -> int | None:
        """The batch size; None for auto."""
        return None if self.batch_size == "auto" else self.batch_size

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            self.temperature,
            self.top_p,
            self.seed,
            self.top_k,
            self.repetition_penalty,
            self.greedy,
        )

    def __post_init__(self) -> None:
        for each in (each for each in dataclasses.fields(self) if each.init):
            _check(each, getattr(self, each.name), flag(each.name))
        if self.end and self.end <= self.start:
            raise UsageError(
                f"--end must be later than --start, got {self.end:g} and {self.start:g} seconds."
            )
        self.sampling  # noqa: B018 which says what is wrong with it


def resolve(
    flags: Mapping[str, Any], config: str | None = None, environ: Mapping[str, str] = os.environ
) -> RunConfig:
    """Lay the sources over each other; a flag that is None was not given. Raises UsageError."""
    fields = {f.name: f for f in dataclasses.fields(RunConfig) if f.init}
    given: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if config is not None:
        path, values = read_yaml(config, as_text=fields.keys() - {"params"})
        for key in values:
            if key not in fields:
                near = suggestion(key, fields)
                raise UsageError(
                    f"{path}: unknown key {brief(key)!r}{near}; known keys are {', '.join(fields)}."
                )
        given |= {
            key: _convert(fields[key], value, f"{path}: {key} ({flag(key)})")
            for key, value in values.items()
        }
        sources |= dict.fromkeys(given, "config file")
    for variable, value in environ.items():
        if variable.startswith(PREFIX) and value:
            key = variable.removeprefix(PREFIX).lower()
            if key not in fields:
                known = [PREFIX + name.upper() for name in fields]
                raise UsageError(
                    f"environment variable {brief(variable)} is no "
                    f"setting{suggestion(variable, known)}; settings are "
                    f"{PREFIX} and one of {', '.join(fields).upper()}."
                )
            given[key] = _convert(fields[key], value, f"environment variable {variable}")
            sources[key] = "environment"
    for key, value in flags.items():
        if value is not None:
            value = _convert(fields[key], value, flag(key))
            given[key] = given.get(key, {}) | value if key == "params" else value
            sources[key] = "flag"
    _settle(given, sources)
    config = RunConfig(**given)
    config.sources.update(
        {key: source for key, source in sources.items() if given[key] is not None}
    )
    return config


def _settle(given: dict[str, Any], sources: dict[str, str]) -> None:
    """Of greedy and a temperature, which contradict each other, what is said nearer to the run
    holds; of one place both stay.
    """
    if given.get("greedy") and given.get("temperature"):
        order = ["config file", "environment", "flag"]
        far, near = sorted(("greedy", "temperature"), key=lambda name: order.index(sources[name]))
        if sources[far] != sources[near]:
            del given[far], sources[far]


def read_yaml(
    name: str, *, inside: str = ".", flag: str = "--config", as_text: Collection[str] = ()
) -> tuple[str, dict[str, Any]]:
    """A YAML file by path, or a shipped preset by its name (`llava-1.5-7b`); presets lie in the
    folder `inside` of configs/.

    as_text: keys whose values are taken as they are written, not as YAML's numbers and truth
    values.
    """
    path, where = Path(name), f"{flag} {brief(name)}"
    if not name.strip():
        raise UsageError(f"{flag} must not be empty: name a YAML file or a preset.")
    try:
        if not path.is_file():
            named = [folder / inside / f"{name.removesuffix('.yaml')}.yaml" for folder in PRESETS]
            path = next((p for p in named if p.is_file()), path)
        if not path.is_file() and os.path.lexists(name):
            raise UsageError(
                f"{where}: is no plain file; write the settings into a YAML file and name that."
            )
        if not path.is_file():
            known = sorted({p.stem for folder in PRESETS for p in (folder / inside).glob("*.yaml")})
            raise UsageError(
                f"{where}: there is no such file, and no preset of that name; presets are "
                f"{', '.join(known)}."
            )
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a name that no file can have
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"{where}: cannot be read as YAML ({reason}).") from None
    values = load(text, f"{where}:", as_text=as_text)
    if not isinstance(values, dict):
        raise UsageError(f"{where}: must hold `key: value` lines.")
    found = {str(key).replace("-", "_"): value for key, value in values.items()}
    if len(found) < len(values):
        raise UsageError(f"{where}: holds one key twice, with - and with _; keep one of them.")
    return str(path), found


def parse_params(pairs: list[str] | None) -> dict[str, Any] | None:
    """`["pool=0.9", "align=cosine"]` -> a dict, values read as YAML."""
    if not pairs:
        return None
    params = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(
                f"--param {brief(pair)}: write it as NAME=VALUE, for example --param pool=0.9."
            )
        params[key.strip()] = load(value, f"--param {brief(pair)}")
    return params


def _convert(wanted: dataclasses.Field, value: Any, where: str) -> Any:
    """The value in the field's own type, and within its bounds. A text is read as a number where
    one is wanted.
    """
    if wanted.name == "params" and isinstance(value, str):
        value = load(value, where)
    kinds = _kinds(wanted)
    if isinstance(value, str):
        text = value.strip()
        if bool in kinds:
            value = YES_OR_NO.get(text.lower(), value)
        elif not (str in kinds and (text == "auto" or len(kinds) == 1)):
            value = _number(int if int in kinds else float, text, value)
        elif len(kinds) > 1:
            value = text
    elif (
        str in kinds
        and len(kinds) == 1
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
    ):
        value = str(value) if abs(value) < 2**63 else value
    elif int in kinds and isinstance(value, float) and value.is_integer():
        value = int(value)
    _check(wanted, value, where)
    return float(value) if float in kinds and isinstance(value, int) else value


def _number(kind: type, text: str, value: str) -> Any:
    """The number that a text says; the text itself where it says none, for the check to refuse."""
    try:
        return kind(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return value
    return int(number) if number.is_integer() else value


def _check(wanted: dataclasses.Field, value: Any, where: str) -> None:
    """UsageError where a value is not of the field's type or not within its bounds."""
    kinds, bounds = _kinds(wanted), wanted.metadata
    if wanted.type == dict[str, Any]:
        return _check_params(value, where)
    if value is None and type(None) in get_args(wanted.type):
        return None
    if isinstance(value, str) and str in kinds:
        if len(kinds) > 1 and value == "auto":
            return None
        if len(kinds) == 1:
            return _check_text(bounds, value, where)
    auto = "auto or " * (len(kinds) > 1 and str in kinds)
    fits = isinstance(value, (*kinds, int) if float in kinds else kinds) and isinstance(
        value, bool
    ) == (bool in kinds)
    if not fits or isinstance(value, str):
        said = next(word for kind, word in _WORDS.items() if kind in kinds)
        raise UsageError(f"{where} must be {auto}{said}, got {brief(value)}.")
    check_number(bounds, value, f"{where} must be {auto}".rstrip())


def _check_text(bounds: Mapping[str, Any], value: str, where: str) -> None:
    if "\0" in value:
        raise UsageError(f"{where} must not hold a NUL character.")
    if not bounds.get("path") and value.encode("utf-8", "replace") != value.encode(
        "utf-8", "surrogatepass"
    ):
        raise UsageError(
            f"{where} holds bytes that are no UTF-8, or half a character; write it as UTF-8 text."
        )
    if not value.strip() and not bounds.get("empty", True):
        raise UsageError(f"{where} must not be empty.")
    if bounds.get("choices") and value not in bounds["choices"]:
        near = suggestion(value, bounds["choices"])
        raise UsageError(
            f"{where} must be one of {', '.join(bounds['choices'])}, got {brief(value)!r}{near}."
        )
    if bounds.get("path") and value.startswith("~"):
        try:
            Path(value).expanduser()
        except RuntimeError:
            raise UsageError(
                f"{where} {brief(value)}: there is no such user; write the path in full."
            ) from None


def _check_params(value: Any, where: str) -> None:
    """Names with plain values: what a method makes of them is its own affair."""
    odd = (
        [key for key in value if not (isinstance(key, str) and key)]
        if isinstance(value, dict)
        else []
    )
    if odd or not isinstance(value, dict):
        got = f"the name {brief(odd[0])!r}, which is no text" if odd else brief(value)
        raise UsageError(
            f"{where} must hold names and values, for example {{pool: 0.9}}, got {got}."
        )
    waiting = [(f"{where}: {brief(key)}", each) for key, each in value.items()]
    while waiting:
        name, each = waiting.pop()
        if isinstance(each, (list, tuple)):
            waiting += [(name, item) for item in each]
        elif isinstance(each, dict):
            _check_params(each, name)
        elif isinstance(each, float) and not math.isfinite(each):
            raise UsageError(f"{name} must be a finite number, got {each}.")
        elif isinstance(each, int) and abs(each) >= 2**63:
            raise UsageError(f"{name} is too large a number, got {brief(each)}.")
        elif not isinstance(each, (str, int, float, type(None))):
            raise UsageError(
                f"{name} must be a number, text or true or false, got {brief(each)}; put it "
                "in quotes to mean text."
            )


def _kinds(wanted: dataclasses.Field) -> tuple[type, ...]:
    """The types that a field may have: (int, str) of `int | str`, (float,) of `float | None`."""
    union = isinstance(wanted.type, types.UnionType)
    return (
        tuple(kind for kind in get_args(wanted.type) if kind is not type(None))
        if union
        else (wanted.type,)
    )
