"""The tally of a device's work: kernels, launches, bytes, FLOPs, attention calls and waits.

A kernel's bytes are those of its operands and results, each read or written once. FLOPs are counted
of matrix products, convolutions and attention; 1 MAC = 2 FLOPs. Knows no device and no model.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

from torch import Tensor

PRODUCTS = {"linear", "mm", "bmm", "addmm", "baddbmm", "convolution"}
# Operations that move the numbers of their last operand, whatever the size of the tensor that they
# write into.
PARTIAL = {"copy_", "index_put_", "_index_put_impl_", "index_copy_", "scatter_"}
# Operations that read as much of their first operand as their result is large.
GATHERS = {"embedding", "index", "index_select", "gather"}
# Operations whose result is a number of the host's, by the name of the wait for it.
READ = {"_local_scalar_dense": "item", "allclose": "allclose", "equal": "equal"}
# Operations whose result is as large as values say.
UNSIZED = {
    "nonzero",
    "masked_select",
    "repeat_interleave",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
    "bincount",
}
# A wait during which the device has more to do: it does not stand still.
WORK_BEHIND = "an event with work behind it"


@dataclass
class Work:
    """What a device was asked to do.

    kernels: by the operation's name. launches: calls of the host; a replayed recording is one.
    attention: calls by the shapes of query and key, and whether there is a mask and a causal rule.
    waits: reads for which the host waits, by their kind. notes: whatever a model says of its steps.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    launches: int = 0
    bytes: float = 0
    flops: float = 0
    attention: Counter[tuple] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Work") -> None:
        """Adds the kernels of a recording, which is launched once."""
        self.kernels += other.kernels
        self.attention += other.attention
        self.notes += other.notes
        self.launches += 1
        self.bytes += other.bytes
        self.flops += other.flops

    def kernel(self, name: str, moved: float, flops: float, shape: tuple = ()) -> None:
        """Adds one kernel; `shape` is that of an attention call."""
        self.kernels[name] += 1
        self.launches += 1
        self.bytes += moved
        self.flops += flops
        if shape:
            self.attention[shape] += 1

    @property
    def stops(self) -> int:
        """The number of waits after which the device has nothing to do."""
        return sum(self.waits.values()) - self.waits[WORK_BEHIND]

    @property
    def products(self) -> int:
        """The number of matrix products and convolutions."""
        return sum(count for name, count in self.kernels.items() if name in PRODUCTS)


class Tally:
    """The work since it was last taken, and the recordings of the whole run."""

    def __init__(self) -> None:
        self.work = Work()
        self.recordings: list[Work] = []
        self.replays = 0
        # Launches so far.
        self.asked = 0
        self.recording = False

    def take(self) -> Work:
        """The work since the last call."""
        taken, self.work = self.work, Work()
        return taken

    @contextmanager
    def recorded(self) -> Iterator[Work]:
        """A block whose work is that of a recording: it is asked for, and not yet done."""
        outside, own = self.work, Work()
        self.work, self.recording = own, True
        try:
            yield own
        finally:
            self.work, self.recording = outside, False
        self.recordings.append(own)

    def replay(self, recording: Work) -> None:
        """A recording that is launched."""
        self.replays += 1
        self.asked += 1
        self.work.add(recording)

    def wait(self, name: str) -> None:
        """A read for which the host waits. Raises RuntimeError in a recording, as a device does."""
        if self.recording:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        self.work.waits[name] += 1

    def kernel(self, name: str, moved: float, flops: float = 0, shape: tuple = ()) -> None:
        """One kernel."""
        self.asked += 1
        self.work.kernel(name, moved, flops, shape)

    def operation(self, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """One kernel, with the bytes and FLOPs of its operands."""
        moved = sum(each.nbytes for each in (*inputs, *outputs))
        if name in PARTIAL:
            moved = 2 * inputs[-1].nbytes
        elif name in GATHERS:
            moved = 2 * outputs[0].nbytes
        shape = _attended(inputs) if "attn" in name or "attention" in name else ()
        self.kernel(name, moved, _flops(name, inputs, outputs), shape)


def _attended(inputs: Sequence[Tensor]) -> tuple:
    """The shapes of an attention operation of its own: query and key, or what stands there."""
    return tuple(tuple(each.shape) for each in inputs[:2])


def _flops(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    if name not in PRODUCTS:
        return 0
    if name == "convolution":
        return 2 * outputs[0].numel() * prod(inputs[1].shape[1:])
    # The operands of a product stand last, but for a layer's bias.
    left = inputs[0] if name == "linear" else inputs[-2]
    return 2 * outputs[0].numel() * left.shape[-1]
