"""Child Pythons that can import what this one can: how one is started, asked, and ended with its
parent.

Knows nothing of what a child does.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

# Of the parent's __main__ the child knows nothing: a plain script may start children without being
# run again by each of them.
_PATHS = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "

_TICK = 0.5  # seconds

_DEATH_OF_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def command(code: str, *arguments: str) -> list[str]:
    """Runs `code`, whose arguments begin at sys.argv[2]."""
    paths = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
    return [sys.executable, "-P", "-c", _PATHS + code, paths, *arguments]


def end_with_parent(listen: Callable[[], Any]) -> None:
    """Called in a child: ends it with its parent, however that ends and whatever is going on here.

    `listen` reads from a pipe that the parent holds. The process ends when it returns or raises,
    which it does at the pipe's end. On Linux the system sends a signal as well: native code may not
    let a thread of Python have its turn.
    """
    if sys.platform == "linux":
        with suppress(Exception):  # a C library without it
            ctypes.CDLL(None).prctl(_DEATH_OF_PARENT, signal.SIGKILL)

    def wait() -> None:
        try:
            listen()
        finally:
            os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def inbox() -> SimpleQueue[bytes]:
    """Called in a child that a `Child` asks, before anything heavy is imported: the messages as
    they come.

    From then on it ends with its parent, and only with it: Ctrl-C is for the parent, which then
    ends its children.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, messages = os.fdopen(os.dup(0), "rb"), SimpleQueue()

    def listen() -> None:
        while len(head := source.read(8)) == 8:
            messages.put(source.read(int.from_bytes(head, "big")))

    end_with_parent(listen)
    return messages


class Ended(Exception):
    """A child is no more. `how` it ended, in words; `overdue`: it was ended because it took too
    long.
    """

    def __init__(self, code: int | None, *, overdue: bool = False) -> None:
        self.overdue = overdue
        self.how = (
            "cannot be ended"
            if code is None
            else f"signal {-code}"
            if code < 0
            else f"exit code {code}"
        )
        super().__init__(self.how)


class Child:
    """A process that answers messages, one at a time, by its standard input and output. A message
    is 8 bytes that hold its length, then itself.

    Where a system cannot wait for a pipe (Windows), there is no time limit on an answer.
    """

    def __init__(self, code: str, environment: dict[str, str]) -> None:
        # A session of its own: Ctrl-C is for this process alone, which then ends the child.
        self.process = subprocess.Popen(
            command(code),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,
            stderr=None
            if sys.stderr
            else subprocess.DEVNULL,  # None: it is closed, and a pipe would take its number
        )
        if hasattr(select, "poll"):
            os.set_blocking(self.process.stdin.fileno(), False)
            os.set_blocking(self.process.stdout.fileno(), False)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, message: bytes, seconds: float) -> bytearray:
        """The answer to a message. Ended where the process dies, cuts its answer short or takes
        longer than `seconds`.
        """
        self.left = seconds
        try:
            self._write(len(message).to_bytes(8, "big") + message)
            return self._read(int.from_bytes(self._read(8), "big"))
        except (
            EOFError,
            OSError,
            MemoryError,
            OverflowError,
        ) as error:  # the last two: no room for so long an answer
            raise Ended(self.end(), overdue=isinstance(error, TimeoutError)) from error

    def end(self) -> int | None:
        """Ends the process, whatever it is at; its exit code. None where it is stuck in the system,
        which ends it when it can.
        """
        code = None
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(timeout=5)
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                pipe.close()
        return code

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(self.process.stdin, "POLLOUT")
            rest = rest[self.process.stdin.write(rest) or 0 :]

    def _read(self, size: int) -> bytearray:
        data, got = bytearray(size), 0
        while got < size:
            self._wait(self.process.stdout, "POLLIN")
            count = self.process.stdout.readinto(memoryview(data)[got:])
            if count == 0:
                raise EOFError
            got += count or 0
        return data

    def _wait(self, pipe: Any, event: str) -> None:
        """Until the pipe can be read or written. What counts is time waited here: none passes while
        this process is stopped.
        """
        if not hasattr(select, "poll"):
            return
        poll = select.poll()
        poll.register(pipe, getattr(select, event))
        while not poll.poll(1000 * _TICK):
            self.left -= _TICK
            if self.left <= 0:
                raise TimeoutError
