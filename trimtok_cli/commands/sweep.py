"""trimtok sweep: the smallest budget whose answers are still dense's, on the user's own images."""

import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import typer

from trimtok_cli import __version__, interrupts
from trimtok_cli.commands import options as o
from trimtok_cli.commands.session import (
    check_stdin,
    check_video,
    describe,
    generation,
    load,
    pruning,
    reads,
    tell,
)
from trimtok_cli.commands.source_options import SourceOptions
from trimtok_cli.commands.terminal.curve import headline, table
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Comparison, Sample, Setting
from trimtok_cli.errors import EXIT_OK, EXIT_SOME_FAILED, SampleError, TrimtokError, UsageError
from trimtok_cli.evaluation.sweep import MEASURES, Choice, Point, Sweep, budgets, choose
from trimtok_cli.models.catalog import locate
from trimtok_cli.outputs.destination import Destination, Files, claimed
from trimtok_cli.outputs.earlier import FAIL, OVERWRITE
from trimtok_cli.outputs.manifest import versions
from trimtok_cli.outputs.whole_files import write_whole
from trimtok_cli.readers import read_any
from trimtok_cli.readers.keys import keyed
from trimtok_cli.readers.source import Source
from trimtok_cli.readers.templates import prompted
from trimtok_cli.wording import brief, suggestion

EXAMPLES = (
    "Examples:\n\n"
    "trimtok sweep ./images --limit 100\n\n"
    "trimtok sweep questions.jsonl --max-loss 2% --measure exact --keep 32,64,128,256\n\n"
    "It needs no labels: an answer is held against dense's answer to the same. It writes "
    "sweep.json, and sweep.png where matplotlib is installed."
)

Sources = Annotated[
    list[str],
    typer.Argument(
        help="Images, folders, globs, @list.txt, or one question file.", show_default=False
    ),
]

MaxLoss = Annotated[
    str,
    typer.Option(
        "--max-loss", help="The agreement with dense that may be lost: a share, 1% or 0.01."
    ),
]

Measure = Annotated[
    str,
    typer.Option(
        "--measure",
        help="What agreement is: words (in common, in order) or exact (identical answers).",
        autocompletion=o.completing(MEASURES),
    ),
]

BUDGETS = {
    "keep": {
        "help": "The budgets that are tried, with commas between: 32,64,128; shares as well.",
        "shown": "16 to all, each about 1.4 times the one before",
    },
}


@guarded
@o.settings(without=("engine", "vllm_args", "batch_size", "decode", "workers"), instead=BUDGETS)
def sweep(
    sources: Sources,
    *,
    max_loss: MaxLoss = "1%",
    measure: Measure = "words",
    inputs: SourceOptions,
    config: RunConfig,
    options: o.RunOptions,
) -> int:
    """The command `trimtok sweep`; its help is in `cli.COMMANDS`."""
    loss = share_of(max_loss)
    if measure not in MEASURES:
        raise UsageError(
            f"--measure must be one of {', '.join(MEASURES)}, got {brief(measure)!r}"
            f"{suggestion(measure, MEASURES)}."
        )
    check_stdin(*sources)
    source = prompted(read_any(sources, inputs.reading(config)), config)
    screen = Screen(quiet=options.quiet, noun="samples")
    tell(source, screen, options.verbose)
    return run_sweep(config, source, options, screen, loss, measure)


def share_of(text: str) -> float:
    """The share that `1%` or `0.01` says, below 1. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%?)\s*", text)
    share = float(match[1]) / (100 if match[2] else 1) if match else 1.0
    if not match or share >= 1:
        raise UsageError(
            f"--max-loss must be a share below 1, such as 1% or 0.01, got {brief(text)!r}."
        )
    return share


def run_sweep(
    config: RunConfig,
    source: Source,
    options: o.RunOptions,
    screen: Screen,
    loss: float,
    measure: str,
) -> int:
    """Answers every sample dense and with every budget; returns the exit code."""
    locate(config.model)
    given = config.keep.split(",") if "keep" in config.sources else []
    screen.say_imports()
    build(config, given or ["16"])  # a method or a budget that cannot be is refused at once
    existing = OVERWRITE if options.overwrite else FAIL
    read = reads(config, source, options.config)
    files = Files("sweep.json", plots=("sweep.png",))
    with claimed(options.out, "sweep", read, files, existing=existing) as destination:
        adapter, ask = load(config, screen)
        settings = generation(adapter, ask, config, screen)
        check_video(adapter, config)
        from trimtok_cli.engine.prompt_stage import check_method
        from trimtok_cli.evaluation.compare import compare_all
        from trimtok_cli.generation.capacity import cache_bytes

        with interrupts.under_way():
            samples = list(keyed(source.samples))
            pruners = build(
                config, given or list(map(str, budgets(_num_dense(adapter, samples, ask))))
            )
            for pruner in pruners:
                check_method(adapter, pruner)
            measured = Sweep(
                [Setting.of(pruner) for pruner in pruners],
                cache_bytes(adapter.config, adapter.dtype),
            )
            facts = {
                "trimtok": __version__,
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "model": describe(adapter),
                "config": asdict(config),
                "generation": settings,
                "versions": dict(versions()),
                "measure": measure,
                "max_loss": loss,
            }
            results = compare_all(adapter, pruners, samples, ask)
            last = partial(_close, measured, facts, destination, screen, options.as_json)
            return _gather(results, measured, len(samples), screen, last)


def build(config: RunConfig, keeps: Sequence[str]) -> list[Any]:
    """The pruners: None for dense, then the method with each budget. Imports torch."""
    from trimtok_cli.pruners.registry import build_pruner

    shared = pruning(config, config.method)
    built = [build_pruner(config.method, {**shared, "keep": keep.strip()}) for keep in keeps]
    pruners = [pruner for pruner in dict.fromkeys(built) if pruner is not None]
    if not pruners:
        raise UsageError(
            "there is no budget to try: give --keep fewer tokens than all, and a --method other "
            "than dense."
        )
    return [None, *pruners]


def _num_dense(adapter: Any, samples: Sequence[Sample], ask: Any) -> int:
    """The visual tokens of the largest image of the first sample that can be prepared."""
    from trimtok_cli.prepare.sample import prepare

    error: Exception | None = None
    for sample in samples:
        try:
            layouts = adapter.layouts(prepare(adapter.preprocessor, sample, ask).inputs)
            if layouts:
                return max(len(layout.box) for layout in layouts)
        except SampleError as found:
            error = found
    reason = f" ({error})" if error else ""
    raise UsageError(f"no sample has an image that can be read{reason}.")


def _gather(
    results: Iterable[Comparison], measured: Sweep, total: int, screen: Screen, last: Any
) -> int:
    """Takes in comparisons as they come; an interrupted sweep shows what it has measured."""
    failed = over = False
    try:
        with screen.track(total):
            for comparison in results:
                interrupts.look()
                measured.add(comparison)
                errors = [result.error for result in comparison.results if result.error]
                failed |= bool(errors)
                if errors:
                    screen.failure(comparison.sample, errors[0])
                screen.advance(*comparison.results)
        over = True
    finally:
        last(over)
    return EXIT_SOME_FAILED if failed else EXIT_OK


def _close(
    measured: Sweep,
    facts: dict[str, Any],
    destination: Destination,
    screen: Screen,
    as_json: bool,
    over: bool,
) -> None:
    """Shows the curve, and writes it and its picture."""
    points = measured.points()
    if not points:
        return
    loss, measure = facts["max_loss"], facts["measure"]
    choice = choose(points, loss, measure)
    screen.show(table(points, measure, on_cpu=facts["model"]["device"] == "cpu"))
    said = headline(points, choice, loss, measure)
    screen.say(said, "bold")
    document = {
        "interrupted": not over,
        **facts,
        "said": said,
        **{name: found and found.setting.keep for name, found in _names(choice).items()},
        "points": [asdict(point) for point in points],
    }
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if as_json or destination.answers is None:
        typer.echo(json.dumps(document))
    if destination.answers is None:
        return
    write_whole(destination.answers, text)
    drawn = _plot(points, choice, facts, destination, screen)
    screen.say(f"curve in {destination}{drawn}", "dim")


def _names(choice: Choice) -> dict[str, Point | None]:
    return {"smallest_keep": choice.likely, "sure_keep": choice.sure, "keep_below": choice.below}


def _plot(
    points: Sequence[Point],
    choice: Choice,
    facts: dict[str, Any],
    destination: Destination,
    screen: Screen,
) -> str:
    """Draws the curve, and says where it is."""
    try:
        from trimtok_cli.outputs.curve import write_curve

        path = write_curve(points, choice, facts, destination.plots[0])
    except ImportError:
        screen.say("no picture: it needs matplotlib (pip install 'trimtok[plot]')", "dim")
        return ""
    except OSError as error:
        raise TrimtokError(
            f"the picture cannot be written ({error.strerror}); the figures are in {destination}."
        ) from None
    return f", picture in {path}"
