"""The run that `caption` and `vqa` share: samples into the model, answers and manifest to disk."""

import uuid
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Any

from trimtok_cli import __version__, interrupts
from trimtok_cli.bounds import field_of, flag
from trimtok_cli.commands.engines import check_engine, start_vllm
from trimtok_cli.commands.format_options import check_output, make_formats
from trimtok_cli.commands.options import AnswerOptions
from trimtok_cli.commands.replicated import load_replicas
from trimtok_cli.commands.resume import Begun, begin, close
from trimtok_cli.commands.session import (
    Loaded,
    check_json,
    check_video,
    count_workers,
    describe,
    generation,
    load,
    pruning,
    reads,
    show_files,
    start_workers,
)
from trimtok_cli.commands.terminal.progress import FEW, Screen
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Result, Setting
from trimtok_cli.errors import EXIT_OK, EXIT_SOME_FAILED
from trimtok_cli.models.catalog import locate
from trimtok_cli.outputs.destination import Destination, Files, claimed
from trimtok_cli.outputs.exports.registry import endings
from trimtok_cli.outputs.jsonl import JsonLines
from trimtok_cli.outputs.line_file import LineFile, finish
from trimtok_cli.outputs.manifest import Manifest, RunSummary
from trimtok_cli.outputs.mirror import mirrored
from trimtok_cli.prepare.processes import Processes
from trimtok_cli.readers.source import Source

# Gives the adapter and the Ask of a run, as `session.load` does, and samples that it shares with
# other runs, as `answer_all` takes them, or None.
Opener = Callable[[RunConfig, Screen, Callable[[], None]], tuple[Any, Any, Any]]


def run(
    command: str,
    config: RunConfig,
    source: Source,
    options: AnswerOptions,
    screen: Screen,
    *,
    again: Callable[[], Source],
    opener: Opener | None = None,
) -> int:
    """Answers every sample that has no answer yet; returns the exit code.

    again: reads the source anew. opener: opens the model if it is to be opened in another way. A
    signal keeps what is written, and run.json says that the run was interrupted.
    """
    check_output(options, options.place)
    check_json(options.place, options.as_json)
    options.check_device(config)
    check_engine(config)
    options.take_own_gpu(config)
    locate(config.model)  # an unknown name is refused before torch is imported
    warn = partial(screen.say, style="yellow")
    with (
        mirrored(options.place, options.if_there, warn) as mirror,
        claimed(
            mirror.out if mirror else options.place,
            command,
            reads(config, source, options.config),
            Files(errors=True, endings=endings(options.format_names)),
            existing=options.if_there,
        ) as destination,
        ExitStack() as last,
    ):
        if mirror is not None:
            mirror.refuse(source.files)
            last.enter_context(mirror.sending())
            destination = replace(destination, sent=mirror.shown)
        begun = begin(command, destination, config, source, options, screen, again)
        if isinstance(begun, int):
            code = begun
        else:
            if mirror is not None:
                begun = replace(begun, following=mirror.following)
            code = _answer(command, config, begun, destination, options, screen, opener)
        make_formats(destination, options, screen)
        show_files(destination, options.as_json)
        return code


def _answer(
    command: str,
    config: RunConfig,
    begun: Begun,
    destination: Destination,
    options: AnswerOptions,
    screen: Screen,
    opener: Opener | None,
) -> int:
    """Loads the model and answers what is left; returns the exit code."""
    on_ray = config.engine == "ray"
    places = [] if on_ray else options.places()
    with ExitStack() as stack:
        if on_ray:
            from trimtok_cli.commands.clustered import load_on_ray

            loaded = load_on_ray(config, begun, options, screen, stack)
        elif places:
            loaded = load_replicas(places, config, begun.number, options.debug, screen, stack)
        else:
            processes = stack.enter_context(closing(Processes()))
            loaded = load_here(config, begun.number, screen, processes, opener)
        begun.check_loaded(loaded.model)
        with interrupts.under_way():
            name = begun.earlier.get("run") or begun.run or uuid.uuid4().hex[:12]
            facts = {
                "generation": loaded.generation,
                "run": name,
                "command": command,
                "engine": loaded.engine,
                "model": loaded.model,
                "identity": begun.identity,
                "root": begun.root,
                "formats": begun.formats,
                **begun.facts,
                **loaded.facts,
            }
            summary = begun.summary or RunSummary(loaded.setting)
            manifest = Manifest(destination, config, summary, facts)
            show = options.verbose or (begun.number is not None and begun.number <= FEW)
            results = begun.following(loaded.answer(begun.samples))
            return write_all(results, begun, manifest, screen, show)


def load_here(
    config: RunConfig,
    number: int | None,
    screen: Screen,
    processes: Processes,
    opener: Opener | None = None,
) -> Loaded:
    """Opens the model in this process. number: of the samples to be answered, None if not known."""
    screen.say_imports()
    pruner, local = build(config), config.engine == "local"
    start = partial(start_workers, processes, config, number)
    if opener:
        adapter, ask, shared = opener(config, screen, start)
    else:
        opened = load(config, screen, start) if local else load(config, screen, start, front=True)
        adapter, ask, shared = *opened, None
    described = generation(adapter, ask, config, screen)
    check_video(adapter, config)
    from trimtok_cli.engine.prompt_stage import check_method
    from trimtok_cli.engine.stream import answer_all

    check_method(adapter, pruner)
    workers = count_workers(config.workers, adapter.device.type, number)
    answer = partial(answer_all, adapter, pruner, ask=ask, batch_size=config.batch_limit)
    engine = {"name": config.engine, "version": __version__}
    if not local:
        started = start_vllm(config, adapter, pruner, ask, screen)
        answer, engine = partial(answer, new_loop=started.loop), started.facts
    return Loaded(
        setting=Setting.of(pruner),
        engine=engine,
        model=describe(adapter),
        generation=described,
        answer=partial(answer, workers=workers, processes=processes, shared=shared),
        facts={},
    )


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
    writer = JsonLines(file, **manifest.names)
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
                else:
                    screen.glimpse(result)
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
