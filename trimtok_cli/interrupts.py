"""Interruptions: SIGINT, SIGTERM or SIGHUP, at any moment, once or several times.

While arguments are read, libraries imported and a model loaded, there is nothing to save: the
process undoes what was begun and leaves at once. No exception is raised there, because imports are
known to swallow one. While a run is under way, the first signal becomes an exception, so that files
are closed; later signals change nothing. Imports nothing that takes time, and knows no command.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]

PATIENCE = 10.0  # seconds after which a further signal ends a run that does not close


class Interrupted(KeyboardInterrupt):
    """A signal came while a run was under way."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class _Ending:
    """The state of the process: whether a run is under way, and the signal that came."""

    def __init__(self) -> None:
        self.running = self.closed = False
        self.asked, self.since = 0, 0.0
        self.undo: list[Callable[[], None]] = []

    def signalled(self, number: int, _frame: object = None) -> None:
        if self.closed:
            return
        if self.asked:
            if time.monotonic() - self.since > PATIENCE:
                _leave(self.asked)
            return
        self.asked, self.since = number, time.monotonic()
        if self.running:
            raise Interrupted(number)
        for job in reversed(self.undo):
            with suppress(Exception):
                job()
        _leave(number)


_ending = _Ending()


def protected(start: Callable[[], None]) -> None:
    """Runs the whole program with signals handled and standard streams open; raises SystemExit as
    `start` does.
    """
    _open_streams()
    for number in SIGNALS:
        # A signal that is ignored already stays ignored: nohup and shells ask for it in this way.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _ending.signalled)
    real = sys.unraisablehook
    sys.unraisablehook = lambda told: (
        None if isinstance(told.exc_value, Interrupted) else real(told)
    )
    try:
        start()
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def under_way() -> Iterator[None]:
    """A block in which a signal raises Interrupted.

    Everything is written after the block, and signals change nothing. A block within a block, such
    as a run of a grid, changes nothing either.
    """
    if _ending.running:
        yield
        return
    _ending.running = True
    try:
        yield
    finally:
        _ending.running, _ending.closed = False, True


@contextmanager
def undone(job: Callable[[], None]) -> Iterator[None]:
    """Does `job` at the end of the block, or when a signal ends the process before."""
    _ending.undo.append(job)
    try:
        yield
    finally:
        _ending.undo.remove(job)
        job()


def look() -> None:
    """Raises Interrupted if a signal came and its exception was swallowed, as callbacks may do."""
    if _ending.asked and _ending.running:
        raise Interrupted(_ending.asked)


def _leave(number: int) -> None:
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, b"error: interrupted\n")
    os._exit(128 + number)


def _open_streams() -> None:
    """Opens closed standard streams on the null device, and makes every character printable.

    No file of ours then takes a standard stream's number. sys.__stdin__ and sys.__stdout__ stay
    None if they were closed, so that code which reads or writes there can tell.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")
