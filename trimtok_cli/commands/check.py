"""trimtok check: what a run would meet, before a GPU is paid for. Loads no weights.

Takes the line of a run with `check` in place of `caption` or `vqa`. survey.py looks at the samples;
check_output.py at what is there already.
"""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtok_cli import __version__, interrupts
from trimtok_cli.bench.document import read_document
from trimtok_cli.bench.expected import expected
from trimtok_cli.commands import options as o
from trimtok_cli.commands.check_output import Output, output_of
from trimtok_cli.commands.engines import check_engine
from trimtok_cli.commands.session import check_stdin, count_workers, reads, tell
from trimtok_cli.commands.source_options import SourceOptions
from trimtok_cli.commands.survey import Plan, Survey, plan_of
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.commands.terminal.findings import lines_of
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import INPUT, OUTPUT, RunConfig
from trimtok_cli.errors import EXIT_OK, EXIT_SOME_FAILED, UsageError
from trimtok_cli.prepare.processes import Processes
from trimtok_cli.readers import Reading, read_any, read_questions
from trimtok_cli.readers.source import Source
from trimtok_cli.readers.templates import prompted
from trimtok_cli.wording import brief, suggestion

EXAMPLES = (
    "Examples:\n\n"
    "trimtok check ./images -r --model qwen2.5-vl-7b --keep 10%\n\n"
    "trimtok check pope.jsonl --image-root coco/val2014 -o answers --json > check.json\n\n"
    "trimtok check ./images --bench trimtok-out/bench/bench.json"
)

CAPTION, VQA = RUNS = ("caption", "vqa")

Sources = Annotated[
    list[str],
    typer.Argument(help="What `trimtok caption` or `trimtok vqa` takes.", show_default=False),
]

For = Annotated[
    str,
    typer.Option(
        "--for",
        help="The command that is to follow: caption, vqa, or auto: vqa where the rows of a file "
        "ask.",
        rich_help_panel=INPUT,
        autocompletion=o.completing(("auto", *RUNS)),
    ),
]

BenchFile = Annotated[
    Path | None,
    typer.Option(
        "--bench",
        help="A bench.json of the machine that is to run it, for the time.",
        show_default=False,
        exists=True,
        rich_help_panel=OUTPUT,
    ),
]


@guarded
@o.settings()
def check(
    sources: Sources,
    *,
    run: For = "auto",
    inputs: SourceOptions,
    bench: BenchFile = None,
    config: RunConfig,
    options: o.AnswerOptions,
) -> int:
    """The command `trimtok check`; its help is in `cli.COMMANDS`."""
    if run not in ("auto", *RUNS):
        raise UsageError(
            f"--for must be one of auto, {', '.join(RUNS)}, got {brief(run)}"
            f"{suggestion(run, RUNS)}."
        )
    check_stdin(*sources)
    options.check_device(config)
    check_engine(config)
    reading = inputs.reading(config)
    command = _command(sources, reading) if run == "auto" else run
    if command == VQA:
        if len(sources) > 1:
            raise UsageError("--for vqa: give one file of questions, or - for standard input.")
        source = read_questions(sources[0], reading)
    else:
        reading = replace(reading, allow_text_only=False)
        source = read_any(sources, reading, command=CAPTION, stdin=sys.stdin)
        source = prompted(source, config)
    document = read_document(bench, "--bench") if bench else None
    screen = Screen(quiet=options.quiet, noun="questions" if command == VQA else "images")
    tell(source, screen, options.verbose)
    output = output_of(command, config, options, reads(config, source, options.config))
    plan = plan_of(config, screen)
    survey = Survey(plan, output, screen)
    try:
        with interrupts.under_way(), closing(Processes()) as processes:
            _walk(survey, source, config, processes)
    finally:
        found = _found(command, config, source, survey, output, document)
        if options.as_json:
            typer.echo(json.dumps(found, indent=2))
        else:
            lines = lines_of(found, everything=options.verbose, errors_alone=options.quiet)
            for line in lines:
                typer.echo(line)
    return output.exit_code or (EXIT_SOME_FAILED if survey.failed else EXIT_OK)


def _command(sources: Sequence[str], reading: Reading) -> str:
    """The command that the sources are for: vqa where the first row of a file asks a question."""
    if len(sources) > 1 or not os.path.isfile(sources[0]):
        return CAPTION
    try:
        first = next(iter(read_any(sources, replace(reading, limit=1)).samples), None)
    except UsageError:  # reading it for good will say so again
        return CAPTION
    return VQA if first and first.question is not None else CAPTION


def _walk(survey: Survey, source: Source, config: RunConfig, processes: Processes) -> None:
    # As many as beside a GPU: this process has little to do.
    workers = count_workers(config.workers, "cuda", source.total)
    processes.start(workers)
    with survey.screen.track(source.total):
        survey.look_at(source.samples, workers, processes)
    if source.total is not None:  # else more may come
        survey.output.met_all()


def _found(
    command: str,
    config: RunConfig,
    source: Source,
    survey: Survey,
    output: Output,
    document: dict[str, Any] | None,
) -> dict[str, Any]:
    """Everything that was found, ready for JSON; sizes in bytes, times in seconds."""
    found = {
        "trimtok": __version__,
        "command": command,
        "complete": survey.complete,
        "notes": [*source.notes],
        **survey.found(),
        "output": output.found(),
        "time": None,
    }
    if document is not None:
        found["time"] = _time(config, survey.plan, document, found)
    return found


def _time(
    config: RunConfig, plan: Plan, document: dict[str, Any], found: dict[str, Any]
) -> dict[str, Any]:
    """The time of what is left to be answered, by the row of a bench.json that is most like it."""
    tokens, output = found["tokens"], found["output"]
    kept = tokens["kept"]["mean"] if tokens else None
    method = plan.method or config.method
    row = expected(document, config.model, method, kept=kept, batch=config.batch_limit or 1)
    if row is None:
        return {"note": f"the bench.json has no row of {config.model} with {method}"}
    left = output["to_answer"] if output else found["samples"]["sound"]
    return {**row, "samples": left, "seconds": left * row["seconds_a_sample"]}
