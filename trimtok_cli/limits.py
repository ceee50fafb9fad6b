"""Limits on a piece of work: on its time, by the system's alarm clock, and on its memory, by the
process's own limit. Knows nothing of the work.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

Returned = TypeVar("Returned")

# Bytes that a chat template, which is a program of the checkpoint, may take for one prompt.
TEMPLATE_BYTES = 10**9


class TimeUp(BaseException):
    """A piece of work took too long.

    Not an Exception, as a library may catch any of those and go on.
    """


def within(seconds: float, work: Callable[[], Returned]) -> Returned:
    """Returns what `work` returns, or raises TimeUp inside it after `seconds`.

    TimeUp is raised again and again until the work has ended. A call of native code is not broken
    off: TimeUp comes when the call returns. There is no limit where the system has no such clock
    (Windows), nor outside the main thread, the only one in which Python hears signals.
    """
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        return work()
    num_ticks = max(1, math.ceil(seconds))
    num_passed = 0
    over = False

    def tick(*args: object) -> None:
        nonlocal num_passed, due
        num_passed += 1
        # The clock that the caller had set rings for the caller.
        if due and callable(handler) and time.monotonic() >= due:
            due = interval and time.monotonic() + interval
            handler(*args)
        if num_passed >= num_ticks and not over:
            raise TimeUp

    # Ticks are counted, and no end is set: no time passes for a process that is stopped (Ctrl-Z).
    step = seconds / num_ticks
    # When the clock rings that the caller had set, by time.monotonic(); 0 where none is set.
    due, interval = 0.0, 0.0
    handler = signal.signal(signal.SIGALRM, tick)
    try:
        try:
            delay, interval = signal.setitimer(signal.ITIMER_REAL, step, max(step, 0.5))
            due = delay and time.monotonic() + delay
            return work()
        finally:
            over = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)
        if due:
            signal.setitimer(signal.ITIMER_REAL, max(due - time.monotonic(), 1e-3), interval)


@contextmanager
def at_most(num_bytes: int) -> Iterator[None]:
    """Lets the process take `num_bytes` beyond what it has; taking more is a MemoryError.

    The limit is that of the whole process, threads included. There is none where the system does
    not tell what a process has (all but Linux).
    """
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    lowest = min([pages * resource.getpagesize() + num_bytes, *limits])
    resource.setrlimit(resource.RLIMIT_AS, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
