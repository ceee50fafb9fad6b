"""The run that `caption` and `vqa` share: samples into the model, answers and manifest to disk."""

import uuid
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from typing import Any

from trimtok_cli import interrupts
from trimtok_cli.bounds import field_of, flag
from trimtok_cli.commands.format_options import check_output, make_formats
from trimtok_cli.commands.options import AnswerOptions
from trimtok_cli.commands.resume import Begun, begin, close
from trimtok_cli.commands.session import (
    check_video,
    count_workers,
    describe,
    generation,
    load,
    pruning,
    reads,
    start_workers,
)
from trimtok_cli.commands.terminal.progress import FEW, Screen
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Result, Setting
from trimtok_cli.errors import EXIT_OK, EXIT_SOME_FAILED
from trimtok_cli.models.catalog import locate
from trimtok_cli.outputs.destination import Destination, claimed
from trimtok_cli.outputs.exports.registry import endings
from trimtok_cli.outputs.formats import FORMATS
from trimtok_cli.outputs.line_file import LineFile, finish
from trimtok_cli.outputs.manifest import Manifest, RunSummary
from trimtok_cli.prepare.processes import Processes
from trimtok_cli.readers.source import Source


def run(
    command: str,
    config: RunConfig,
    source: Source,
    options: AnswerOptions,
    screen: Screen,
    *,
    again: Callable[[], Source],
) -> int:
    """Answers every sample that has no answer yet; returns the exit code.

    again: reads the source anew. A signal keeps what is written, and run.json says that the run was
    interrupted.
    """
    check_output(options, options.out)
    locate(config.model)  # an unknown name is refused before torch is imported
    with (
        claimed(
            options.out,
            command,
            reads(config, source, options.config),
            existing=options.if_there,
            errors=True,
            endings=endings(options.format_names),
        ) as destination,
        closing(Processes()) as processes,
    ):
        begun = begin(destination, config, source, options, screen, again)
        if isinstance(begun, int):
            code = begun
        else:
            code = _answer(command, config, begun, destination, options, screen, processes)
        make_formats(destination, options, screen)
        return code


def _answer(
    command: str,
    config: RunConfig,
    begun: Begun,
    destination: Destination,
    options: AnswerOptions,
    screen: Screen,
    processes: Processes,
) -> int:
    """Loads the model and answers what is left; returns the exit code."""
    pruner = build(config)
    start = partial(start_workers, processes, config, begun.number)
    adapter, ask = load(config, screen, start)
    facts = {"generation": generation(adapter, ask, config, screen)}
    check_video(adapter, config)
    from trimtok_cli.engine.prompt_stage import check_method
    from trimtok_cli.engine.stream import answer_all

    check_method(adapter, pruner)
    model = describe(adapter)
    begun.check_loaded(model)
    with interrupts.under_way():
        results = answer_all(
            adapter,
            pruner,
            begun.samples,
            ask,
            batch_size=config.batch_limit,
            workers=count_workers(config.workers, adapter.device.type, begun.number),
            processes=processes,
        )
        name = begun.earlier.get("run", uuid.uuid4().hex[:12])
        facts |= {"run": name, "command": command, "model": model, "identity": begun.identity}
        facts |= {"root": begun.root, "formats": begun.formats}
        summary = begun.summary or RunSummary(Setting.of(pruner))
        manifest = Manifest(destination, config, summary, facts)
        show = options.verbose or (begun.number is not None and begun.number <= FEW)
        return write_all(results, begun, manifest, screen, show)


def build(config: RunConfig) -> Any:
    """The pruner of the run, None for dense. Imports torch."""
    from trimtok_cli.pruners.registry import build_pruner, check_idle

    given = {
        flag(field_of(RunConfig, name)): getattr(config, name)
        for name in ("keep", "params")
        if config.sources.get(name) == "flag"
    }
    check_idle(config.method, given)
    return build_pruner(config.method, pruning(config, config.method))


def write_all(
    results: Generator[Result], begun: Begun, manifest: Manifest, screen: Screen, show: bool
) -> int:
    """Hands results to the files and the screen as they come; returns the exit code.

    show: prints every answer, not failures alone.
    """
    destination, summary, failure = manifest.destination, manifest.summary, None
    file = LineFile(destination, begin=manifest.write, end=begun.end)
    writer = FORMATS["jsonl"](file, **manifest.names)
    try:
        with closing(results), screen.track(begun.number):
            for result in results:
                interrupts.look()
                start = file.end
                result = writer.write(result)
                begun.journal.add(result, start)
                summary.add(result)
                if show or result.error:
                    screen.answer(result)
                screen.advance(result)
        manifest.interrupted = begun.journal.left > 0
    except BaseException as error:
        failure = error
        raise
    finally:
        failed = failure is not None and not isinstance(failure, KeyboardInterrupt)
        writer.close(failed)
        screen.say(closing_line(summary, screen.noun))
        if file.began and file.count:
            rest = f"; the same command with -o {destination} goes on" if failure else ""
            screen.say(f"answers in {destination}{rest}", "dim")
        if file.began and (file.end or not failed):
            end = partial(close, destination, begun.journal, manifest, over=failure is None)
            finish(destination.manifest, end, failure is not None)
    return EXIT_SOME_FAILED if summary.failed else EXIT_OK


def closing_line(summary: RunSummary, noun: str) -> str:
    count, seconds = summary.answered, summary.seconds
    line = f"{count} {noun.removesuffix('s') if count == 1 else noun}, {summary.failed} failed"
    if summary.done:
        line += (
            f", {summary.visual / summary.done:.0f} → {summary.kept / summary.done:.0f} "
            "visual tokens a sample"
        )
    line += f", {count / seconds:.2f} {noun}/s"
    if cut := summary.finish["length"]:
        line += (
            f"; {cut} answer{'s were' if cut > 1 else ' was'} cut off at --max-new-tokens or "
            "where the model's positions end"
        )
    if looped := summary.looped:
        line += f"; {looped} answer{'s end' if looped > 1 else ' ends'} in a loop"
    return line
