"""A decode step recorded once as a CUDA graph and replayed: one launch in place of the thousand that an eager step takes.

A graph is of one shape, so slots and places are rounded up to a few sizes; what is too many is masked. Knows no model.
"""

import logging
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

log = logging.getLogger("trimtok")

PAYS = 8  # steps of one shape before it is recorded: recording costs about as much as so many eager ones
PLACES = 256  # shapes are so many places apart


class Graphs:
    """step(count, span) -> logits, which reads its inputs from tensors that stay where they are, and waits for nothing."""

    def __init__(self, step: Callable[[int, int], Tensor], device: torch.device) -> None:
        self.step, self.used = step, device.type == "cuda"
        self.clear()

    def clear(self) -> None:
        """Forgets the recordings: the tensors that they read are about to be made anew."""
        self.recorded: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.asked: Counter[tuple[int, int]] = Counter()
        self.pool = None

    def __call__(self, count: int, span: int, rows: int, places: int) -> Tensor:
        """(count, V). rows, places: how many there are in all. Recorded or not, the shapes and so the numbers are the same."""
        shape = min(1 << (count - 1).bit_length(), rows), min(-(-span // PLACES) * PLACES, places)
        self.asked[shape] += 1
        if self.asked[shape] > PAYS and shape not in self.recorded:
            self._record(shape)
        if shape not in self.recorded:
            return self.step(*shape)[:count]
        graph, logits = self.recorded[shape]
        graph.replay()
        return logits[:count]

    def _record(self, shape: tuple[int, int]) -> None:
        """The step has run eagerly in this shape, so its kernels are loaded. It writes where the next real step will write."""
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                logits = self.step(*shape)
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            log.warning("decode steps of this model cannot be recorded (%s); they run one kernel at a time", error)
            self.used = False
            self.asked.clear()
            return
        self.pool = self.pool or graph.pool()
        self.recorded[shape] = graph, logits
