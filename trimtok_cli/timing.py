"""A stopwatch for stages that waits for the device, and the device's memory peak. Knows no stage by name."""

import time

import torch


class Clock:
    """Seconds between marks. `mark` waits until the device has finished, so that a stage pays for its own kernels."""

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
