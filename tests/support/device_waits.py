"""A device that is not there: finds where the host waits for it, on any machine.

The tensors that would lie on the device are marked, by their storage. Within `Device` they say that
they lie on CUDA, so that the code takes its way for CUDA, and every read of a marked tensor by the
host is noted as a wait. Numbers are computed on the CPU as ever. What a function of
`torch.nn.functional` makes inside is seen by its operations alone.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)

# The host reads the values themselves.
_READS = {
    torch.Tensor.__float__,
    torch.Tensor.__format__,
    torch.Tensor.__index__,
    torch.Tensor.__int__,
    torch.Tensor.item,
    torch.Tensor.numpy,
    torch.Tensor.tolist,
}

# Operations whose result has a size that the values decide, or that give the host a number.
_WAITING = {
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}


class Device:
    """Within this context, marked tensors lie on CUDA; `waits` counts (stage, operation, site)."""

    def __init__(self) -> None:
        self.marks: dict[int, StorageWeakRef] = {}
        self.pinned: dict[int, StorageWeakRef] = {}
        self.waits: Counter[tuple[str, str, str]] = Counter()
        self.stage = "outside"
        self.launched = self.done = 0  # operations on the device

    def mark(self, *tensors: torch.Tensor) -> None:
        for tensor in tensors:
            _add(self.marks, tensor)

    def holds(self, value: object) -> bool:
        return isinstance(value, torch.Tensor) and _has(self.marks, value)

    def note(self, operation: str) -> None:
        self.waits[self.stage, operation, _site()] += 1

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """What waits in this context belongs to `stage`."""
        before, self.stage = self.stage, stage
        try:
            yield
        finally:
            self.stage = before

    def count(self, stage: str) -> int:
        return sum(count for (where, _, _), count in self.waits.items() if where == stage)

    def __enter__(self) -> "Device":
        self._modes = [
            mock.patch.object(torch.cuda, "synchronize", lambda *_: None),
            mock.patch.object(torch.cuda, "reset_peak_memory_stats", lambda *_: None),
            mock.patch.object(torch.cuda, "Event", partial(_Event, self)),
            _Functions(self),
            _Operations(self),
        ]
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def place(self, adapter) -> None:
        """Puts a loaded model on the device."""
        self.mark(*adapter.model.parameters(), *adapter.model.buffers())
        adapter.device = CUDA


class _Functions(TorchFunctionMode):
    """Calls from Python: where tensors say they lie, how they are made there and how they move."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = self.device
        first = args[0] if args else None
        if function == torch.Tensor.device.__get__ and device.holds(first):
            return CUDA
        if function == torch.Tensor.is_cuda.__get__ and device.holds(first):
            return True
        if function is torch.Tensor.pin_memory:
            tensor = first.clone()
            _add(device.pinned, tensor)
            return tensor
        if function is torch.Tensor.cpu:
            return self._moved(first, torch.device("cpu"), False)
        if function is torch.Tensor.to:
            target, dtype, non_blocking = self._target(args, kwargs)
            if target is not None:
                moved = self._moved(first, target, non_blocking)
                return moved if dtype is None else moved.to(dtype)
        if function in _READS and device.holds(first):
            device.note(function.__name__)
        if kwargs.get("pin_memory"):
            del kwargs["pin_memory"]
            with torch.utils._python_dispatch._disable_current_modes():
                tensor = function(*args, **kwargs)
            _add(device.pinned, tensor)
            return tensor
        made_there = _is_cuda(kwargs.get("device"))
        if made_there:
            kwargs["device"] = torch.device("cpu")
            # Values of the host's are copied from pageable memory.
            if function in (torch.tensor, torch.as_tensor) and not device.holds(first):
                device.note(function.__name__)
        result = function(*args, **kwargs)
        if made_there:
            device.mark(result)
        return result

    def _target(self, args: tuple, kwargs: dict) -> tuple:
        """The device, dtype and `non_blocking` of a call of `Tensor.to`; None for those not said."""
        said = [*args[1:], *kwargs.values()]
        target = dtype = None
        for value in said:
            if isinstance(value, torch.Tensor):
                target = CUDA if self.device.holds(value) else torch.device("cpu")
                dtype = value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, (str, torch.device)):
                target = torch.device(value)
        return target, dtype, kwargs.get("non_blocking", False)

    def _moved(self, tensor, target: torch.device, non_blocking: bool):
        here = self.device.holds(tensor)
        if here == _is_cuda(target):
            return tensor
        free = non_blocking and (not here or _has(self.device.pinned, tensor))
        if not free:
            self.device.note("to the host" if here else "to the device")
        with torch.utils._python_dispatch._disable_current_modes():
            moved = tensor.clone()
        if not here:
            self.device.mark(moved)
        return moved


class _Operations(TorchDispatchMode):
    """Operations, those inside of the library's included: which wait, and what lies where."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = self.device
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        on_device = any(map(device.holds, tensors))
        name = operation.name().split("::")[1].split(".")[0]
        device.launched += on_device
        if on_device and self._waits(name, args, kwargs):
            device.note(name)
        result = operation(*args, **kwargs)
        # A copy to page-locked memory stays on the host.
        if on_device and not (name == "copy_" and _has(device.pinned, args[0])):
            device.mark(*(each for each in tree_leaves(result) if isinstance(each, torch.Tensor)))
        return result

    def _waits(self, name: str, args: tuple, kwargs: dict) -> bool:
        if name == "repeat_interleave":
            return kwargs.get("output_size") is None
        if name in ("index", "index_put_", "_index_put_impl_"):
            indices = [each for each in args[1] or () if isinstance(each, torch.Tensor)]
            # One value at a mask is a fill.
            is_fill = name != "index" and args[2].numel() == 1
            return any(
                (each.dtype == torch.bool and not is_fill)
                or (each.dim() > 0 and not self.device.holds(each))
                for each in indices
            )
        return name in _WAITING


class _Event:
    """An event of the device; the host waits for it where it reads what was copied."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def record(self) -> None:
        self.launched = self.device.launched

    def synchronize(self) -> None:
        """Waits, unless the host has waited for something later already."""
        if self.launched > self.device.done:
            self.device.done = self.launched
            self.device.note("event")


def _is_cuda(device: object) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _add(marks: dict[int, StorageWeakRef], tensor: torch.Tensor) -> None:
    if torch._C._functorch.is_batchedtensor(tensor):
        return
    storage = tensor.untyped_storage()
    marks[storage._cdata] = StorageWeakRef(storage)


def _has(marks: dict[int, StorageWeakRef], tensor: torch.Tensor) -> bool:
    """Whether a tensor's storage is marked; the address of a freed one may be another's.

    A tensor within `vmap` has no storage, and no value that anybody could read.
    """
    if torch._C._functorch.is_batchedtensor(tensor):
        return False
    reference = marks.get(tensor.untyped_storage()._cdata)
    return reference is not None and not reference.expired()


def _site() -> str:
    """The line that waits: of transformers or of the package, the innermost of both."""
    frame = sys._getframe(1)
    while frame is not None:
        for root in ("trimtok_cli", "transformers"):
            parts = Path(frame.f_code.co_filename).parts
            if root in parts and "generic.py" not in parts[-1]:
                where = "/".join(parts[parts.index(root) + 1 :])
                return f"{where}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "?"
