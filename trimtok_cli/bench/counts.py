"""Counted facts of a model at its real size, without a device: launches, bytes, FLOPs, waits.

The engine's own functions and the run's own loop work on a pretended device, so that what is
counted is what a run would launch. No weights are made. Knows no YAML file.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
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
from trimtok_cli.generation.slot_attention import has_kernels
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
    with ExitStack() as held:
        tally = held.enter_context(pretend_cuda())
        adapter = shape_model(task.model, bench.described(task.model))
        adapter.faster  # noqa: B018 (the forms are found once, where weights can be laid out anew)
        held.enter_context(torch.inference_mode())
        with outside():
            # Questions of unequal length, as those of a run are.
            known = [
                prepare(adapter.preprocessor, sample, Ask(task.prompt + "?" * (number % 2)))
                for number, sample in enumerate(samples[: max(task.batch)])
            ]
        # What the first run alone does, such as constants made once, is no part of a stage.
        encode(adapter, known[:1], signals=True)
        has_kernels(adapter.device, adapter.dtype)
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
    # The choices of a method that goes on inside the decoder are a part of its prefill.
    if pruner is not None and 0 in pruner.stages(adapter.num_layers):
        yield _row(facts, "prune", pruned)
    once = _generated(adapter, pruner, requests, 2, tally)
    twice = _generated(adapter, pruner, requests, 3, tally)
    step = _difference(twice, once)
    yield _row(facts, "prefill", _difference(once, step))
    yield _row(facts, "decode step", step)


def _generated(
    adapter: Adapter,
    pruner: Pruner | None,
    requests: Sequence[Request],
    new_tokens: int,
    tally: Tally,
) -> Work:
    """The work of answers of so many new tokens: a prefill, and a step less than the tokens."""
    loops = Loops(adapter, decode="continuous", new_tokens=new_tokens, batch=len(requests))
    loop = loops.of(pruner)
    tally.take()
    for finished in run(loop, requests):
        if finished.error:
            raise finished.error
    return tally.take()


def _difference(whole: Work, part: Work) -> Work:
    """The work of a whole without that of a part of it."""
    rest = Work(
        launches=whole.launches - part.launches,
        bytes=whole.bytes - part.bytes,
        flops=whole.flops - part.flops,
    )
    for name in ("kernels", "attention", "waits"):
        left = Counter(getattr(whole, name))
        left.subtract(getattr(part, name))
        setattr(rest, name, +left)
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
        "waits": work.stops,
        "waits_by_kind": dict(work.waits),
        "bytes": round(work.bytes),
        "flops": round(work.flops),
        "by_name": dict(work.kernels.most_common()),
        "error": "",
    }
