"""Worker processes on their way: started while a model loads, before there is work for them.

A process takes seconds to import its libraries, as this one does. Imports nothing heavy, and knows
no sample; pool.py gives the processes their task.
"""

import logging
import os
from collections import deque
from contextlib import suppress

from trimtok_cli.child_process import Child

# The code of a worker process.
WORKER = (
    "from trimtok_cli.child_process import inbox; messages = inbox(); from "
    "trimtok_cli.prepare.worker import main; main(messages)"
)


class Processes:
    """Starts worker processes, and keeps those that nobody has taken yet."""

    def __init__(self) -> None:
        self.started: deque[Child] = deque()

    def start(self, count: int) -> None:
        """Starts `count` processes in advance.

        One that the system refuses is left out: whoever takes it later starts it, and says why not.
        """
        for _ in range(count):
            with suppress(OSError):
                self.started.append(_new())

    def take(self) -> Child:
        """A process that has no task yet: one started in advance, else a new one."""
        with suppress(IndexError):  # the threads of a pool take at once
            return self.started.popleft()
        return _new()

    def close(self) -> None:
        """Ends the processes that nobody took."""
        while self.started:
            self.started.popleft().end()


def _new() -> Child:
    level = logging.getLogger("trimtok").getEffectiveLevel()
    # Workers need no GPU. A library's warnings, or the traceback of a failed start, would be
    # printed once for each worker.
    debug = level <= logging.DEBUG
    quiet = {} if debug else {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | quiet
    return Child(("" if debug else "sys.excepthook = lambda *_: None; ") + WORKER, environment)
