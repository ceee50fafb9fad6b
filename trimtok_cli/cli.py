"""The Typer app, with the commands and what each does; a command's module is imported when it runs.

`commands/terminal/exit.py` turns errors into exit codes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from trimtok_cli import __version__
from trimtok_cli.interrupts import protected

# Each command's help, whose first paragraph is its line in `trimtok --help`. A command is the
# function of its name in the module of its name in `commands/`.
COMMANDS = {
    "caption": "Caption images: one answer per image, in input order, with token counts and times.",
    "vqa": (
        "Answer questions about images: one answer per row, in the file's order, ready for "
        "LLaVA's scorers."
    ),
    "compare": (
        "Answer every sample dense and pruned, the vision tower run once for both, and say "
        "what changed and what it saved."
    ),
    "report": (
        "Make the page of compare from finished runs: one comparison, or several runs of answers."
    ),
    "evaluate": (
        "Run a grid of models, data sets, methods and budgets, and make its table: dense on "
        "top, the best in bold, intervals, and paired tests on the same samples."
    ),
    "sweep": (
        "Answer your own images with every budget, the vision tower run once for all of them,"
        " and name the smallest one that loses no more than you allow."
    ),
    "check": (
        "Look at everything that a run would meet, without loading weights: broken files, "
        "duplicates, rows that cannot be asked, visual tokens, memory, time, and what is at "
        "--out already."
    ),
    "export": (
        "Write the answers of a run in other formats: for scorers, trainers, tables and data sets."
    ),
    "score": "Score answers to a published benchmark, or to rows of your own, from local files.",
    "merge": "Put the shards of a run together: the files of one run, in the order of its inputs.",
    "serve": (
        "Serve a model by vLLM's OpenAI-compatible server, with the visual tokens of its "
        "images pruned by the words of the question. Ctrl-C ends it."
    ),
    "bench": (
        "Measure dense against pruned in turn, stage by stage, beside what the hardware allows."
    ),
    "models": (
        "List the models with short names: hub id, family, dense visual tokens, whether the "
        "weights are here, licence.\n\nAny other checkpoint of one of these families works "
        "too, by its hub id or folder."
    ),
    "methods": (
        "List the pruning methods, with where they prune, what they need and their papers, or"
        " say everything about one."
    ),
    "env": (
        "Show what a bug report needs: versions, devices and their memory, the hub's cache, "
        "settings of the environment."
    ),
}

# What the library of the command line raises for a wrong one.
_Misuse: type[Any] = typer.BadParameter.__base__ or typer.BadParameter

# Commands that do something without arguments.
_BARE = ("bench", "models", "methods", "env")

_SHARED: dict[str, Any] = {
    "rich_markup_mode": "rich",
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


@contextmanager
def _misuse(command: str) -> Iterator[None]:
    """Ends the program with one line where the command line is wrong, as every error does."""
    try:
        yield
    except _Misuse as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        from trimtok_cli.commands.terminal.exit import report  # only an error needs a screen
        from trimtok_cli.errors import EXIT_USAGE

        said = error.format_message().rstrip(".")
        said = f"{said[:1].lower()}{said[1:]}" + ("" if said.endswith("?") else ";")
        text = f"{said} `{command} --help` says what there is."
        raise typer.Exit(report(text, EXIT_USAGE)) from None


class _Later(TyperCommand):
    """A command by its name and help alone; its module is imported when it is called."""

    def make_context(self, info_name: str | None, args: list[str], parent=None, **extra: Any):
        with _misuse(f"trimtok {self.name}"):
            return _made(str(self.name)).make_context(info_name, args, parent, **extra)


class _Commands(TyperGroup):
    """The commands by name: `trimtok --help` and completion of a name import none of them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: _Later(name, help=told) for name, told in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        with _misuse("trimtok"):
            return super().resolve_command(ctx, args)

    def make_context(self, info_name: str | None, args: list[str], parent=None, **extra: Any):
        with _misuse("trimtok"):
            return super().make_context(info_name, args, parent, **extra)


def _made(name: str) -> Any:
    """The command itself, as Typer makes it of its function."""
    module = import_module(f"trimtok_cli.commands.{name}")
    alone = typer.Typer(add_completion=False, **_SHARED)
    alone.command(
        name, help=COMMANDS[name], epilog=module.EXAMPLES, no_args_is_help=name not in _BARE
    )(getattr(module, name))
    return typer.main.get_command(alone)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    help="Caption images and answer questions about them with most visual tokens pruned away.",
    epilog="Exit codes: 0 all well, 1 failure, 2 wrong usage or nothing found, 3 finished with "
    "failed items, 130 interrupted.",
    **_SHARED,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"trimtok {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    protected(app)
