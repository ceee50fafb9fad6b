"""Limits on a piece of work: of time, by the system's alarm clock, and of memory, by the process's
own limit. Knows nothing of the work.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

Made = TypeVar("Made")

TEMPLATE_BYTES = (
    10**9
)  # what a chat template, which is a checkpoint's own program, may take for one prompt


class TimeUp(BaseException):
    """A piece of work took too long. Not an Exception: a library that goes on after any of those
    goes on after this one too.
    """


def within(seconds: float, work: Callable[[], Made]) -> Made:
    """What `work` returns. Raises TimeUp inside of it once it has run for `seconds`, and again
    until it has ended.

    A call of native code is not broken off: TimeUp comes when it returns. There is no limit where
    the system has no such clock (Windows) and outside the main thread, in which alone Python hears
    signals.
    """
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        return work()
    count, passed, over = max(1, math.ceil(seconds)), 0, False

    def tick(*args: object) -> None:
        nonlocal passed, due
        passed += 1
        if due and callable(handler) and time.monotonic() >= due:
            due = interval and time.monotonic() + interval
            handler(*args)
        if passed >= count and not over:
            raise TimeUp

    # Ticks are counted, and no end is set: while a process is stopped (Ctrl-Z) no time passes for
    # it.
    step, due, interval = seconds / count, 0.0, 0.0
    handler = signal.signal(signal.SIGALRM, tick)
    try:
        try:
            delay, interval = signal.setitimer(signal.ITIMER_REAL, step, max(step, 0.5))
            due = delay and time.monotonic() + delay  # when a clock rings that the caller had set
            return work()
        finally:
            over = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)
        if due:
            signal.setitimer(signal.ITIMER_REAL, max(due - time.monotonic(), 1e-3), interval)


@contextmanager
def at_most(more: int) -> Iterator[None]:
    """While it lasts, the process may take `more` bytes beyond what it has; what asks for further
    ones meets a MemoryError.

    Kept where the system says what a process has and limits it (Linux). It is the whole process's
    limit, threads included.
    """
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(
        resource.RLIMIT_AS, (min([pages * resource.getpagesize() + more, *known]), hard)
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
