"""Vision towers of few crops, recorded as decode steps are: a device is done with a crop or two
sooner than a host has launched their hundreds of kernels.

A recording holds the tower alone, and is made and replayed on the main thread alone. What hooks
have taken from it lies in tensors that a replay writes anew, and is copied for whoever reads it.
Knows no family.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trimtok_cli import cuda_graphs
from trimtok_cli.cuda_graphs import CudaGraphs
from trimtok_cli.models.vision.tower_signals import TowerRecorder

# With more crops a device is busy for longer than the launches take.
MOST_CROPS = 8


class RecordedTower:
    """The recordings of one tower."""

    def __init__(self, device: torch.device) -> None:
        self.graphs = CudaGraphs(device, "vision towers of few crops")
        self.pixels: dict[tuple[int, ...], Tensor] = {}

    @contextmanager
    def running(self, tower: torch.nn.Module, recorder: TowerRecorder) -> Iterator[None]:
        """Within this context, `tower` replays recordings where it can.

        recorder: what its hooks take is what they would take without a recording. The output and
        what is taken are tensors in tuples, lists and mappings.
        """
        if not self.graphs.used:
            yield
            return
        original, instance_forward = tower.forward, tower.__dict__.get("forward")

        def forward(*args: Any, **kwargs: Any) -> Any:
            named = dict(kwargs)
            pixels = args[0] if len(args) == 1 else named.pop("pixel_values", None)
            if not self._takes(pixels, named):
                return original(*args, **kwargs)
            return self._run(original, pixels, named, recorder)

        tower.forward = forward
        try:
            yield
        finally:
            del tower.forward
            if instance_forward is not None:
                tower.forward = instance_forward

    def _takes(self, pixels: Any, named: Mapping[str, Any]) -> bool:
        return (
            # What the main thread launches meanwhile would spoil another thread's recording.
            threading.current_thread() is threading.main_thread()
            and isinstance(pixels, Tensor)
            and pixels.dim() == 4
            and len(pixels) <= MOST_CROPS
            and not any(isinstance(value, Tensor) for value in named.values())
        )

    def _run(self, original: Any, pixels: Tensor, named: dict, recorder: TowerRecorder) -> Any:
        shape = (*pixels.shape, int(bool(recorder.attention)))
        if self.graphs.asked[shape] < cuda_graphs.PAYS:
            self.graphs.asked[shape] += 1
            self.graphs.eager += 1
            return original(pixels, **named)
        if shape not in self.pixels:
            self.pixels[shape] = torch.empty_like(pixels)
        given = self.pixels[shape].copy_(pixels)
        earlier = recorder.take()

        def run(*_: int) -> tuple[Any, dict]:
            recorder.take()
            return original(given, **named), recorder.take()

        output, taken = self.graphs.exactly(run, shape)
        if shape in self.graphs.recorded:
            output, taken = copied(output), copied(taken)
        recorder.put(earlier)
        recorder.put(taken)
        return output


def copied(value: Any) -> Any:
    """The value with copies of all its tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) is dict:
        return {name: copied(each) for name, each in value.items()}
    if isinstance(value, Mapping):  # an output of the library
        return type(value)(**{name: copied(each) for name, each in value.items()})
    if isinstance(value, (tuple, list)):
        return type(value)(copied(each) for each in value)
    return value
