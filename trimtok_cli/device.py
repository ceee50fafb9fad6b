"""The device: which one a name means, its dtype, its memory, and a stopwatch that waits for it.

Knows no model.
"""

import gc
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from trimtok_cli.bounds import check_settings
from trimtok_cli.config import RunConfig
from trimtok_cli.errors import UsageError

# Held by a second thread while it launches work, and by whoever records a CUDA graph. A recording
# makes every wait an error for all threads while it looks for waits, and what another thread asks
# of the device can spoil it.
LAUNCHES = threading.Lock()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out.

    CUDA's allocator has an error class of its own; the CPU's allocator and CUDA's libraries raise a
    RuntimeError, which only its text tells apart.
    """
    own_class = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    signs = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return own_class or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


def forget_frames(error: Exception) -> Exception:
    """Returns the error; the frames of its traceback let go of their tensors."""
    traceback.clear_frames(error.__traceback__)
    return error


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated, including those that torch holds in reserve."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return unreserved_bytes(device) + reserved
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not Linux
        return 8 << 30


def unreserved_bytes(device: torch.device) -> int:
    """Bytes that torch can still take from a CUDA device, within the process's own limit."""
    free, total = torch.cuda.mem_get_info(device)
    number = torch.cuda.current_device() if device.index is None else device.index
    limit = int(torch.cuda.get_per_process_memory_fraction(number) * total)
    return max(0, min(free, limit - torch.cuda.memory_reserved(device)))


def most_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Does the work; returns the most bytes of a CUDA device that it took beyond those in use."""
    before, peak = torch.cuda.memory_allocated(device), peak_bytes(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        work()
        return torch.cuda.max_memory_allocated(device) - before
    finally:
        _earlier_peaks[device] = peak


_earlier_peaks: dict[torch.device, int] = {}
"""The most bytes before `most_bytes` counted anew, where that was since `reset_peak`."""


def passing_bytes(device: torch.device) -> int:
    """Bytes in use at the peak since `reset_peak` and free again; 0 where none are counted."""
    return peak_bytes(device) and peak_bytes(device) - torch.cuda.memory_allocated(device)


def release(device: torch.device) -> None:
    """Returns unused memory to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def frozen_heap() -> Iterator[None]:
    """A block in which garbage collections pass over everything made before it.

    A loaded model is some 400,000 objects that no collection will free.
    """
    if gc.get_freeze_count():  # an outer block, or the caller's own, which is not ours to end
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def no_cudnn_attention(device: torch.device) -> Iterator[None]:
    """A block in which attention on CUDA is not cuDNN's, which builds a plan for every new shape.

    torch prefers cuDNN on the newest cards. Its plans cost up to half a second each, and lie in
    memory that torch does not count. The switch is the whole process's: it is off while any thread
    is in such a block, and as it was once the last one has left.
    """
    if device.type != "cuda":
        yield
        return
    _cudnn_off.enter()
    try:
        yield
    finally:
        _cudnn_off.leave()


class _CudnnOff:
    """The blocks that keep cuDNN's attention off, in all threads, and what it was before them."""

    def __init__(self) -> None:
        self.lock, self.blocks, self.before = threading.Lock(), 0, True

    def enter(self) -> None:
        with self.lock:
            if not self.blocks:
                self.before = torch.backends.cuda.cudnn_sdp_enabled()
                torch.backends.cuda.enable_cudnn_sdp(False)
            self.blocks += 1

    def leave(self) -> None:
        with self.lock:
            self.blocks -= 1
            if not self.blocks:
                torch.backends.cuda.enable_cudnn_sdp(self.before)


_cudnn_off = _CudnnOff()


def pick_device(name: str) -> torch.device:
    """The device of a --device option; `cuda:N` becomes the current device.

    `auto` is the first CUDA device, else Apple's GPU, else the CPU. Raises UsageError for a device
    that this machine does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"--device {name} is not a device: use auto, cpu, mps, cuda or cuda:N."
        ) from None
    num_devices = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= num_devices:
        raise UsageError(
            f"--device {name}: this machine has {num_devices} devices of that kind; "
            "use --device auto."
        )
    if device.type == "cuda" and device.index is not None:
        # Kernels and CUDA graphs are launched on the current device.
        torch.cuda.set_device(device)
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a --dtype option.

    `auto` is bfloat16 on CUDA (float16 before Ampere), float16 on mps, float32 on a CPU. Raises
    UsageError for a name that --dtype does not take.
    """
    check_settings(RunConfig, dtype=name)
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on a device, without a wait.

    A copy to CUDA is from page-locked memory; only then does the host not wait for it.
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def joined(parts: Sequence[torch.Tensor], axis: int, device: torch.device) -> torch.Tensor:
    """CPU tensors in a row, as one CPU tensor that `on_device` need not copy once more."""
    if device.type != "cuda" or len(parts) == 1:
        return torch.cat(list(parts), axis)
    first = parts[0]
    size = list(first.shape)
    size[axis] = sum(part.shape[axis] for part in parts)
    out = torch.empty(size, dtype=first.dtype, pin_memory=True)
    return torch.cat(list(parts), axis, out=out)


class Clock:
    """A stopwatch that waits for the device, so that each step pays for its own kernels."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.last = self._now()

    def mark(self) -> float:
        """Seconds since the last mark (or the start)."""
        now = self._now()
        passed, self.last = now - self.last, now
        return passed

    def _now(self) -> float:
        wait(self.device)
        return time.perf_counter()


def wait(device: torch.device) -> None:
    """Waits until the device has finished all work of this thread's stream.

    The work of another thread's stream is not waited for, and so not timed.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def reset_peak(device: torch.device) -> None:
    """Starts a new measurement of `peak_bytes`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        _earlier_peaks.pop(device, None)


def peak_bytes(device: torch.device) -> int:
    """The most bytes allocated since `reset_peak`; 0 on a device that does not count them."""
    if device.type != "cuda":
        return 0
    return max(torch.cuda.max_memory_allocated(device), _earlier_peaks.get(device, 0))
