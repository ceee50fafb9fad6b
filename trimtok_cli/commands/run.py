"""The run that `caption` and `vqa` share: model, pruner, stream of samples, answers to disk, manifest at the end."""

import os
import sys
import uuid
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

from trimtok_cli import ending
from trimtok_cli.bounds import flag
from trimtok_cli.catalog import locate
from trimtok_cli.commands.destination import Destination, claimed, listed
from trimtok_cli.commands.output import Output, finish
from trimtok_cli.commands.screen import FEW, Screen
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Result
from trimtok_cli.errors import EXIT_OK, EXIT_SOME_FAILED, ModelError, UsageError
from trimtok_cli.readers import Source
from trimtok_cli.writers.answers import writable
from trimtok_cli.writers.run_json import RunSummary, write_run

FEW_INPUTS = 32  # a worker takes seconds to start


def tell(source: Source, screen: Screen) -> None:
    """What was noticed while the inputs were looked for."""
    for note in source.notes:
        screen.say(f"note: {note}", "yellow")


def load(config: RunConfig, screen: Screen):
    """The adapter and what to ask of it. Heavy imports happen here, after arguments and inputs have been looked at."""
    screen.say(f"loading {config.model} ...", "dim")
    from trimtok_cli.media.video import FrameRule
    from trimtok_cli.models import load_model
    from trimtok_cli.prepare import Ask

    adapter = load_model(
        config.model,
        device=config.device,
        dtype=config.dtype,
        revision=config.revision or None,
        clip_text=config.clip_text or None,
        trust_remote_code=config.trust_remote_code,
    )
    frames = FrameRule(
        config.frames, config.fps or None, config.start, config.end or None, config.video_backend, config.video_timeout
    )
    return adapter, Ask(
        config.prompt, config.system, config.max_new_tokens, config.sampling, frames, config.video_as, config.max_pixels,
        config.decode, timeout=config.timeout,
    )  # fmt: skip


def generation(adapter, config: RunConfig, screen: Screen) -> dict[str, Any]:
    """What run.json says of how answers are made: each setting, its value, and who said it. What is unusual is said at once."""
    from trimtok_cli.rules import Rules
    from trimtok_cli.told import described, notes

    rules = Rules(adapter, max_new_tokens=config.max_new_tokens, sampling=config.sampling)
    for note in notes(rules, config.sources):
        screen.say(note, "dim")
    return described(rules, config.sources)


def pruning(config: RunConfig, method: str) -> dict[str, Any]:
    """What a method is built with: the settings that all share, and its parameters; not every one has a use for all of them."""
    from trimtok_cli.pruners import own_params

    shared = {"keep": config.keep, "budget": config.budget, "counts": config.budget_counts, "seed": config.seed}
    return shared | own_params(method, config.params)


def describe(adapter) -> dict[str, str]:
    """What run.json and the report say of the model."""
    import torch

    device = torch.cuda.get_device_name(adapter.device) if adapter.device.type == "cuda" else str(adapter.device)
    facts = {"name": adapter.name, "family": adapter.model.config.model_type, "commit": adapter.revision}
    return facts | {"device": device, "dtype": str(adapter.dtype).removeprefix("torch."), "threads": str(torch.get_num_threads())}


def count_workers(setting: int | str, device: str, total: int | None) -> int:
    """How many processes prepare inputs; `total` is None where their number is not known. A CPU has none to spare."""
    if setting != "auto":
        return setting
    if device == "cpu" or (total is not None and total <= FEW_INPUTS):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores - 1)


def run(
    command: str, config: RunConfig, source: Source, *, out: str | None, overwrite: bool, screen: Screen, verbose: bool,
    config_file: str | None = None,
) -> int:  # fmt: skip
    """Answers every sample; the exit code. A signal keeps what is written, and run.json says that the run was interrupted."""
    locate(config.model)  # a name that is none is said before torch is imported
    from trimtok_cli.pruners import build_pruner, check_idle

    given = {flag(name): getattr(config, name) for name in ("keep", "params") if config.sources.get(name) == "flag"}
    check_idle(config.method, given)
    pruner = build_pruner(config.method, pruning(config, config.method))
    with claimed(out, command, reads(config, source, config_file), overwrite=overwrite) as destination:
        adapter, ask = load(config, screen)
        facts = {"generation": generation(adapter, config, screen)}
        check_video(adapter, config)
        from trimtok_cli.engine import answer_all
        from trimtok_cli.stages import check_method

        check_method(adapter, pruner)
        with ending.under_way():
            workers = count_workers(config.workers, adapter.device.type, source.total)
            results = answer_all(adapter, pruner, source.samples, ask, batch_size=config.rows, workers=workers)
            facts |= {"run": uuid.uuid4().hex[:12], "command": command, "model": describe(adapter)}
            show = verbose or (source.total is not None and source.total <= FEW)
            return write_all(results, source.total, destination, config, facts, screen, show)


def write_all(
    results: Generator[Result], total: int | None, destination: Destination, config: RunConfig, facts: dict[str, Any],
    screen: Screen, show: bool,
) -> int:  # fmt: skip
    """Results to the file, the screen and the manifest, as they come; the exit code. `show`: every answer, not failures alone."""
    summary, interrupted, failure = RunSummary(), True, None

    def manifest() -> None:
        if destination.manifest:
            write_run(destination.manifest, config, summary, interrupted=interrupted, **facts)

    file = Output(destination, begin=manifest)
    try:
        with closing(results), screen.track(total):
            for result in results:
                ending.look()
                result, line = writable(result, model=config.model, run=facts["run"])
                file.write(line)
                summary.add(result)
                if show or result.error:
                    screen.answer(result)
                screen.advance(result)
        interrupted = False
    except BaseException as error:
        failure = error
        raise
    finally:
        failed = failure is not None and not isinstance(failure, KeyboardInterrupt)
        file.close(failed)
        screen.say(closing_line(summary, screen.noun))
        if file.began and file.count:
            screen.say(f"answers in {destination}", "dim")
        if file.began and (file.count or not failed):
            finish(destination.manifest, manifest, failure is not None)
    return EXIT_SOME_FAILED if summary.failed else EXIT_OK


def reads(config: RunConfig, source: Source, config_file: str | None) -> list[Path | str | int]:
    """All files that a run reads, as far as they are known: what the samples come from, the settings, a model's own folder."""
    folders = [name for name in (config.model, config.clip_text) if name]  # or names of checkpoints
    return [*source.files, *([config_file] if config_file else []), *(path for name in folders for path in listed(name))]


def check_stdin(*sources: str) -> None:
    """UsageError if paths or questions are to come from a standard input that is closed."""
    if "-" in sources and sys.stdin is None:
        raise UsageError("standard input is closed, so nothing can be read from -; name a file or a folder.")


def check_video(adapter, config: RunConfig) -> None:
    """ModelError if videos shall take a path that the family does not have: said before the run, not at the first video."""
    if config.video_as == "video" and not adapter.preprocessor.has_video:
        raise ModelError(f"--video-as video: {config.model} has no video path of its own; use --video-as frames.")


def closing_line(summary: RunSummary, noun: str) -> str:
    count, seconds = summary.done + summary.failed, summary.seconds
    line = f"{count} {noun.removesuffix('s') if count == 1 else noun}, {summary.failed} failed"
    if summary.done:
        line += f", {summary.visual / summary.done:.0f} → {summary.kept / summary.done:.0f} visual tokens a sample"
    line += f", {count / seconds:.2f} {noun}/s"
    if cut := summary.finish["length"]:
        line += f"; {cut} answer{'s were' if cut > 1 else ' was'} cut off at --max-new-tokens or where the model's positions end"
    return line
