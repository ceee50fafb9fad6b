"""What stands for the functions of torch.cuda that need a real device, while one is pretended.

Events and streams do nothing, a wait is counted, and a recording is noted by a recorder. Knows no
tensor's values.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import _disable_current_modes as outside

from trimtok_cli.bench.pretend_triton import launch
from trimtok_cli.bench.tally import WORK_BEHIND, Tally, Work

MEMORY = 80 << 30  # bytes that the device says it has


class Recorder(Protocol):
    """Notes the operations of a recording, each as a call that does it again."""

    recording: list[Callable[[], None]] | None


class Event:
    """An event of a device that has always finished its work.

    asked: what the device had been asked for when the event was recorded.
    """

    tally: Tally
    asked: int | None = None

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        self.asked = self.tally.asked

    def wait(self, *_: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        behind = self.asked is not None and self.tally.asked > self.asked
        self.tally.wait(WORK_BEHIND if behind else "an event")

    def elapsed_time(self, _: Any) -> float:
        return 0.0


class Stream(Event):
    """A queue of that device."""

    cuda_stream = 0

    def wait_stream(self, _: Any) -> None:
        pass

    wait_event = wait_stream

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: Any) -> None:
        pass


class Graph:
    """A recording: its work, and the operations that do it again."""

    tally: Tally

    def __init__(self, *_: Any, **__: Any) -> None:
        self.operations: list[Callable[[], None]] = []
        self.work = Work()

    def pool(self) -> tuple[int, int]:
        return 0, 1

    def reset(self) -> None:
        self.operations = []

    def replay(self) -> None:
        self.tally.replay(self.work)
        with outside():
            for operation in self.operations:
                operation()


def stand_ins(tally: Tally, recorder: Recorder) -> Iterator[tuple[Any, str, Any]]:
    """The functions that are replaced: their owner, their name, and what stands for them."""

    @contextmanager
    def recorded(graph: Graph, *_: Any, **__: Any) -> Iterator[None]:
        with tally.recorded() as graph.work:
            recorder.recording = graph.operations
            try:
                yield
            finally:
                recorder.recording = None

    def launched(kernel: Any, *given: Any, **named: Any) -> None:
        launch(tally, recorder, kernel, *given, **named)

    counted = {"tally": tally}
    stream = type("Stream", (Stream,), counted)()
    calls: dict[str, Any] = {
        "synchronize": lambda *_: tally.wait("the device"),
        "Event": type("Event", (Event,), counted),
        "Stream": type("Stream", (Stream,), counted),
        "CUDAGraph": type("CUDAGraph", (Graph,), counted),
        "graph": recorded,
        "is_current_stream_capturing": lambda: tally.recording,
        "mem_get_info": lambda *_: (MEMORY, MEMORY),
    }
    answers: dict[str, Any] = {
        "graph_pool_handle": (0, 1),
        "current_stream": stream,
        "default_stream": stream,
        "current_device": 0,
        "device_count": 1,
        "get_device_capability": (9, 0),
        "get_sync_debug_mode": 0,
        "set_sync_debug_mode": None,
        "empty_cache": None,
        "memory_reserved": 0,
        "get_per_process_memory_fraction": 1.0,
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "max_memory_reserved": 0,
        "reset_peak_memory_stats": None,
        "stream": nullcontext(),
        "device": nullcontext(),
        "device_of": nullcontext(),
    }
    for name, call in calls.items():
        yield torch.cuda, name, call
    for name, value in answers.items():
        yield torch.cuda, name, lambda *_, value=value, **__: value
    # torch for CPUs alone says None, and then some of a GPU's paths are not taken.
    yield torch.version, "cuda", torch.version.cuda or "13.0"
    if find_spec("triton"):  # every kernel of it is one launch
        from triton.runtime.jit import JITFunction

        yield JITFunction, "run", launched
