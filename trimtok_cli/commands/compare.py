"""trimtok compare: the same samples dense and pruned in one process, side by side."""

import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import typer

from trimtok_cli import interrupts
from trimtok_cli.commands import options as o
from trimtok_cli.commands.page_options import ComparisonOptions, PageOptions, Pictures
from trimtok_cli.commands.resume_comparison import BegunComparison, begin_comparison
from trimtok_cli.commands.session import (
    build_pruners,
    check_json,
    check_stdin,
    check_video,
    describe,
    generation,
    load,
    reads,
    show_files,
    tell,
)
from trimtok_cli.commands.source_options import SourceOptions
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.commands.terminal.progress import FEW, Screen
from trimtok_cli.commands.terminal.tables import SampleTable, SummaryTable
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Comparison, Setting
from trimtok_cli.errors import EXIT_OK, EXIT_SOME_FAILED
from trimtok_cli.models.catalog import locate
from trimtok_cli.outputs.comparison import ComparisonLines
from trimtok_cli.outputs.destination import Destination, Files, claimed
from trimtok_cli.outputs.line_file import LineFile, finish
from trimtok_cli.outputs.manifest import ComparisonSummary, Manifest
from trimtok_cli.outputs.pictures import Loader
from trimtok_cli.readers import read_any
from trimtok_cli.readers.source import Source
from trimtok_cli.readers.templates import prompted

EXAMPLES = (
    "Examples:\n\n"
    "trimtok compare ./images --keep 192,128,64\n\n"
    "trimtok compare questions.jsonl --keep 64 --limit 20 -o case-study --figure fig2.png\n\n"
    "It writes compare.jsonl, run.json and compare.html, one page with every image, its answers "
    "and the kept tokens drawn over it; trimtok report makes the page again, or a page of several "
    "runs."
)

Sources = Annotated[
    list[str],
    typer.Argument(
        help="Images, folders, globs, @list.txt, or one question file.", show_default=False
    ),
]


SEVERAL = {
    "keep": {"help": "One or more budgets: 64, or 192,128,64; shares (11%) as well."},
    "method": {
        "help": "One or more methods with commas between, or all.",
        "flags": ("--methods", "--method"),
    },
}


@guarded
@o.settings(without=("engine", "vllm_args", "batch_size", "decode", "workers"), instead=SEVERAL)
def compare(
    sources: Sources,
    *,
    inputs: SourceOptions,
    config: RunConfig,
    options: ComparisonOptions,
    page: PageOptions,
) -> int:
    """The command `trimtok compare`; its help is in `cli.COMMANDS`."""
    check_stdin(*sources)

    def read() -> Source:
        return prompted(read_any(sources, inputs.reading(config)), config)

    source, screen = read(), Screen(quiet=options.quiet, noun="samples")
    tell(source, screen, options.verbose)
    return run_comparison(config, source, read, list(sources), options, page, screen)


def run_comparison(
    config: RunConfig,
    source: Source,
    again: Callable[[], Source],
    inputs: list[str],
    options: ComparisonOptions,
    page: PageOptions,
    screen: Screen,
) -> int:
    """Answers every sample that has no answer yet, dense and pruned; returns the exit code.

    The answers go to the file, the terminal and the page. again: reads the source anew. inputs: the
    source as it was named.
    """
    locate(config.model)
    check_json(options.out, options.as_json)
    screen.say_imports()
    pruners = build_pruners(config)
    read = reads(config, source, options.config)
    files = Files("compare.jsonl", page=True)
    with claimed(options.out, "compare", read, files, existing=options.if_there) as destination:
        begun = begin_comparison(destination, config, source, options.if_there, screen, again)
        page.check(options.overwrite or bool(begun.earlier), read)
        facts = {
            "run": begun.earlier.get("run", uuid.uuid4().hex[:12]),
            "command": "compare",
            "inputs": inputs,
            "root": begun.root,
            "identity": begun.identity,
        }
        if begun.nothing_left:
            facts |= {name: begun.earlier[name] for name in ("model", "generation")}
            code = nothing_left(begun, destination, config, facts, page, screen)
        else:
            show = options.verbose or (begun.number is not None and begun.number <= FEW)
            code = _answer(begun, destination, config, pruners, facts, page, screen, show)
        show_files(destination, options.as_json)
        return code


def _answer(
    begun: BegunComparison,
    destination: Destination,
    config: RunConfig,
    pruners: list[Any],
    facts: dict[str, Any],
    page: PageOptions,
    screen: Screen,
    show: bool,
) -> int:
    """Loads the model and answers what is left; returns the exit code."""
    adapter, ask = load(config, screen)
    facts = {
        **facts,
        "generation": generation(adapter, ask, config, screen),
        "model": describe(adapter),
    }
    check_video(adapter, config)
    from trimtok_cli.evaluation.compare import compare_all

    begun.check_loaded(facts["model"])
    with interrupts.under_way():
        results = compare_all(adapter, pruners, begun.samples, ask)
        summary = ComparisonSummary([Setting.of(pruner) for pruner in pruners])
        begun.count_into(summary)
        manifest = Manifest(destination, config, summary, facts)
        pictures = Pictures(page, Loader(rule=ask.frames))
        return write_all(results, begun, manifest, pictures, screen, show)


def write_all(
    results: Iterable[Comparison],
    begun: BegunComparison,
    manifest: Manifest,
    pictures: Pictures,
    screen: Screen,
    show: bool,
) -> int:
    """Hands comparisons to the files and the screen as they come; returns the exit code."""
    from trimtok_cli.outputs.page.write import cards_shown

    answered: list[Comparison] = []
    cards, journal = cards_shown(len(manifest.summary.each)), begun.journal
    failure = None
    file = LineFile(manifest.destination, begin=manifest.write, end=begun.end)
    writer = ComparisonLines(file, **manifest.names)
    try:
        with screen.track(begun.number):
            for comparison in results:
                interrupts.look()
                start = file.end
                writer.write(comparison)
                journal.note(comparison, start)
                manifest.summary.add(comparison)
                pictures.add(journal.met, comparison)
                # The page shows the first comparisons. The summary needs no boxes of the others,
                # and boxes are most of the memory.
                shown = len(answered) < cards
                answered.append(comparison if shown else without_tokens(comparison))
                if show and not screen.quiet:
                    screen.show(SampleTable(comparison))
                elif errors := [result.error for result in comparison.results if result.error]:
                    screen.failure(comparison.sample, errors[0])
                screen.advance(*comparison.results)
        journal.forget_unmet()
        manifest.interrupted = False
    except BaseException as error:
        failure = error
        raise
    finally:
        failed = failure is not None and not isinstance(failure, KeyboardInterrupt)
        writer.close(failed)
        last = partial(close, begun, answered, manifest, pictures, screen)
        finish(manifest.destination.page, last, failure is not None)
        if file.began and (file.end or not failed):
            finish(manifest.destination.manifest, manifest.write, failure is not None)
    return EXIT_SOME_FAILED if manifest.summary.failed else EXIT_OK


def nothing_left(
    begun: BegunComparison,
    destination: Destination,
    config: RunConfig,
    facts: dict[str, Any],
    page: PageOptions,
    screen: Screen,
) -> int:
    """Ends a run of which every sample is answered: makes its files again; the exit code."""
    summary = ComparisonSummary(begun.settings)
    begun.count_into(summary)
    manifest = Manifest(destination, config, summary, facts)
    manifest.interrupted = False
    begun.journal.cut()
    screen.say(f"nothing to do: {len(begun.journal.starts)} samples are in {destination}")
    pictures = Pictures(page, Loader(rule=config.frame_rule))
    finish(destination.page, partial(close, begun, [], manifest, pictures, screen), failed=False)
    finish(destination.manifest, manifest.write, failed=False)
    return EXIT_SOME_FAILED if summary.failed else EXIT_OK


def without_tokens(comparison: Comparison) -> Comparison:
    """The comparison as the summary needs it: without the numbers and boxes of its tokens."""
    results = tuple(replace(result, kept=()) for result in comparison.results)
    return replace(comparison, results=results, boxes=(), visual_index=(), frame=())


def close(
    begun: BegunComparison,
    answered: list[Comparison],
    manifest: Manifest,
    pictures: Pictures,
    screen: Screen,
) -> None:
    """Puts the lines in order, shows the summary on the terminal, and writes page and figure."""
    from trimtok_cli.evaluation.headline import explain
    from trimtok_cli.evaluation.summary import summarize
    from trimtok_cli.outputs.page.facts import details_of, facts_of
    from trimtok_cli.outputs.page.write import write_page

    comparisons = begun.all(answered)
    if not manifest.interrupted:
        begun.journal.settle()  # the journal's places are no longer true
    if not comparisons:
        return
    if begun.earlier:
        pictures.add_missing(comparisons)
    rows = summarize(comparisons)
    if any(row.samples for row in rows):
        screen.show(SummaryTable(rows))
    screen.say(explain(rows), "bold")
    destination = manifest.destination
    if destination.page is not None:
        document = manifest.document()
        write_page(
            destination.page,
            comparisons,
            model=manifest.facts["model"]["name"],
            facts=facts_of(document, comparisons),
            details=details_of([document]),
            loader=pictures.loader,
        )
        rest = f"; the same command with -o {destination} goes on" if manifest.interrupted else ""
        screen.say(f"records in {destination}, page in {destination.page}{rest}", "dim")
    pictures.finish(comparisons, screen)
