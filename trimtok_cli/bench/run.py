"""A whole benchmark: loads models one after the other, measures, and fills the document row by row.

Knows no table, no plot and no file format.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trimtok_cli.bench.batch import make_pruner
from trimtok_cli.bench.counts import counts_rows
from trimtok_cli.bench.grid import grid_rows, in_words, pruners
from trimtok_cli.bench.hardware import conditions, measure_ceilings
from trimtok_cli.bench.images import pictures
from trimtok_cli.bench.parts import decode_rows, pruner_row
from trimtok_cli.bench.random_models import describe, random_model
from trimtok_cli.bench.roofline import Ceilings
from trimtok_cli.bench.schedule import schedule_row
from trimtok_cli.bench.spec import PARTS, Bench, MemoryPart, PrunerPart, SchedulePart
from trimtok_cli.bench.whole_runs import memory_row, overhead_rows
from trimtok_cli.device import frozen_heap, pick_device, pick_dtype, release
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.loading import load_model

Row = dict[str, Any]

Say = Callable[[str], None]


def run_bench(bench: Bench, say: Say, save: Callable[[Row], None]) -> Row:
    """The document of bench.json without derived figures; `save` is given it after every row.

    Raises UsageError before anything is measured. Later a measurement that fails is a row that says
    why.
    """
    device = pick_device(bench.device)
    dtype = pick_dtype(bench.dtype, device)
    document: Row = {part: [] for part in PARTS}
    with tempfile.TemporaryDirectory(prefix="trimtok-bench-") as name:
        folder = Path(name)
        check(bench, folder)
        document["conditions"] = conditions(device, dtype) | {
            "random_weights": bench.random_weights
        }

        def keep(part: str, rows: Iterable[Row]) -> None:
            for row in rows:
                document[part].append(row)
                save(document)

        for task in bench.memory:  # first, in a process that has done nothing else yet
            job = partial(_memory, bench, task, folder, say)
            keep("memory", _safely(f"{task.model}, memory", job))
        for counted in bench.counts:
            title = f"{counted.model}, counts, {counted.image}"
            say(f"counting: {title}")
            keep("counts", _safely(title, partial(counts_rows, counted, bench, folder)))
        for scheduled in bench.schedule:
            say(f"schedule: {scheduled.title}")
            keep("schedule", _safely(scheduled.title, partial(_schedule, scheduled, bench)))
        say("measuring what the device can do")
        ceilings = measure_ceilings(device, dtype)
        document["ceilings"] = {
            "flops_per_second": ceilings.flops,
            "bytes_per_second": ceilings.bytes,
        }
        save(document)
        for part in bench.pruner:
            title = f"{part.candidates} candidates of {part.width}, {part.keep} kept"
            say(f"pruner: {title}")
            job = partial(_pruner, part, device, dtype, bench)
            keep("pruner", _safely(title, job))
        for model in replace(bench, memory=(), counts=()).model_names():
            for part, rows in _with_model(bench, model, ceilings, folder, say):
                keep(part, rows)
    return document


def _pruner(
    part: PrunerPart, device: torch.device, dtype: torch.dtype, bench: Bench
) -> Iterator[Row]:
    yield pruner_row(part, device, dtype, bench)


def _schedule(part: SchedulePart, bench: Bench) -> Iterator[Row]:
    yield schedule_row(part, bench)


def _memory(bench: Bench, task: MemoryPart, folder: Path, say: Say) -> Iterator[Row]:
    adapter = load(bench, task.model, say)
    say(f"memory: {max(task.inputs)} inputs")
    yield memory_row(adapter, task, bench, folder)


def _with_model(
    bench: Bench, model: str, ceilings: Ceilings, folder: Path, say: Say
) -> Iterator[tuple[str, Iterable[Row]]]:
    """The measurements of one model: each part of the document with its rows."""
    parts: dict[str, tuple] = {
        "grid": (
            [task for task in bench.grid if model in task.model],
            partial(grid_rows, ceilings=ceilings),
        ),
        "decode": ([task for task in bench.decode if model == task.model], decode_rows),
        "overhead": ([task for task in bench.overhead if model == task.model], overhead_rows),
    }
    try:
        adapter = load(bench, model, say)
    except Exception as error:  # the other models can still be measured
        first = next(part for part, (tasks, _) in parts.items() if tasks)
        yield first, [failed(model, in_words(error))]
        return
    with frozen_heap():
        for part, (tasks, job) in parts.items():
            for task in tasks:
                title = f"{model}, {part}, {task.image}"
                say(title)
                yield part, _safely(title, partial(job, adapter, task, bench=bench, folder=folder))


def _safely(title: str, job: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """The rows of a measurement, and where it breaks off a row that says why."""
    try:
        yield from job()
        return
    except Exception as error:
        reason = in_words(error)
    yield failed(title, reason)


def failed(title: str, reason: str) -> Row:
    """The row of a measurement that could not be made."""
    return {"key": title, "cell": title, "setting": "", "baseline": False, "error": reason}


def load(bench: Bench, name: str, say: Say) -> Adapter:
    """A model with its own or with random weights, after the last model's memory is given back."""
    release(pick_device(bench.device))
    say(f"building {name} with random weights" if bench.random_weights else f"loading {name}")
    if bench.random_weights:
        return random_model(
            name, bench.described(name), device=bench.device, dtype=bench.dtype, seed=bench.seed
        )
    return load_model(name, device=bench.device, dtype=bench.dtype)


def check(bench: Bench, folder: Path) -> None:
    """Raises UsageError for everything that fails before a model is loaded.

    Checked are methods, pictures and descriptions.
    """
    for task in bench.grid:
        pruners(task, bench.seed)
    for task in (*bench.decode, *bench.overhead, *bench.memory, *bench.counts):
        for method in [task.method] if isinstance(task.method, str) else task.method:
            make_pruner(method, task.keep, task.params, bench.seed)
    for task in bench.tasks:
        pictures(task.image, folder, seed=bench.seed)
    described = bench if bench.random_weights else Bench(counts=bench.counts)
    for name in described.model_names():
        describe(name, bench.described(name))
