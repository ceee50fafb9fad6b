"""What a device is asked: a stopwatch that waits for it, its memory, running out of it, and which
one a name means.
"""

import gc
import os
import time
import traceback

import torch

from trimtok_cli.bounds import check_settings
from trimtok_cli.config import RunConfig
from trimtok_cli.errors import UsageError


def out_of_memory(error: BaseException) -> bool:
    """CUDA's allocator has a class of its own for it; the CPU's, and CUDA's libraries, raise a
    RuntimeError.
    """
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    signs = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return known or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs))


def forget_frames(error: Exception) -> Exception:
    """The error without the tensors that the frames of its traceback hold."""
    traceback.clear_frames(error.__traceback__)
    return error


def free_bytes(device: torch.device) -> int:
    """What could still be allocated, counting what torch holds in reserve."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not Linux
        return 8 << 30


def release(device: torch.device) -> None:
    """Gives what is no longer used back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def pick_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, then Apple's GPU, then the CPU. UsageError if a named device
    is not there.
    """
    if name == "auto":
        return torch.device(
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"--device {name} is not a device: use auto, cpu, mps, cuda or cuda:N."
        ) from None
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= there:
        raise UsageError(
            f"--device {name}: this machine has {there} devices of that kind; use --device auto."
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # kernels and recordings are launched on the current device
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA (float16 before Ampere), float16 on mps, float32 on a CPU.
    UsageError for a name that --dtype does not take.
    """
    check_settings(RunConfig, dtype=name)
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float16
        )
    return torch.float16 if device.type == "mps" else torch.float32


class Clock:
    """Seconds between marks. `mark` waits until the device has finished, so that a stage pays for
    its own kernels.
    """

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
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """The most memory allocated since `reset_peak`; 0 where the device does not count."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
