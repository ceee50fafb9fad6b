"""Results of finished requests and of failures: counts, times, and notes for the record."""

import logging
from dataclasses import replace

from trimtok_cli.data import Failed, Result, Setting, TokenCounts
from trimtok_cli.device import out_of_memory, peak_bytes
from trimtok_cli.engine.batch import Pruned
from trimtok_cli.engine.prompt_stage import layer_mean
from trimtok_cli.errors import SampleError, sentence
from trimtok_cli.generation.types import Finished
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.positions import shortage, steps_that_fit
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.reasoning import answer_alone
from trimtok_cli.tokens import Prompt

NO_MEMORY = (
    "the memory does not hold it, even alone; fewer or smaller pictures (--max-pixels), or a "
    "smaller --keep, may fit"
)

log = logging.getLogger("trimtok")


def result_of(adapter: Adapter, pruner: Pruner | None, finished: Finished) -> Result:
    """The Result of a finished request. An answer is cut off where the model's positions end."""
    request, answer, limit = finished.request, finished.answer, adapter.num_positions
    text = len(request.prompt) - len(request.prompt.visual)
    dense = text + request.num_visual if adapter.renumbers else request.positions
    notes = []
    if shortage(limit, dense, visual=request.num_visual):
        notes.append(
            f"not pruned, the prompt takes {dense:,} positions and the model has {limit:,}: "
            "dense cannot answer it"
        )
    steps = steps_that_fit(limit, request.positions, answer.steps)
    if steps < answer.steps:
        answer = replace(answer, ids=answer.ids[:steps], steps=steps, finish="length")
        notes.append(f"the answer was cut off where the model's {limit:,} positions end")
    return Result(
        sample=request.sample,
        question=request.prepared.question,
        answer=adapter.decode(answer.ids),
        setting=Setting.of(pruner),
        tokens=TokenCounts(
            text=text,
            visual=request.num_visual,
            kept=len(request.kept[-1].tokens),
            layer_mean=round(layer_mean(request.kept, adapter.num_layers), 3),  # as a record has it
            generated=answer.steps,
            stages=tuple((each.layer, len(each.tokens)) for each in request.kept),
        ),
        seconds=(request.seconds + finished.seconds).in_microseconds(),
        peak_bytes=peak_bytes(adapter.device),
        kept=request.kept,
        grid=request.grid,
        finish=answer.finish,
        prompt_sent=request.prepared.inputs.text,
        media=request.prepared.media,
        batch_size=finished.peak_batch,
        notes=tuple(notes),
    )


def shown(result: Result, ask: Ask) -> Result:
    """The result as the run wants it: with its reasoning, or without."""
    return answer_alone(result) if ask.strip_reasoning else result


def failure_of(request: Pruned, error: Exception) -> Failed:
    """The failure of a request that ended in an error."""
    return Failed(request.sample, error, request.number)


def failed_result(failed: Failed, pruner: Pruner | None, ask: Ask) -> Result:
    """The Result of a sample that could not be answered."""
    log.debug("sample %s failed", failed.sample.id, exc_info=failed.error)
    memory = out_of_memory(failed.error)
    return Result(
        sample=failed.sample,
        question=ask.question(failed.sample),
        setting=Setting.of(pruner),
        error=NO_MEMORY if memory else sentence(failed.error),
        error_class="MemoryError" if memory else type(failed.error).__name__,
    )


def positions_used(adapter: Adapter, prompt: Prompt) -> int:
    """The number of positions up to a prompt's last one.

    Under M-RoPE a position is not a token's number, and pruning does not change positions.
    """
    return len(prompt) if adapter.renumbers else int(prompt.positions.max()) + 1


def too_long(adapter: Adapter, pruned: Pruned) -> SampleError | None:
    """The error of a sample whose pruned prompt is longer than the model's positions, or None."""
    said = shortage(adapter.num_positions, pruned.positions, visual=len(pruned.prompt.visual))
    return SampleError(said) if said else None
