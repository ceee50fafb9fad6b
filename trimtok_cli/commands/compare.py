"""trimtok compare: the same samples dense and pruned in one process, side by side."""

import statistics
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

import typer

from trimtok_cli import interrupts
from trimtok_cli.commands import options as o
from trimtok_cli.commands.session import (
    build_pruners,
    check_stdin,
    check_video,
    describe,
    generation,
    load,
    reads,
    tell,
)
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.commands.terminal.progress import FEW, Screen
from trimtok_cli.commands.terminal.tables import sample_table, summary_table
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Comparison, Setting
from trimtok_cli.errors import EXIT_OK, EXIT_SOME_FAILED
from trimtok_cli.models.catalog import locate
from trimtok_cli.outputs.comparison import ComparisonLines
from trimtok_cli.outputs.destination import Destination, claimed
from trimtok_cli.outputs.earlier import FAIL, OVERWRITE
from trimtok_cli.outputs.line_file import LineFile, finish
from trimtok_cli.outputs.manifest import ComparisonSummary, Manifest
from trimtok_cli.readers import read_any
from trimtok_cli.readers.keys import keyed
from trimtok_cli.readers.source import Source
from trimtok_cli.readers.templates import with_prompt

EXAMPLES = (
    "Examples:\n\n"
    "trimtok compare ./images --keep 192,128,64\n\n"
    "trimtok compare questions.jsonl --keep 64 --limit 20 -o case-study\n\n"
    "It writes compare.jsonl and compare.html, one page with every image, its answers and "
    "the kept tokens drawn over it."
)

Sources = Annotated[
    list[str],
    typer.Argument(
        help="Images, folders, globs, @list.txt, or one question file.", show_default=False
    ),
]


PAGE_SAMPLES = 200


SEVERAL = {
    "keep": {"help": "One or more budgets: 64, or 192,128,64; shares (11%) as well."},
    "method": {
        "help": "One or more methods with commas between, or all.",
        "flags": ("--methods", "--method"),
    },
}


@guarded
@o.settings(without=("batch_size", "decode", "workers"), instead=SEVERAL)
def compare(
    sources: Sources,
    *,
    image_root: o.Root = None,
    allow_text_only: o.TextOnly = False,
    allow_outside: o.Outside = False,
    recursive: o.Recursive = False,
    config: RunConfig,
    options: o.RunOptions,
) -> int:
    """Answer every sample dense and pruned, the vision tower run once for both, and say what
    changed and what it saved.
    """
    check_stdin(*sources)
    source = read_any(
        sources,
        recursive=recursive,
        image_root=image_root,
        limit=config.limit or None,
        allow_text_only=allow_text_only,
        format=config.input_format,
        allow_outside=allow_outside,
        allow_urls=config.allow_urls,
        settings=vars(config),
    )
    source = with_prompt(source, config.prompt)
    screen = Screen(quiet=options.quiet, noun="samples")
    tell(source, screen, options.verbose)
    return run_comparison(config, source, options, screen)


def run_comparison(config: RunConfig, source: Source, options: o.RunOptions, screen: Screen) -> int:
    """Answers every sample of a source dense and pruned; returns the exit code.

    The answers go to the file, the terminal and the page.
    """
    locate(config.model)
    pruners = build_pruners(config)
    read = reads(config, source, options.config)
    with claimed(
        options.out,
        "compare",
        read,
        existing=OVERWRITE if options.overwrite else FAIL,
        name="compare.jsonl",
        page=True,
    ) as destination:
        adapter, ask = load(config, screen)
        settings = generation(adapter, ask, config, screen)
        check_video(adapter, config)
        from trimtok_cli.evaluation.compare import compare_all
        from trimtok_cli.media.video import load_video

        with interrupts.under_way():
            results = compare_all(adapter, pruners, keyed(source.samples), ask)
            facts = {"run": uuid.uuid4().hex[:12], "command": "compare", "model": describe(adapter)}
            show = options.verbose or (source.total is not None and source.total <= FEW)
            last = partial(
                close,
                most=settings["max_new_tokens"]["value"],
                model=facts["model"],
                destination=destination,
                screen=screen,
                load_clip=partial(load_video, rule=ask.frames),
            )
            summary = ComparisonSummary([Setting.of(pruner) for pruner in pruners])
            manifest = Manifest(destination, config, summary, facts | {"generation": settings})
            return write_all(results, source.total, manifest, last, screen, show)


def write_all(
    results: Iterable[Comparison],
    total: int | None,
    manifest: Manifest,
    last: Callable[[Sequence[Comparison]], None],
    screen: Screen,
    show: bool,
) -> int:
    """Hands comparisons to the files and the screen as they come; returns the exit code.

    last: is called with all comparisons at the end.
    """
    comparisons: list[Comparison] = []
    failure = None
    file = LineFile(manifest.destination, begin=manifest.write)
    writer = ComparisonLines(file, **manifest.names)
    try:
        with screen.track(total):
            for comparison in results:
                interrupts.look()
                writer.write(comparison)
                manifest.summary.add(comparison)
                # The page shows the first comparisons. The summary needs no boxes of the others,
                # and boxes are most of the memory.
                shown = len(comparisons) < PAGE_SAMPLES
                comparisons.append(
                    comparison
                    if shown
                    else replace(comparison, boxes=(), visual_index=(), frame=())
                )
                if show and not screen.quiet:
                    screen.show(sample_table(comparison))
                elif errors := [result.error for result in comparison.results if result.error]:
                    screen.failure(comparison.sample, errors[0])
                screen.advance(*comparison.results)
        manifest.interrupted = False
    except BaseException as error:
        failure = error
        raise
    finally:
        failed = failure is not None and not isinstance(failure, KeyboardInterrupt)
        writer.close(failed)
        finish(manifest.destination.page, partial(last, comparisons), failure is not None)
        if file.began and (file.count or not failed):
            finish(manifest.destination.manifest, manifest.write, failure is not None)
    return EXIT_SOME_FAILED if manifest.summary.failed else EXIT_OK


def close(
    comparisons: Sequence[Comparison],
    *,
    most: int | None,
    model: dict[str, str],
    destination: Destination,
    screen: Screen,
    load_clip,
) -> None:
    """Shows the summary on the terminal, and writes the page."""
    from trimtok_cli.evaluation.summary import explain, summarize
    from trimtok_cli.outputs.manifest import versions
    from trimtok_cli.outputs.page import write_page

    if not comparisons:
        return
    rows, found = summarize(comparisons), versions()
    if any(row.samples for row in rows):
        screen.show(summary_table(rows))
    screen.say(explain(rows), "bold")
    if destination.answers is None:
        return
    most = "as many as max_length of the checkpoint allows" if most is None else most
    words = [r.tokens.text for c in comparisons for r in c.results[:1] if not r.error]
    facts = {
        "Model": f"{model['name']} "
        f"({model['family']}{', ' + model['commit'][:12] if model['commit'] else ''})",
        "Device": f"{model['device']}, {model['dtype']}, {model['threads']} CPU threads",
        "Samples": f"{len(comparisons)}, one at a time, after a warm-up; at most {most} new tokens",
        "Text tokens": f"{statistics.median(words):.0f} (median)" if words else "",
        "Versions": f"torch {found['torch']}, transformers {found['transformers']}, Python "
        f"{found['python']}",
        "Date": time.strftime("%Y-%m-%d %H:%M"),
    }
    page = destination.answers.with_suffix(".html")
    write_page(
        page,
        comparisons,
        title="Dense and pruned, side by side",
        facts=facts,
        sentence=explain(rows),
        load_clip=load_clip,
        limit=PAGE_SAMPLES,
    )
    screen.say(f"records in {destination.answers}, page in {page}", "dim")
