"""The options of commands. An option that is a setting is made from its field in a record.

None is "not given": the value then comes from the config or its default.
"""

import functools
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from trimtok_cli.bounds import Facts, facts_of, flag, kinds_of
from trimtok_cli.commands.format_options import FormatOptions
from trimtok_cli.commands.share_options import ShareOptions
from trimtok_cli.config import OUTPUT, PANELS
from trimtok_cli.errors import UsageError
from trimtok_cli.models.catalog import ALIASES
from trimtok_cli.outputs.earlier import EXISTING, FAIL, OVERWRITE, RESUME
from trimtok_cli.resolve import parse_params, resolve
from trimtok_cli.wording import brief, suggestion
from trimtok_cli.yaml_text import preset_names

Command = Callable[..., int]

METHOD_NAME = re.compile(r'^    name: ClassVar\[str\] = "(.+)"$', re.MULTILINE)


def method_names() -> list[str]:
    """The names of the methods, read from their files: importing the registry takes seconds."""
    folder = Path(__file__).parent.parent / "pruners" / "methods"
    texts = (path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
    return ["dense", *(name for text in texts for name in METHOD_NAME.findall(text))]


OFFERED = {  # values that a shell completes, for settings that take more than their choices
    "model": tuple(ALIASES),
    "device": ("auto", "cuda", "mps", "cpu"),
    "method": tuple(method_names()),
    "keep": ("all",),
    "batch_size": ("auto",),
    "workers": ("auto",),
}


def _output(*names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=OUTPUT, help=help, **more)


def completing(names: Iterable[str]) -> Callable[[str], list[str]] | None:
    """The shell completion of these names; in a list with commas, the last name is completed."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in names if name.startswith(last)]

    return complete if names else None


Out = Annotated[
    str | None,
    _output(
        "--out",
        "-o",
        help="A folder, a .jsonl file, or - for standard output.",
        show_default="a new folder in trimtok-out",
    ),
]

Overwrite = Annotated[bool, _output("--overwrite", help="Replace answers that are already there.")]

Existing = Annotated[
    str,
    _output(
        "--existing",
        help="Where answers are already there: resume (go on with that run), overwrite (as "
        "--overwrite does) or fail.",
        autocompletion=completing(EXISTING),
    ),
]

KeepFailed = Annotated[
    bool,
    _output("--keep-failed", help="Going on with a run, do not try again what failed."),
]

OnlyFailed = Annotated[
    bool,
    _output("--only-failed", help="Going on with a run, try again what failed and nothing else."),
]

Config = Annotated[
    str | None,
    _output(
        "--config",
        "-c",
        help="YAML file with any of these settings, or a preset's name.",
        show_default=False,
        autocompletion=completing(preset_names()),
    ),
]

Quiet = Annotated[bool, _output("--quiet", "-q", help="Nothing but errors.")]

Verbose = Annotated[bool, _output("--verbose", "-v", help="Every answer, however many.")]

AsJson = Annotated[
    bool, _output("--json", help="One JSON object on standard output when it is done.")
]

Debug = Annotated[bool, _output("--debug", help="Tracebacks and the libraries' own warnings.")]


@dataclass(frozen=True)
class RunOptions:
    """The options of a run that are not settings: where answers go, and how much is shown."""

    out: Out = None
    overwrite: Overwrite = False
    config: Config = None
    quiet: Quiet = False
    verbose: Verbose = False
    as_json: AsJson = False
    debug: Debug = False


@dataclass(frozen=True)
class AnswerOptions(RunOptions, ShareOptions, FormatOptions):
    """The options of a run that a later run of the same command goes on with.

    Raises UsageError if they contradict each other.
    """

    existing: Existing = RESUME
    keep_failed: KeepFailed = False
    only_failed: OnlyFailed = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_existing(self.existing, self.overwrite)
        if self.keep_failed and self.only_failed:
            raise UsageError("--keep-failed and --only-failed contradict each other: give one.")
        if self.only_failed and self.if_there != RESUME:
            raise UsageError("--only-failed goes on with a run: give it without --overwrite.")

    @property
    def if_there(self) -> str:
        """What to do with answers that are already there."""
        return OVERWRITE if self.overwrite else self.existing

    @property
    def place(self) -> str | None:
        """Where the answers go: --out, or a shard's own folder in it."""
        return self.shard_folder(self.out)


def check_existing(existing: str, overwrite: bool) -> None:
    """Raises UsageError for an unknown --existing, or one that contradicts --overwrite."""
    if existing not in EXISTING:
        raise UsageError(
            f"--existing must be one of {', '.join(EXISTING)}, got {brief(existing)}"
            f"{suggestion(existing, EXISTING)}."
        )
    if overwrite and existing == FAIL:
        raise UsageError("--overwrite and --existing fail contradict each other: give one.")


def settings(
    read: Callable[..., Any] = resolve,
    *,
    file: str = "config",
    only: Collection[str] = (),
    without: Collection[str] = (),
    instead: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[Command], Command]:
    """Turns a command's parameters that are records into options.

    A record of settings has an option for each field with a help. `only` names the fields taken,
    and `instead` holds other facts for some. The command is handed `read(flags, file, record)`;
    `file` is the parameter that names the file. Any other record, such as RunOptions, has an option
    for each field. `without` names the fields left out, of any record.
    """

    def wanted(field: Field) -> bool:
        if facts_of(field).help and only:
            return field.name in only
        return field.name not in without

    def decorate(command: Command) -> Command:
        own = inspect.signature(command).parameters.values()
        options = {each.name: _options(each, wanted, instead or {}) for each in own}
        records = {each.name: each.annotation for each in own if is_dataclass(each.annotation)}

        @functools.wraps(command)
        def run(**given: Any) -> int:
            path, made = given.get(file), {}
            for name, record in records.items():
                values = {option.name: given.pop(option.name) for option in options[name]}
                made[name] = (
                    read(flags=_flags(values), file=path, record=record)
                    if _has_settings(record)
                    else record(**values)
                )
            return command(**given, **made)

        every = sorted(chain(*options.values()), key=_panel)
        run.__signature__ = inspect.Signature(every)
        run.__annotations__ = {option.name: option.annotation for option in every}
        return run

    return decorate


def _has_settings(record: type) -> bool:
    return any(facts_of(field).help for field in fields(record))


def _options(
    parameter: inspect.Parameter,
    wanted: Callable[[Field], bool],
    instead: Mapping[str, Mapping[str, Any]],
) -> list[inspect.Parameter]:
    """The options of a command's parameter: one for each field of its record, or itself."""
    record, named = parameter.annotation, inspect.Parameter.KEYWORD_ONLY
    if not is_dataclass(record):
        return [parameter.replace(kind=named)]
    if not _has_settings(record):
        return [
            inspect.Parameter(field.name, named, default=field.default, annotation=field.type)
            for field in fields(record)
            if wanted(field)
        ]
    return [
        inspect.Parameter(
            field.name,
            named,
            default=None,
            annotation=_option(field, replace(facts_of(field), **instead.get(field.name, {}))),
        )
        for field in fields(record)
        if facts_of(field).help and wanted(field)
    ]


def _option(field: Field, facts: Facts) -> Any:
    """A setting as Typer takes it; None is "not given"."""
    kinds = kinds_of(field.type)
    kind = list[str] if dict in kinds else bool if kinds == (bool,) else str
    shown = facts.shown
    if not shown and field.default and field.default is not MISSING:
        shown = f"{field.default:g}" if float in kinds else str(field.default)
    # Numbers are read by `convert`, which says what is wrong with one as it does of a file's.
    option = typer.Option(
        *(facts.flags or [flag(field)]),
        show_default=shown or False,
        rich_help_panel=facts.panel,
        help=facts.help,
        metavar=f"<{kinds[0].__name__}>" if kinds[0] in (int, float) and str not in kinds else None,
        autocompletion=completing(facts.choices or OFFERED.get(field.name, ())),
    )
    return Annotated[kind | None, option]


def _panel(parameter: inspect.Parameter) -> int:
    """The position of an option's panel in `--help`, the same order for every command."""
    panel = get_args(parameter.annotation)[1].rich_help_panel
    return PANELS.index(panel) + 1 if panel in PANELS else 0


def _flags(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options as settings: one that may be repeated holds NAME=VALUE."""
    return {
        name: parse_params(value, name) if isinstance(value, list) else value
        for name, value in values.items()
    }
