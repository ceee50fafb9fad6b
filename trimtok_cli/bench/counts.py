"""Counted facts of a model at its real size, without a device: launches, bytes, FLOPs, waits.

The engine's own functions and the run's own loop work on a pretended device, so that what is
counted is what a run would launch. No weights are made. Knows no YAML file.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trimtok_cli.bench.batch import Loops, make_pruner
from trimtok_cli.bench.grid import samples_of
from trimtok_cli.bench.pretend_calls import outside
from trimtok_cli.bench.pretend_cuda import pretend_cuda
from trimtok_cli.bench.random_models import shape_model
from trimtok_cli.bench.spec import Bench, CountsPart
from trimtok_cli.bench.tally import Tally, Work
from trimtok_cli.data import Setting
from trimtok_cli.engine.answer import encode, prune
from trimtok_cli.generation.types import Request, run
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.sample import Ask, Prepared, prepare
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.pruners.registry import reads_tower

Row = dict[str, Any]


def counts_rows(task: CountsPart, bench: Bench, folder: Path) -> Iterator[Row]:
    """A row for every stage of every setting and batch. Raises the errors of reading pictures."""
    samples = samples_of(task, folder, bench.seed)
    methods = [make_pruner(name, task.keep, task.params, bench.seed) for name in task.method]
    with pretend_cuda() as tally, torch.inference_mode():
        adapter = shape_model(task.model, bench.described(task.model))
        with outside():
            # Questions of unequal length, as those of a run are.
            known = [
                prepare(adapter.preprocessor, sample, Ask(task.prompt + "?" * (number % 2)))
                for number, sample in enumerate(samples[: max(task.batch)])
            ]
        # What the first run alone does, such as constants made once, is no part of a stage.
        encode(adapter, known[:1], signals=True)
        adapter.faster  # noqa: B018 (the forms are found once)
        for pruner in methods:
            for batch in task.batch:
                inputs = [replace(known[n % len(known)], number=n) for n in range(batch)]
                yield from _stages(adapter, pruner, inputs, tally)


def _stages(
    adapter: Adapter, pruner: Pruner | None, inputs: Sequence[Prepared], tally: Tally
) -> Iterator[Row]:
    """The rows of one setting and batch."""
    setting = Setting.of(pruner).name
    facts: Row = {"model": adapter.name, "setting": setting, "batch": len(inputs)}
    tally.take()
    encoded = encode(adapter, inputs, signals=reads_tower(pruner))
    yield _row(facts, "encode", tally.take())
    requests = prune(adapter, pruner, encoded)
    facts["prompt_tokens"] = max(len(request.prompt) for request in requests)
    pruned = tally.take()
    if pruner is not None:
        yield _row(facts, "prune", pruned)
    first, _ = _generated(adapter, requests, 1, tally)
    yield _row(facts, "prefill", first)
    both, steps = _generated(adapter, requests, 2, tally)
    yield _row(facts, "decode step", _difference(both, first, steps))


def _generated(
    adapter: Adapter, requests: Sequence[Request], new_tokens: int, tally: Tally
) -> tuple[Work, int]:
    """The work of answers of so many new tokens, and the number of decode steps in it."""
    loop = Loops(adapter, decode="continuous", new_tokens=new_tokens, batch=len(requests)).of(None)
    with counted_steps(adapter, tally):
        for finished in run(loop, requests):
            if finished.error:
                raise finished.error
    work = tally.take()
    return work, work.notes["steps"]


@contextmanager
def counted_steps(adapter: Adapter, tally: Tally) -> Iterator[None]:
    """A block in which every pass of one new token a row is noted as a step."""
    forward = adapter.forward

    def noting(embeds: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if embeds.shape[1] == 1:
            tally.work.notes["steps"] += 1
        return forward(embeds, *args, **kwargs)

    adapter.forward = noting
    try:
        yield
    finally:
        del adapter.forward


def _difference(both: Work, first: Work, steps: int) -> Work:
    """The work of one step: that of several, without that of the prefill."""

    def share(whole: float, part: float) -> float:
        return (whole - part) / steps

    rest = Work(bytes=share(both.bytes, first.bytes), flops=share(both.flops, first.flops))
    rest.launches = round(share(both.launches, first.launches))
    for name in ("kernels", "attention", "waits"):
        left = getattr(both, name) - getattr(first, name)
        for key, count in left.items():
            getattr(rest, name)[key] = round(count / steps)
    return rest


def _row(facts: Row, stage: str, work: Work) -> Row:
    key = f"{facts['model']}, {facts['setting']}, batch {facts['batch']}: {stage}"
    return {
        "key": key,
        **facts,
        "stage": stage,
        "kernels": sum(work.kernels.values()),
        "launches": work.launches,
        "products": work.products,
        "attention": sum(work.attention.values()),
        "attention_shapes": len(work.attention),
        "waits": sum(work.waits.values()),
        "waits_by_kind": dict(work.waits),
        "bytes": round(work.bytes),
        "flops": round(work.flops),
        "by_name": dict(work.kernels.most_common()),
        "error": "",
    }
