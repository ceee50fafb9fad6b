"""The Typer app, with its commands. `commands/terminal/exit.py` turns errors into exit codes."""

from typing import Annotated

import typer

from trimtok_cli import __version__
from trimtok_cli.commands import (
    bench,
    caption,
    check,
    compare,
    env,
    evaluate,
    export,
    merge,
    methods,
    models,
    report,
    score,
    serve,
    sweep,
    vqa,
)
from trimtok_cli.interrupts import protected

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Caption images and answer questions about them with most visual tokens pruned away.",
    epilog="Exit codes: 0 all well, 1 failure, 2 wrong usage or nothing found, 3 finished with "
    "failed items, 130 interrupted.",
)

app.command("caption", epilog=caption.EXAMPLES, no_args_is_help=True)(caption.caption)

app.command("vqa", epilog=vqa.EXAMPLES, no_args_is_help=True)(vqa.vqa)

app.command("compare", epilog=compare.EXAMPLES, no_args_is_help=True)(compare.compare)

app.command("report", epilog=report.EXAMPLES, no_args_is_help=True)(report.report)

app.command("evaluate", epilog=evaluate.EXAMPLES, no_args_is_help=True)(evaluate.evaluate)

app.command("sweep", epilog=sweep.EXAMPLES, no_args_is_help=True)(sweep.sweep)

app.command("check", epilog=check.EXAMPLES, no_args_is_help=True)(check.check)

app.command("export", epilog=export.EXAMPLES, no_args_is_help=True)(export.export)

app.command("score", epilog=score.EXAMPLES, no_args_is_help=True)(score.score)

app.command("merge", epilog=merge.EXAMPLES, no_args_is_help=True)(merge.merge)

app.command("serve", epilog=serve.EXAMPLES, no_args_is_help=True)(serve.serve)

app.command("bench", epilog=bench.EXAMPLES)(bench.bench)

app.command("models", epilog=models.EXAMPLES)(models.models)

app.command("methods", epilog=methods.EXAMPLES)(methods.methods)

app.command("env", epilog=env.EXAMPLES)(env.env)


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
