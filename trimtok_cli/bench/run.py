"""A whole benchmark: models loaded one after the other, every measurement made, the document filled
row by row.

Knows no table, no plot and no file format.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from trimtok_cli.bench.batch import make_pruner
from trimtok_cli.bench.grid import grid_rows, in_words, pruners
from trimtok_cli.bench.hardware import conditions, measure_ceilings
from trimtok_cli.bench.images import pictures
from trimtok_cli.bench.parts import decode_rows, pruner_row
from trimtok_cli.bench.random_models import describe, random_model
from trimtok_cli.bench.roofline import Ceilings
from trimtok_cli.bench.spec import PARTS, Bench, MemoryPart
from trimtok_cli.bench.whole_runs import memory_row, overhead_rows
from trimtok_cli.device import pick_device, pick_dtype, release
from trimtok_cli.errors import UsageError
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.loading import load_model

Row = dict[str, Any]

Say = Callable[[str], None]


def run_bench(bench: Bench, say: Say, save: Callable[[Row], None]) -> Row:
    """The document of bench.json without what is derived from it; `save` is given it after every
    row.

    Raises UsageError before anything is measured; later a measurement that fails is a row that says
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
            keep(
                "memory",
                _safely(f"{task.model}, memory", partial(_memory, bench, task, folder, say)),
            )
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
            keep(
                "pruner", _safely(title, lambda part=part: [pruner_row(part, device, dtype, bench)])
            )
        for model in replace(bench, memory=()).model_names():
            for part, rows in _with_model(bench, model, ceilings, folder, say):
                keep(part, rows)
    return document


def _memory(bench: Bench, task: MemoryPart, folder: Path, say: Say) -> Iterator[Row]:
    adapter = load(bench, task.model, say)
    say(f"memory: {max(task.inputs)} inputs")
    yield memory_row(adapter, task, bench, folder)


def _with_model(
    bench: Bench, model: str, ceilings: Ceilings, folder: Path, say: Say
) -> Iterator[tuple[str, Iterable[Row]]]:
    """All that is measured with one model: the part of the document, and its rows."""
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
        yield (
            next(part for part, (tasks, _) in parts.items() if tasks),
            [failed(model, in_words(error))],
        )
        return
    for part, (tasks, job) in parts.items():
        for task in tasks:
            title = f"{model}, {part}, {task.image}"
            say(title)
            yield part, _safely(title, partial(job, adapter, task, bench=bench, folder=folder))


def _safely(title: str, job: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """The rows of a measurement; where it breaks off, one that says why."""
    try:
        yield from job()
        return
    except Exception as error:
        said = in_words(error)
    yield failed(title, said)


def failed(title: str, said: str) -> Row:
    return {"key": title, "cell": title, "setting": "", "baseline": False, "error": said}


def load(bench: Bench, name: str, say: Say) -> Adapter:
    """A model with its own weights or with random ones. What the last one held is given back
    first.
    """
    release(pick_device(bench.device))
    say(f"building {name} with random weights" if bench.random_weights else f"loading {name}")
    if bench.random_weights:
        return random_model(
            name, bench.described(name), device=bench.device, dtype=bench.dtype, seed=bench.seed
        )
    return load_model(name, device=bench.device, dtype=bench.dtype)


def check(bench: Bench, folder: Path) -> None:
    """UsageError for what can be known to fail before any model is loaded: methods, pictures,
    descriptions.
    """
    for task in bench.grid:
        for pruner in pruners(task, bench.seed):
            # They run the plain loop, so what they are compared with must run it as well.
            if pruner is not None and any(pruner.stages(32)) and set(task.decode) != {"simple"}:
                raise UsageError(
                    f"grid: {pruner.name} prunes inside the model: give it a grid of its own "
                    "with `decode: simple`."
                )
    for task in (*bench.decode, *bench.overhead, *bench.memory):
        for method in [task.method] if isinstance(task.method, str) else task.method:
            make_pruner(method, task.keep, task.params, bench.seed)
    for task in (*bench.grid, *bench.decode, *bench.overhead, *bench.memory):
        pictures(task.image, folder, seed=bench.seed)
    if bench.random_weights:
        for name in bench.model_names():
            describe(name, bench.described(name))
