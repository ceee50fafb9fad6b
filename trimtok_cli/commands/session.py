"""The session of a run: a RunConfig becomes the model, the pruners, and the Ask.

Every command that runs a model shares it.
"""

import json
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimtok_cli.blobs import Stored
from trimtok_cli.child_process import usual_workers
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Result, Sample, Setting
from trimtok_cli.errors import ModelError, UsageError
from trimtok_cli.outputs.destination import Destination, listed
from trimtok_cli.prepare.processes import Processes
from trimtok_cli.readers.source import Source

FEW_INPUTS = 32  # for fewer inputs no worker is started, which takes seconds


@dataclass(frozen=True)
class Loaded:
    """A model that answers, in this process or in others; and its facts for run.json.

    engine: the name of what runs the language model, and its version. answer: results in the order
    of the samples. facts: further ones, which may change later.
    """

    setting: Setting
    engine: Mapping[str, str]
    model: Mapping[str, str]
    generation: Mapping[str, Any]
    answer: Callable[[Iterator[Sample]], Generator[Result]]
    facts: Mapping[str, Any]


def tell(source: Source, screen: Screen, verbose: bool = False) -> None:
    """Shows the notes of the readers; `verbose`: the quiet ones, too."""
    for note in (*source.notes, *(source.quiet_notes if verbose else ())):
        screen.say(f"note: {note}", "yellow")


def load(
    config: RunConfig,
    screen: Screen,
    meanwhile: Callable[[], None] | None = None,
    *,
    front: bool = False,
):
    """The adapter, and the Ask of the run.

    Heavy imports happen here, after arguments and inputs were checked. meanwhile: starts what may
    go on while a model loads; it is called before the imports. front: without the language model,
    which another engine runs. Raises UsageError for such an engine otherwise: only `caption` and
    `vqa` have them.
    """
    if config.engine != "local" and not front:
        raise UsageError(
            f"--engine {config.engine} is for `trimtok caption` and `trimtok vqa`: leave it out "
            "here (of --config and TRIMTOK_ENGINE, too)."
        )
    screen.say(f"loading {config.model} ...", "dim")
    if meanwhile:
        meanwhile()
    from trimtok_cli.models.loading import load_model

    adapter = load_model(
        config.model,
        device=config.device,
        dtype=config.dtype,
        revision=config.revision or None,
        clip_text=config.clip_text or None,
        trust_remote_code=config.trust_remote_code,
        front=front,
    )
    return adapter, ask_of(config)


def ask_of(config: RunConfig) -> Any:
    """How every sample of the run is asked. Imports torch."""
    from trimtok_cli.prepare.sample import Ask

    return Ask(
        prompt=config.prompt,
        system=config.system,
        max_new_tokens=config.max_new_tokens,
        sampling=config.sampling,
        frames=config.frame_rule,
        video_as=config.video_as,
        max_pixels=config.max_pixels,
        decode=config.decode,
        timeout=config.timeout,
        strip_reasoning=config.strip_reasoning,
    )


def generation(adapter, ask, config: RunConfig, screen: Screen) -> dict[str, Any]:
    """The generation settings for run.json, each with its value and its source.

    Unusual settings are shown at once.
    """
    from trimtok_cli.engine.loops import rules_for
    from trimtok_cli.generation.settings_report import described, notes

    rules = rules_for(adapter, ask)
    for note in notes(rules, config.sources):
        screen.say(note, "dim")
    return described(rules, config.sources)


def pruning(config: RunConfig, method: str) -> dict[str, Any]:
    """The arguments of `build_pruner`: the settings that all methods share, and its parameters."""
    from trimtok_cli.pruners.registry import own_params

    shared = {
        "keep": config.keep,
        "budget": config.budget,
        "counts": config.budget_counts,
        "seed": config.seed,
    }
    return shared | own_params(method, config.params)


def build_pruners(config: RunConfig) -> list[Any]:
    """The pruners of a comparison: None for dense, then one for each method and each budget.

    A method in which keep has no say is there once.
    """
    from trimtok_cli.pruners.budget import Budget
    from trimtok_cli.pruners.registry import PRUNERS, build_pruner

    every = [name for name, method in PRUNERS.items() if method]
    names = []
    for name in config.method.split(","):
        names += every if name.strip() == "all" else [name.strip()]
    built = [
        build_pruner(method, {**pruning(config, method), "keep": keep.strip()})
        for method in names
        for keep in config.keep.split(",")
    ]
    different: dict[Any, Any] = {}
    for pruner in built:
        if pruner is not None:
            same = pruner if pruner.reads_keep else replace(pruner, keep=Budget())
            different.setdefault(same, pruner)
    pruners = list(different.values())
    if not pruners:
        raise UsageError(
            "nothing to compare with dense: give --keep fewer tokens than all, and a "
            "--methods other than dense."
        )
    return [None, *pruners]


def describe(adapter) -> dict[str, str]:
    """Facts about the model, for run.json and the page."""
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


def count_workers(setting: int | str, device: str, total: int | None, share: int = 1) -> int:
    """The number of worker processes. total: the number of inputs, None if not known.

    `auto` is 0 on a CPU, which has no core to spare, and for few inputs. share: the number of GPUs
    that have as many workers each.
    """
    if setting != "auto":
        return setting
    if device == "cpu" or (total is not None and total <= FEW_INPUTS):
        return 0
    return usual_workers(share)


def start_workers(processes: Processes, config: RunConfig, total: int | None) -> None:
    """Starts the run's worker processes, at most one for each input, before the model loads."""
    device = config.device
    # Whether there is a GPU, only torch can say.
    if config.workers == "auto" and device != "cpu" and count_workers("auto", "cuda", total):
        from trimtok_cli.device import pick_device

        device = pick_device(device).type
    count = count_workers(config.workers, device, total)
    processes.start(count if total is None else min(count, total))


def reads(config: RunConfig, source: Source, config_file: str | None) -> list[Path | str | int]:
    """The files that a run reads, as far as they are known: sources, settings, model folders."""
    folders = [name for name in (config.model, config.clip_text) if name]  # or names of checkpoints
    return [
        *(file for file in source.files if not isinstance(file, Stored)),
        *([config_file] if config_file else []),
        *(path for name in folders for path in listed(name)),
    ]


def check_stdin(*sources: str) -> None:
    """Raises UsageError if standard input is to be read and is closed."""
    if "-" in sources and sys.stdin is None:
        raise UsageError(
            "standard input is closed, so nothing can be read from -; name a file or a folder."
        )


def check_json(out: str | None, as_json: bool) -> None:
    """Raises UsageError if --json would write between the answers."""
    if as_json and out == "-":
        raise UsageError(
            "--json: answers are on standard output already; name a folder or a .jsonl file with "
            "-o."
        )


def show_files(destination: Destination, as_json: bool) -> None:
    """With --json, prints where the files of a run are and what its run.json says."""
    if as_json and destination.manifest and destination.manifest.exists():
        said = json.loads(destination.manifest.read_text(encoding="utf-8"))
        files = {
            "answers": destination.file,
            "manifest": destination.manifest,
            "page": destination.page,
        }
        where = {name: str(path) for name, path in files.items() if path}
        if sent := destination.sent:  # what lies here is a copy of what was sent
            folder = sent.rpartition("/")[0] if sent.endswith(".jsonl") else sent.rstrip("/")
            where = {name: f"{folder}/{path.name}" for name, path in files.items() if path}
        print(json.dumps({**where, **said}, indent=2))


def check_video(adapter, config: RunConfig) -> None:
    """Raises ModelError, before the run, if the family lacks the video path that is asked for."""
    if config.video_as == "video" and not adapter.preprocessor.has_video:
        raise ModelError(
            f"--video-as video: {config.model} has no video path of its own; use --video-as frames."
        )
