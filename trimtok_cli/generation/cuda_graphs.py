"""Decode steps recorded as CUDA graphs and replayed: one launch in place of a thousand.

A graph has one shape, so the numbers of slots and places are rounded up to a few sizes, and the
surplus is masked. Knows no model.
"""

import gc
import logging
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trimtok_cli.device import LAUNCHES

log = logging.getLogger("trimtok")

# Steps of one shape before the shape is recorded: a recording costs about as many eager steps.
PAYS = 8
PLACES = 256  # the span of a shape is a multiple of so many places
Step = Callable[[int, int], Tensor]
"""step(count, span) -> logits. A step reads tensors that stay in place, and never waits."""


class CudaGraphs:
    def __init__(self, device: torch.device) -> None:
        self.used = device.type == "cuda"
        self.clear()

    def clear(self) -> None:
        """Forgets the recordings, because the tensors that they read are about to be made anew."""
        self.recorded: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.asked: Counter[tuple[int, int]] = Counter()
        self.pool: Any = None

    def __call__(self, step: Step, count: int, span: int, rows: int, places: int) -> Tensor:
        """Logits (count, V) of a step, replayed if its shape was recorded.

        rows, places: the size of the whole cache. A recorded step and an eager one have the same
        shapes and numbers.
        """
        shape = min(1 << (count - 1).bit_length(), rows), min(-(-span // PLACES) * PLACES, places)
        self.asked[shape] += 1
        if self.asked[shape] > PAYS and shape not in self.recorded:
            with LAUNCHES:
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
        """Raises if the step waits for the device.

        A wait during a recording would leave the allocator in recording mode. A step may be run any
        number of times: it writes the same keys to the same places.
        """
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the mode is a prototype
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
