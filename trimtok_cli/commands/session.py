"""From a RunConfig to the model, the pruners and what is asked: what every command that runs a
model shares.
"""

import os
import sys
from pathlib import Path
from typing import Any

from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import RunConfig
from trimtok_cli.errors import ModelError, UsageError
from trimtok_cli.outputs.destination import listed
from trimtok_cli.readers.source import Source


def build_pruners(config: RunConfig) -> list[Any]:
    """None for dense, then a pruner for each method and each budget, both given with commas
    between.
    """
    from trimtok_cli.pruners.registry import PRUNERS, build_pruner

    every = [name for name, kind in PRUNERS.items() if kind]
    names = [
        each
        for name in config.method.split(",")
        for each in (every if name.strip() == "all" else [name.strip()])
    ]
    built = [
        build_pruner(method, {**pruning(config, method), "keep": keep.strip()})
        for method in names
        for keep in config.keep.split(",")
    ]
    pruners = [pruner for pruner in dict.fromkeys(built) if pruner is not None]
    if not pruners:
        raise UsageError(
            "nothing to compare with dense: give --keep fewer tokens than all, and a "
            "--methods other than dense."
        )
    return [None, *pruners]


FEW_INPUTS = 32  # a worker takes seconds to start


def tell(source: Source, screen: Screen) -> None:
    """What was noticed while the inputs were looked for."""
    for note in source.notes:
        screen.say(f"note: {note}", "yellow")


def load(config: RunConfig, screen: Screen):
    """The adapter and what to ask of it. Heavy imports happen here, after arguments and inputs have
    been looked at.
    """
    screen.say(f"loading {config.model} ...", "dim")
    from trimtok_cli.models.loading import load_model
    from trimtok_cli.prepare.sample import Ask

    adapter = load_model(
        config.model,
        device=config.device,
        dtype=config.dtype,
        revision=config.revision or None,
        clip_text=config.clip_text or None,
        trust_remote_code=config.trust_remote_code,
    )
    return adapter, Ask(
        config.prompt,
        config.system,
        config.max_new_tokens,
        config.sampling,
        config.frame_rule,
        config.video_as,
        config.max_pixels,
        config.decode,
        timeout=config.timeout,
    )


def generation(adapter, ask, config: RunConfig, screen: Screen) -> dict[str, Any]:
    """What run.json says of how answers are made: each setting, its value, and who said it. What is
    unusual is said at once.
    """
    from trimtok_cli.engine.loops import rules_for
    from trimtok_cli.generation.settings_report import described, notes

    rules = rules_for(adapter, ask)
    for note in notes(rules, config.sources):
        screen.say(note, "dim")
    return described(rules, config.sources)


def pruning(config: RunConfig, method: str) -> dict[str, Any]:
    """What a method is built with: the settings that all share, and its parameters; not every one
    has a use for all of them.
    """
    from trimtok_cli.pruners.registry import own_params

    shared = {
        "keep": config.keep,
        "budget": config.budget,
        "counts": config.budget_counts,
        "seed": config.seed,
    }
    return shared | own_params(method, config.params)


def describe(adapter) -> dict[str, str]:
    """What run.json and the report say of the model."""
    import torch

    device = (
        torch.cuda.get_device_name(adapter.device)
        if adapter.device.type == "cuda"
        else str(adapter.device)
    )
    facts = {
        "name": adapter.name,
        "family": adapter.model.config.model_type,
        "commit": adapter.revision,
    }
    return facts | {
        "device": device,
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "threads": str(torch.get_num_threads()),
    }


def count_workers(setting: int | str, device: str, total: int | None) -> int:
    """How many processes prepare inputs; `total` is None where their number is not known. A CPU has
    none to spare.
    """
    if setting != "auto":
        return setting
    if device == "cpu" or (total is not None and total <= FEW_INPUTS):
        return 0
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(8, cores - 1)


def reads(config: RunConfig, source: Source, config_file: str | None) -> list[Path | str | int]:
    """All files that a run reads, as far as they are known: what the samples come from, the
    settings, a model's own folder.
    """
    folders = [name for name in (config.model, config.clip_text) if name]  # or names of checkpoints
    return [
        *source.files,
        *([config_file] if config_file else []),
        *(path for name in folders for path in listed(name)),
    ]


def check_stdin(*sources: str) -> None:
    """UsageError if paths or questions are to come from a standard input that is closed."""
    if "-" in sources and sys.stdin is None:
        raise UsageError(
            "standard input is closed, so nothing can be read from -; name a file or a folder."
        )


def check_video(adapter, config: RunConfig) -> None:
    """ModelError if videos shall take a path that the family does not have: said before the run,
    not at the first video.
    """
    if config.video_as == "video" and not adapter.preprocessor.has_video:
        raise ModelError(
            f"--video-as video: {config.model} has no video path of its own; use --video-as frames."
        )
