"""Samples prepared ahead of the model, in processes of their own: in order, a bounded number at a
time, whatever happens to one.

A process that dies takes one sample along and no other, and a new one takes its place. Where none
can be started any more, fewer go on, and in the end this process prepares its samples itself. The
processes' side is worker.py. Knows no model.
"""

import logging
import os
import pickle
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from queue import LifoQueue

from trimtok_cli.child_process import Child, Ended
from trimtok_cli.data import Failed, Sample
from trimtok_cli.errors import ModelError, SampleError, sentence
from trimtok_cli.models.preprocessor import Preprocessor
from trimtok_cli.prepare.sample import Ask, Prepared, attempt, overdue
from trimtok_cli.prepare.worker import packed

PREFETCH = (
    4  # samples in flight for each worker: enough that none waits while the model takes its time
)

# a process may die for reasons of its own: so often a sample is tried, and so often a process is
# started
CHANCES = 2

STARTING = 300  # seconds for the libraries' imports

WORKER = (
    "from trimtok_cli.child_process import inbox; messages = inbox(); from "
    "trimtok_cli.prepare.worker import main; main(messages)"
)

# seconds beyond a sample's limit, which its worker keeps itself unless it is stopped or in native
# code
GRACE = 5

_NONE_LEFT = object()

log = logging.getLogger("trimtok")


def prefetch(
    preprocessor: Preprocessor,
    samples: Iterable[Sample],
    ask: Ask,
    *,
    workers: int = 0,
    ahead: int | None = None,
) -> Iterator[Prepared | Failed]:
    """What becomes of every sample, in order. `samples` is read at most `ahead` further than
    results were taken (4 a worker).

    With 0 workers everything is done here and now, one sample at a time. Close the iterator to end
    the processes before its end. Raises ModelError where no sample can be prepared.
    """
    if not workers:
        for sample in samples:
            yield attempt(preprocessor, sample, ask)
        return
    waiting: deque[tuple[Sample, Future]] = deque()

    def first() -> Prepared | Failed:
        sample, found = waiting.popleft()
        return found.result() or attempt(
            preprocessor, sample, ask
        )  # here, in the thread that can keep the time limit

    with closing(_Workers(preprocessor, ask, workers)) as pool:
        for sample in samples:
            waiting.append((sample, pool.submit(sample)))
            # What is ready does not wait for further input, which may trickle in.
            if waiting[0][1].done() or len(waiting) >= (ahead or PREFETCH * workers):
                yield first()
        while waiting:
            yield first()


class _Workers:
    """So many processes, started as they are needed. Each is in `free` or in the hands of one
    thread, which waits for it.
    """

    def __init__(self, preprocessor: Preprocessor, ask: Ask, count: int) -> None:
        level = logging.getLogger("trimtok").getEffectiveLevel()
        try:
            self.task = pickle.dumps((level, preprocessor, ask))
        except Exception as error:
            raise ModelError(
                f"the preprocessor cannot be sent to worker processes ({error}): use 0 workers."
            ) from error
        # No worker needs a GPU, and a library's warnings, or a failed start's story, would be told
        # once for each of them.
        debug = level <= logging.DEBUG
        quiet = {} if debug else {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
        self.environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | quiet
        self.code = ("" if debug else "sys.excepthook = lambda *_: None; ") + WORKER
        self.ask, self.places, self.warned, self.closed = ask, count, False, False
        self.children: set[Child] = set()
        self.changing = threading.Lock()
        self.free: LifoQueue[Child | object | None] = LifoQueue()
        for _ in range(count):
            self.free.put(None)  # a place for a process that is not yet needed
        self.threads = ThreadPoolExecutor(count, "trimtok-worker")

    def submit(self, sample: Sample) -> Future:
        """What becomes of it; None where it is to be prepared by the caller."""
        try:
            return self.threads.submit(self._run, sample)
        except RuntimeError as error:  # no thread can be started
            self._warn(str(error))
            here: Future = Future()
            here.set_result(None)
            return here

    def close(self) -> None:
        """Ends all processes at once, whatever they are at."""
        with self.changing:
            self.closed = True
            for child in self.children:
                child.process.kill()
        self.free.put(_NONE_LEFT)
        self.threads.shutdown(cancel_futures=True)
        for child in self.children:
            child.end()

    def _run(self, sample: Sample) -> Prepared | Failed | None:
        try:
            message = packed(
                replace(sample, extra={})
            )  # of no use there, and anything may be in it
        except Exception:  # a script's own sample
            return None
        end, limit = None, self.ask.limit(sample)
        for _ in range(CHANCES):
            child = self._take()
            if child is None:
                break
            try:
                found = pickle.loads(child.ask(message, limit + GRACE))
            except Ended as error:
                end = error
                if end.overdue:
                    return Failed(sample, overdue(limit))
            except Exception as error:
                said = (
                    "what a worker process prepared cannot be read here "
                    f"({sentence(error)}): use 0 workers"
                )
                return Failed(sample, SampleError(said))
            else:
                if isinstance(found, ModelError):
                    raise found
                return found and replace(found, sample=sample)
            finally:
                self.free.put(child)
        if end is None:
            return None
        # Never here: what ended a worker may end this process, and all the others' answers with it.
        said = (
            f"the worker process that read it died ({end.how}): the file may be damaged, or "
            "memory has run out"
        )
        return Failed(sample, SampleError(said))

    def _take(self) -> Child | None:
        """A process that is ready; None where none can be started any more."""
        while (child := self.free.get()) is not _NONE_LEFT:
            if child and child.alive:
                return child
            if child:
                self._forget(child)
            for _ in range(CHANCES):
                try:
                    return self._start()
                except ModelError:
                    raise
                except Exception as error:  # it ended, or the system allows no further process
                    reason = str(error)
            self._warn(f"a worker process cannot be started ({reason})")
            with self.changing:
                self.places -= 1
                if not self.places:
                    self.free.put(_NONE_LEFT)
        self.free.put(_NONE_LEFT)  # the next thread looks for it, too
        return None

    def _start(self) -> Child:
        with self.changing:
            if self.closed:
                raise Ended(0)
            child = Child(self.code, self.environment)
            self.children.add(child)
        try:
            said = pickle.loads(child.ask(self.task, STARTING))
        except Exception:
            self._forget(child)
            raise
        if said is not None:
            raise said
        return child

    def _forget(self, child: Child) -> None:
        child.end()
        with self.changing:
            self.children.discard(child)

    def _warn(self, reason: str) -> None:
        with self.changing:
            if not (self.warned or self.closed):
                log.warning("%s: the run goes on with fewer of them, or without", reason)
            self.warned = True
