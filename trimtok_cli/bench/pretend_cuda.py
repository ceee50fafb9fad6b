"""A CUDA device that is not there: a program runs as on one, and its launches are counted.

Tensors on it are torch's fake tensors: they have a shape and a dtype, and no memory. A small tensor
also carries its values, on the CPU, so that what a program reads is right: lengths, grids, tokens
of a tiny model. Large ones have none; whole numbers computed of them are made up. A recording is
the list of operations in it, and a replay runs them again on the small tensors. Knows no model and
no loop.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from trimtok_cli.bench.pretend_attention import (
    SDPA,
    UNEQUAL,
    attend,
    attend_unequal,
    count_unequal,
)
from trimtok_cli.bench.pretend_calls import outside, stand_ins
from trimtok_cli.bench.pretend_triton import tried_anew
from trimtok_cli.bench.tally import READ, UNSIZED, Tally

SMALL = 1 << 17  # numbers in a tensor whose values are carried
# Operations that torch can take apart, and that are one kernel on the device.
WHOLE = {"linear", "rms_norm"}
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
INDEXED = {"index", "index_put_", "_index_put_impl_"}


@contextmanager
def pretend_cuda() -> Iterator[Tally]:
    """A block in which `cuda` is a device; the tally counts what is asked of it.

    Functions of torch.cuda that need a real device are replaced inside the block.
    """
    tally = Tally()
    recorder = _Recorder(tally)
    with ExitStack() as stack:
        for owner, name, stand_in in (*stand_ins(tally, recorder), *_reads(tally)):
            if hasattr(owner, name):
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, stand_in)
        stack.enter_context(tried_anew())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_Functions(tally, recorder))
        stack.enter_context(recorder)
        yield tally


def values_of(tensor: Tensor) -> Tensor | None:
    """A tensor's values, on the CPU; None for a large one."""
    if isinstance(tensor, FakeTensor):
        return tensor.__dict__.get("values")
    return tensor if tensor.numel() <= SMALL else None


def _reads(tally: Tally) -> Iterator[tuple[Any, str, Any]]:
    """The reads of a fake tensor's values, which torch refuses."""

    def to_list(tensor: Tensor) -> Any:
        if tensor.device.type == "cuda":
            tally.wait("tolist")
        return _run(Tensor.tolist, (tensor,), {})

    yield FakeTensor, "tolist", to_list
    yield FakeTensor, "numpy", lambda tensor, **_: _run(Tensor.numpy, (tensor,), {})


class _Functions(TorchFunctionMode):
    """What must be met above torch's operations: attention as a whole, and reads of values."""

    def __init__(self, tally: Tally, recorder: "_Recorder") -> None:
        super().__init__()
        self.tally, self.recorder = tally, recorder

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.tensor:  # it reads the tensors in its list one by one
            args = (tree_map(_read, args[0]), *args[1:])
        if func is SDPA and isinstance(args[0], FakeTensor):
            run, given, named, result = attend(self.tally, *args, **kwargs)
            inputs = [each for each in given if each is not None]
            self.recorder.values(run, given, named, inputs, [result])
            return result
        return func(*args, **kwargs)


class _Recorder(TorchDispatchMode):
    """Counts every operation, computes the values of small tensors, and notes recordings."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self.tally = tally
        self.recording: list[Callable[[], None]] | None = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # Page-locked memory takes a driver.
        kwargs = {key: value for key, value in (kwargs or {}).items() if key != "pin_memory"}
        space, _, name = func._schema.name.partition("::")
        if space == "prim":  # a question about a tensor, such as its device
            return func(*args, **kwargs)
        if name not in WHOLE and _is_composite(func):
            with self:
                return func._op_dk(COMPOSITE, *args, **kwargs)
        if name in READ:
            if args[0].device.type == "cuda":
                self.tally.wait(READ[name])
            return _run(func, args, kwargs)
        if name == "record_stream":
            return None
        if name in UNSIZED and kwargs.get("output_size") is None:
            return self._unsized(func, name, args, kwargs)
        if name in INDEXED:
            args = self._by_number(name, args)
        result = func(*args, **kwargs)
        outputs = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if name == UNEQUAL:
            count_unequal(self.tally, values_of, *args, **kwargs)
            self.values(attend_unequal, args, kwargs, inputs, outputs)
        else:
            # The switch of an in-place copy comes by its place.
            waits = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,)))
            self._count(func, name, inputs, outputs, waits=waits)
            self.values(func, args, kwargs, inputs, outputs)
        return result

    def _unsized(self, func: Callable, name: str, args: tuple, kwargs: dict) -> Any:
        """The result of an operation whose size depends on values, for which the host waits."""
        if args[0].device.type == "cuda":
            self.tally.wait(name)
            self.tally.kernel(name, args[0].nbytes)
        return tree_map(partial(_placed, args[0].device), _run(func, args, kwargs))

    def _by_number(self, name: str, args: tuple) -> tuple:
        """The arguments of an indexing, with row numbers in place of masks.

        A device finds these numbers out first, and the host waits for how many there are, unless
        a single value is written.
        """
        tensor, indices, *rest = args
        numbers: list[Tensor | None] = []
        for index in indices:
            if index is None or index.dtype != torch.bool:
                numbers.append(index)
                continue
            if index.device.type == "cuda" and not (rest and rest[0].numel() == 1):
                self.tally.wait(f"{name} by a mask")
                self.tally.kernel("nonzero", index.nbytes)
            found = _run(torch.nonzero, (index,), {"as_tuple": True})
            numbers += [_placed(index.device, each) for each in found]
        return (tensor, numbers, *rest)

    def _count(
        self,
        func: Any,
        name: str,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        *,
        waits: bool,
    ) -> None:
        """Adds an operation to the tally if the device has work with it: a view has none."""
        places = {each.device.type for each in (*inputs, *outputs)}
        if "cuda" not in places or "empty" in name:
            return
        if not func._schema.is_mutable and all(_aliases(each, inputs) for each in outputs):
            return
        copies = name in ("_to_copy", "copy_")
        if copies and len(places) > 1 and waits and outputs[0].device.type == "cpu":
            self.tally.wait("to the CPU")
        self.tally.operation(name, inputs, outputs)

    def values(
        self,
        func: Callable,
        args: Any,
        kwargs: Any,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
    ) -> None:
        """Gives small results their values: made-up ones where an operand has none."""
        small = [each for each in outputs if each.numel() <= SMALL]
        known = len(small) == len(outputs) and all(values_of(each) is not None for each in inputs)
        made = None
        with suppress(NotImplementedError):  # only a device can run it
            made = _tensors(_run(func, args, kwargs)) if known else None
        if made is not None:
            for each, values in zip(outputs, made, strict=True):
                fresh = not inputs and each.dtype in _WHOLE_NUMBERS and "empty" in str(func)
                each.__dict__["values"] = _made_up(each) if fresh else values
            if self.recording is not None:
                self.recording.append(_again(func, _on_cpu(args), _on_cpu(kwargs), outputs))
            return
        for each in small:
            if values_of(each) is None and not each.is_floating_point():
                each.__dict__["values"] = _made_up(each)


_WHOLE_NUMBERS = (torch.int64, torch.int32)


def _is_composite(func: Any) -> bool:
    """Whether torch itself makes this operation of others, on every device."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE)


def _again(func: Callable, args: Any, kwargs: Any, outputs: Sequence[Tensor]) -> Callable:
    """One operation of a recording: at a replay its results go where they went before."""
    targets = [each.__dict__["values"] for each in outputs]

    def replayed() -> None:
        for target, values in zip(targets, _tensors(func(*args, **kwargs)), strict=True):
            if target.data_ptr() != values.data_ptr():
                target.copy_(values)

    return replayed


def _run(func: Callable, args: Any, kwargs: dict[str, Any]) -> Any:
    """A function's result on the values of its arguments, outside this device."""
    # Page-locked memory takes a device's driver.
    kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
    with outside():
        return func(*_on_cpu(args), **_on_cpu(kwargs))


def _placed(device: torch.device, values: Any) -> Any:
    """A tensor on `device` with these values."""
    if not isinstance(values, Tensor):
        return values
    result = torch.empty(values.shape, dtype=values.dtype, device=device)
    if isinstance(result, FakeTensor):
        result.__dict__["values"] = values
    return result


def _tensors(made: Any) -> list[Tensor]:
    return [each for each in tree_leaves(made) if isinstance(each, Tensor)]


def _aliases(result: Tensor, inputs: Sequence[Tensor]) -> bool:
    """Whether a result lies in an operand's memory."""
    storage = result.untyped_storage()._cdata
    return any(each.untyped_storage()._cdata == storage for each in inputs)


def _made_up(tensor: Tensor) -> Tensor:
    """Values for a tensor that has none: `True`, or whole numbers that count upwards.

    Made-up tokens are then ids of a vocabulary, made-up orders have no number twice, and made-up
    scores are numbers.
    """
    with outside():
        if tensor.dtype == torch.bool:
            return torch.ones(tensor.shape, dtype=torch.bool)
        numbers = torch.arange(tensor.shape[-1] if tensor.dim() else 1).to(tensor.dtype)
        return numbers.expand(tensor.shape).clone() if tensor.dim() else numbers[0]


def _read(each: Any) -> Any:
    return each.tolist() if isinstance(each, FakeTensor) else each


def _known(tensor: Tensor) -> Tensor:
    values = values_of(tensor)
    if values is None:
        raise RuntimeError(f"the values of a tensor of shape {tuple(tensor.shape)} are not known")
    return values


def _on_cpu(given: Any) -> Any:
    """Arguments with values in place of fake tensors, and the CPU in place of the device."""

    def placed(each: Any) -> Any:
        if isinstance(each, FakeTensor):
            return _known(each)
        return torch.device("cpu") if isinstance(each, torch.device) else each

    return tree_map(placed, given)
