"""Child Pythons that can import what this one can: how a child is started, asked, and ended with
its parent. Knows nothing of the child's work.
"""

import ctypes
import json
import math
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

# The child does not import the parent's __main__, so a plain script is not run again by each of its
# children.
_PATHS = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "

# Seconds between two looks at a pipe.
_TICK = 0.5

# prctl's PR_SET_PDEATHSIG.
_DEATH_OF_PARENT = 1


def python_command(code: str, *arguments: str) -> list[str]:
    """The command line of a child that runs `code`; its arguments begin at sys.argv[2]."""
    paths = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
    return [sys.executable, "-P", "-c", _PATHS + code, paths, *arguments]


def end_with_parent(listen: Callable[[], Any]) -> None:
    """Ends this process, a child, with its parent, however the parent ends.

    listen: reads from a pipe that the parent holds, and returns or raises at the pipe's end; the
    child ends then. On Linux the system sends a signal as well, as native code may not let a thread
    of Python have its turn.
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
    """The messages to this process as they come, for the process of a `Child`.

    To be called before anything heavy is imported. From then on the process ends with its parent,
    and ignores Ctrl-C, which is for the parent: the parent ends its children.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source = os.fdopen(os.dup(0), "rb")
    messages: SimpleQueue[bytes] = SimpleQueue()

    def listen() -> None:
        while len(head := source.read(8)) == 8:
            messages.put(source.read(int.from_bytes(head, "big")))

    end_with_parent(listen)
    return messages


class Ended(Exception):
    """A child ended. `how`, in words; `overdue`: the parent ended it because it took too long."""

    def __init__(self, code: int | None, *, overdue: bool = False) -> None:
        self.overdue = overdue
        if code is None:
            self.how = "cannot be ended"
        elif code < 0:
            self.how = f"signal {-code}"
        else:
            self.how = f"exit code {code}"
        super().__init__(self.how)


class Child:
    """A process that answers messages, one at a time, by its standard input and output.

    Messages go through the pipes as `framed` writes them. There is no time limit on an answer where
    the system cannot wait for a pipe (Windows).
    """

    where = ""  # the machine, for those that are not here

    def __init__(self, code: str, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            python_command(code),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # sys.stderr is None where it is closed; a pipe of the child would take its number.
            stderr=None if sys.stderr else subprocess.DEVNULL,
            env=environment,
            # Ctrl-C is for this process alone, which then ends the child.
            start_new_session=True,
        )
        if hasattr(select, "poll"):
            os.set_blocking(self.process.stdin.fileno(), False)
            os.set_blocking(self.process.stdout.fileno(), False)

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def ask(self, message: bytes, seconds: float) -> bytearray:
        """The answer to a message.

        Raises Ended where the process dies, cuts its answer short or takes longer than `seconds`.
        """
        patience = _Patience(seconds)
        try:
            self._write(message, patience)
        except OSError as error:
            raise Ended(self.end(), overdue=isinstance(error, TimeoutError)) from error
        return self.receive(patience)

    def send(self, message: bytes, seconds: float) -> None:
        """Sends a message that may have any number of answers. A thread may `receive` meanwhile.

        Raises OSError where the process is dead, or does not take the message in time.
        """
        self._write(message, _Patience(seconds))

    def receive(self, patience: "_Patience | None" = None) -> bytearray:
        """The next message of the process, however long it takes. Raises Ended as `ask` does."""
        patience = patience or _Patience(math.inf)
        try:
            return self._read(int.from_bytes(self._read(8, patience), "big"), patience)
        # The last two: there is no room for so long an answer.
        except (EOFError, OSError, MemoryError, OverflowError) as error:
            raise Ended(self.end(), overdue=isinstance(error, TimeoutError)) from error

    def kill(self) -> None:
        """Ends the process, and waits for nothing."""
        self.process.kill()

    def end(self) -> int | None:
        """Ends the process at once, and returns its exit code.

        None where the process is stuck in the system, which ends it when it can.
        """
        code = None
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(timeout=5)
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                pipe.close()
        return code

    def _write(self, message: bytes, patience: "_Patience") -> None:
        rest = memoryview(framed(message))
        while rest:
            patience.wait(self.process.stdin, "POLLOUT")
            rest = rest[self.process.stdin.write(rest) or 0 :]

    def _read(self, size: int, patience: "_Patience") -> bytearray:
        data = bytearray(size)
        num_read = 0
        while num_read < size:
            patience.wait(self.process.stdout, "POLLIN")
            count = self.process.stdout.readinto(memoryview(data)[num_read:])
            if count == 0:
                raise EOFError
            num_read += count or 0
        return data


class _Patience:
    """Seconds that may be spent on waiting for the pipes of one process."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def wait(self, pipe: Any, event: str) -> None:
        """Returns when the pipe can be read or written. TimeoutError when the seconds are used up.

        Only time spent here counts, so none passes while this process is stopped.
        """
        if not hasattr(select, "poll"):
            return
        poll = select.poll()
        poll.register(pipe, getattr(select, event))
        while not poll.poll(1000 * _TICK):
            self.seconds -= _TICK
            if self.seconds <= 0:
                raise TimeoutError


def framed(message: bytes) -> bytes:
    """A message as it goes through a pipe: its length in 8 bytes, big end first, then its bytes."""
    return len(message).to_bytes(8, "big") + message


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usual_workers(share: int = 1) -> int:
    """The worker processes of a run beside a GPU: a core each, but for one, and at most eight.

    share: the number of GPUs that share the cores.
    """
    return max(0, min(8, num_cores() // share - 1))
