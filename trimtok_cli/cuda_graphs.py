"""Passes recorded as CUDA graphs and replayed: one launch in place of a thousand.

Decode steps are one kind, prefills of few tokens another (generation/recorded_prefills.py), vision
towers of few crops a third (models/vision/recorded_tower.py). A graph has one shape, so the numbers
of a step's slots and places are rounded up to a few sizes, and the surplus is masked.
Knows no model.
"""

import gc
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trimtok_cli.device import (
    LAUNCHES,
    forget_frames,
    most_bytes,
    out_of_memory,
    release,
    unreserved_bytes,
)

log = logging.getLogger("trimtok")

# Passes of a shape before it is recorded: prefills, and steps of a full batch. A recording costs
# about as many passes.
PAYS = 8
# Steps before a smaller shape is recorded, which a full batch's recording can stand in for.
PAYS_BESIDE = 64
EVERY = 16  # a count above this is rounded up to a multiple of it, a lower one to a power of two
SPARE = 64 << 20  # bytes that the allocator may round a recording's pool up by
PLACES = 256  # the span of a shape is a multiple of so many places
Shape = tuple[int, ...]
Step = Callable[..., Any]
"""step(count, *spans) -> logits, prefill(count, length) -> logits, or any other pass of a shape. It
reads tensors that stay in place, and never waits."""


class CudaGraphs:
    """The recordings of one kind of pass.

    kind: the passes' name in a warning. replayed, eager: passes so far, for measurements: launched
    as one, and kernel by kernel. used: whether passes are recorded at all.
    """

    def __init__(self, device: torch.device, kind: str = "decode steps") -> None:
        self.device, self.kind, self.used = device, kind, device.type == "cuda"
        self.replayed = self.eager = 0
        self.clear()

    def clear(self) -> None:
        """Forgets the recordings, because the tensors that they read are about to be made anew."""
        self.recorded: dict[Shape, tuple[torch.cuda.CUDAGraph, Any]] = {}
        self.asked: Counter[Shape] = Counter()
        self.given_up: set[Shape] = set()
        self.pool: Any = None

    def __call__(
        self, step: Step, count: int, spans: Sequence[int], rows: int, places: Sequence[int]
    ) -> Tensor:
        """Logits (count, V) of a step, replayed if its shape was recorded.

        spans: the places that the step sees, in each group of layers. rows, places: the size of the
        whole cache. A recorded step and an eager one have the same shapes and numbers. A step
        without a recording may run as a larger one that has it.
        """
        up = [-(-span // PLACES) * PLACES for span in spans]
        shape = rounded(count, rows), *map(min, up, places)
        self.asked[shape] += 1
        if self._pays(shape, rows):
            with LAUNCHES:
                self._try(step, shape)
        ran = shape if shape in self.recorded else self._larger(shape)
        return self._run(step, shape, ran)[:count]

    def exactly(self, prefill: Step, shape: Shape) -> Any:
        """What a pass of exactly this shape returns, replayed if the shape was recorded.

        A replay writes into the tensors that the recording returned.
        """
        self.asked[shape] += 1
        known = shape in self.recorded or shape in self.given_up
        if self.asked[shape] > PAYS and not known:
            with LAUNCHES:
                self._try(prefill, shape)
        return self._run(prefill, shape, shape if shape in self.recorded else None)

    def _run(self, step: Step, shape: Shape, ran: Shape | None) -> Any:
        """Replays the recorded shape `ran`, or runs `shape` kernel by kernel if there is none."""
        if ran is None:
            self.eager += 1
            return step(*shape)
        self.replayed += 1
        graph, logits = self.recorded[ran]
        graph.replay()
        return logits

    def _pays(self, shape: Shape, rows: int) -> bool:
        """Whether a recording of a shape is likely to be replayed often enough.

        While prompts wait, three quarters of the slots are in use. Fewer are in use when the last
        answers of a run end, which takes few steps.
        """
        if shape in self.recorded or shape in self.given_up or 4 * shape[0] < 3 * rows:
            return False
        return self.asked[shape] > (PAYS if shape[0] == rows else PAYS_BESIDE)

    def _larger(self, shape: Shape) -> Shape | None:
        """The smallest recorded shape that covers this one, at most twice as large."""
        covering = [each for each in self.recorded if all(map(int.__ge__, each, shape))]
        best = min(covering, key=_seen, default=None)
        return best if best and _seen(best) <= 2 * _seen(shape) else None

    def _try(self, step: Step, shape: Shape) -> None:
        try:
            needed = self._check(step, shape)
            if self._fits(needed):
                self._record(step, shape)
            else:
                log.debug("no memory to record %s of shape %s", self.kind, shape)
                self.given_up.add(shape)
            return
        except Exception as error:
            failed = forget_frames(error)
        if ran_out(failed):
            log.debug("no memory to record %s of shape %s", self.kind, shape, exc_info=failed)
            self.given_up.add(shape)
            release(self.device)
            return
        log.warning(
            "%s of this model cannot be recorded (%s); they run one kernel at a time",
            self.kind,
            failed,
        )
        self.used = False
        self.clear()

    def _check(self, step: Step, shape: Shape) -> int:
        """Returns the bytes that the step takes. Raises if it waits for the device.

        A wait during a recording would leave the allocator in recording mode. A step may be run any
        number of times: it writes the same keys to the same places.
        """
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
            try:
                return most_bytes(lambda: step(*shape), self.device)
            finally:
                torch.cuda.set_sync_debug_mode(before)

    def _fits(self, needed: int) -> bool:
        """Whether a recording of a step of so many bytes finds them, in a pool of its own.

        torch up to 2.11 ends the process where memory runs out during a recording.
        """
        needed += needed // 4 + SPARE
        if unreserved_bytes(self.device) < needed:
            release(self.device)
        return unreserved_bytes(self.device) >= needed

    def _record(self, step: Step, shape: Shape) -> None:
        graph = torch.cuda.CUDAGraph()
        with (
            no_collection(),
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=self.pool),
        ):
            logits = step(*shape)
        self.pool = self.pool or graph.pool()
        self.recorded[shape] = graph, logits


def rounded(count: int, rows: int) -> int:
    """The number of slots that a step of `count` answers runs with, of `rows` that there are."""
    up = 1 << (count - 1).bit_length() if count <= EVERY else -(-count // EVERY) * EVERY
    return min(up, rows)


def _seen(shape: Shape) -> int:
    """The places that a step of a shape sees, in one layer of each group."""
    count, *spans = shape
    return count * sum(spans)


def ran_out(error: BaseException | None) -> bool:
    """Whether memory ran out; a recording that it ends may end in another error behind it."""
    return error is not None and (out_of_memory(error) or ran_out(error.__context__))


@contextmanager
def no_collection() -> Iterator[None]:
    """A block without garbage collection: a graph destroyed in a recording would spoil it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
