"""Decode steps recorded as CUDA graphs and replayed: one launch in place of a thousand.

A graph has one shape, so slots and places are rounded up to a few sizes, and the surplus is masked.
Knows no model.
"""

import gc
import logging
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("trimtok")

# Steps of one shape before it is recorded: recording costs about as much as so many eager steps.
PAYS = 8
PLACES = 256  # shapes are so many places apart
Step = Callable[[int, int], Tensor]
"""step(count, span) -> logits. It reads tensors that stay where they are, and waits for nothing."""


class CudaGraphs:
    def __init__(self, device: torch.device) -> None:
        self.used = device.type == "cuda"
        self.clear()

    def clear(self) -> None:
        """Forgets the recordings: the tensors that they read are about to be made anew."""
        self.recorded: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.asked: Counter[tuple[int, int]] = Counter()
        self.pool: Any = None

    def __call__(self, step: Step, count: int, span: int, rows: int, places: int) -> Tensor:
        """Logits (count, V) of a step, replayed where its shape was recorded.

        rows, places: the whole cache's. Recorded or not, shapes and numbers are the same.
        """
        shape = min(1 << (count - 1).bit_length(), rows), min(-(-span // PLACES) * PLACES, places)
        self.asked[shape] += 1
        if self.asked[shape] > PAYS and shape not in self.recorded:
            self._try(step, shape)
        if shape not in self.recorded:
            return step(*shape)[:count]
        graph, logits = self.recorded[shape]
        graph.replay()
        return logits[:count]

    def _try(self, step: Step, shape: tuple[int, int]) -> None:
        try:
            self._check(step, shape)
            self._record(step, shape)
        except Exception as error:
            log.warning(
                "decode steps of this model cannot be recorded (%s); they run one kernel at a time",
                error,
            )
            self.used = False
            self.clear()

    def _check(self, step: Step, shape: tuple[int, int]) -> None:
        """Raises if the step waits for the device: during a recording that would leave the
        allocator in it.

        A step may be run any number of times: it writes the same keys to the same places.
        """
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
            try:
                step(*shape)
            finally:
                torch.cuda.set_sync_debug_mode(before)

    def _record(self, step: Step, shape: tuple[int, int]) -> None:
        # An old graph that is destroyed during a recording spoils the new one.
        gc.collect()
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=self.pool),
        ):
            logits = step(*shape)
        self.pool = self.pool or graph.pool()
        self.recorded[shape] = graph, logits
