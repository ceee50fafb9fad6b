"""Samples prepared ahead of the model, in processes of their own: in order, a bounded number at a time, whatever happens to one.

Each worker process belongs to one thread here, which hands it a sample and waits for what becomes of it. So a process that dies
takes one sample along and no other, and a new one takes its place. The processes' side is worker.py. Knows no model.
"""

import logging
import os
import pickle
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace

from trimtok_cli.child import command
from trimtok_cli.data import Sample
from trimtok_cli.errors import ModelError, SampleError
from trimtok_cli.models.preprocessor import Preprocessor
from trimtok_cli.prepare import Ask, Failed, Prepared, attempt
from trimtok_cli.worker import send

AHEAD = 4  # samples in flight for each worker: enough that none waits while the model takes its time
STUCK = 300  # seconds for one sample, beyond what its video is given: generous, only a decoder that hangs takes so long
_STUCK_CODE = -signal.SIGALRM if hasattr(signal, "SIGALRM") else None


def prepare_ahead(
    preprocessor: Preprocessor, samples: Iterable[Sample], ask: Ask, *, workers: int = 0, ahead: int | None = None
) -> Iterator[Prepared | Failed]:
    """What becomes of every sample, in order. `samples` is read at most `ahead` further than results were taken (4 a worker).

    With 0 workers everything is done here and now, one sample at a time. Close the iterator to end the processes before its end.
    Raises ModelError where no sample can be prepared.
    """
    if not workers:
        for sample in samples:
            yield attempt(preprocessor, sample, ask)
        return
    waiting: deque[Future] = deque()
    with closing(_Workers(preprocessor, ask, workers)) as pool:
        for sample in samples:
            waiting.append(pool.submit(sample))
            # What is ready does not wait for further input, which may trickle in.
            if waiting[0].done() or len(waiting) >= (ahead or AHEAD * workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Workers:
    """So many processes, started as they are needed."""

    def __init__(self, preprocessor: Preprocessor, ask: Ask, count: int) -> None:
        level, self.limit = logging.getLogger("trimtok").getEffectiveLevel(), STUCK + ask.frames.timeout
        try:
            self.task = pickle.dumps((level, self.limit, preprocessor, ask))
        except Exception as error:
            raise ModelError(f"the preprocessor cannot be sent to worker processes ({error}): use 0 workers.") from error
        # No worker needs a GPU, and a library's warnings would be told once for each of them.
        quiet = {} if level <= logging.DEBUG else {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
        self.environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | quiet
        self.processes: set[subprocess.Popen] = set()
        self.changing, self.closed, self.own = threading.Lock(), False, threading.local()
        self.threads = ThreadPoolExecutor(count, "trimtok-worker")

    def submit(self, sample: Sample) -> Future:
        return self.threads.submit(self._run, sample)

    def close(self) -> None:
        """Ends all processes at once, whatever they are at."""
        with self.changing:
            self.closed = True
            for process in self.processes:
                process.kill()
        self.threads.shutdown(cancel_futures=True)
        for process in list(self.processes):
            self._bury(process)

    def _run(self, sample: Sample) -> Prepared | Failed:
        """A process may have died for reasons of its own, so a sample is tried again, once, before it is blamed."""
        chances = 2
        while True:
            process = getattr(self.own, "process", None) or self._start()
            try:
                send(process.stdin, replace(sample, extra={}))  # of no use there, and anything may be in it
                found = pickle.load(process.stdout)
            except (EOFError, OSError, pickle.UnpicklingError):
                code, chances = self._bury(process), chances - 1
                if chances and code != _STUCK_CODE:
                    continue
                return Failed(sample, SampleError(f"the worker process that read it {self._end(code)}"))
            if isinstance(found, ModelError):
                raise found
            return replace(found, sample=sample)

    def _start(self) -> subprocess.Popen:
        with self.changing:
            if self.closed:
                raise ModelError("the workers have been closed")
            # A session of its own: Ctrl-C is for this process alone, which then ends the workers.
            process = subprocess.Popen(
                command("from trimtok_cli.worker import main; main()"),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment, start_new_session=True,
            )  # fmt: skip
            self.processes.add(process)
        self.own.process = process
        try:
            process.stdin.write(len(self.task).to_bytes(8, "big") + self.task)
            process.stdin.flush()
            said = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise ModelError(f"a worker process ended while it started ({_how(self._bury(process))}): use 0 workers.") from error
        if said is not None:
            raise said
        return process

    def _bury(self, process: subprocess.Popen) -> int:
        """Ends the process and what it holds; its exit code."""
        self.own.process = None
        process.kill()
        code = process.wait()
        with self.changing:
            self.processes.discard(process)
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # what was not yet written is of no use now
                pipe.close()
        return code

    def _end(self, code: int) -> str:
        if code == _STUCK_CODE:
            return f"was still at it after {self.limit:g} seconds: look at the file, or save it again"
        return f"died ({_how(code)}): the file may be damaged, or memory has run out"


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
