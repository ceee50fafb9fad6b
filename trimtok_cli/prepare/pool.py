"""`prefetch`: worker processes prepare samples before the model needs them, in order.

A bounded number of samples is in flight. A process that dies takes one sample with it, and a new
process takes its place. Where no process can be started any more, the others go on; without any,
this process prepares the samples itself. processes.py starts them, and worker.py is their side.
Knows no model.
"""

import logging
import pickle
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from queue import LifoQueue

from trimtok_cli.child_process import Child, Ended
from trimtok_cli.data import Failed, Sample
from trimtok_cli.errors import ModelError, SampleError, sentence
from trimtok_cli.models.preprocessor import Preprocessor
from trimtok_cli.prepare.processes import Processes
from trimtok_cli.prepare.sample import Ask, Prepared, attempt, overdue
from trimtok_cli.prepare.worker import packed

# Samples in flight for each worker: enough that none waits while the model is busy.
PREFETCH = 4

# How often a sample is tried, and a process started: a process may die for reasons of its own.
CHANCES = 2

STARTING = 300  # seconds that a process may take for the libraries' imports

# Seconds beyond a sample's limit. A worker keeps the limit itself, unless it is stopped or runs
# native code.
GRACE = 5

# Stands in the queue of free processes where none can be started any more.
_NONE_LEFT = object()

log = logging.getLogger("trimtok")


def prefetch(
    preprocessor: Preprocessor,
    samples: Iterable[Sample],
    ask: Ask,
    *,
    workers: int = 0,
    ahead: int | None = None,
    processes: Processes | None = None,
) -> Generator[Prepared | Failed]:
    """Yields each sample prepared or failed, in order.

    ahead: the most samples that are read before their results are taken, by default PREFETCH for
    each worker. With 0 workers, this process prepares each sample when it is taken. processes:
    those started in advance; the caller ends the ones that stay unused. Close the iterator to end
    the workers early. Raises ModelError where no sample can be prepared.
    """
    if not workers:
        for sample in samples:
            yield attempt(preprocessor, sample, ask)
        return
    in_flight: deque[tuple[Sample, Future]] = deque()

    def first() -> Prepared | Failed:
        sample, future = in_flight.popleft()
        # Without a result the sample is prepared here, in the main thread, which alone can keep the
        # time limit.
        return future.result() or attempt(preprocessor, sample, ask)

    with closing(_Workers(preprocessor, ask, workers, processes or Processes())) as pool:
        for sample in samples:
            in_flight.append((sample, pool.submit(sample)))
            # A result that is ready does not wait for further input, which may trickle in.
            if in_flight[0][1].done() or len(in_flight) >= (ahead or PREFETCH * workers):
                yield first()
        while in_flight:
            yield first()


class _Workers:
    """A pool of `count` worker processes, started as they are needed.

    Each process is either in the queue `free` or asked by one thread, which waits for its reply.
    """

    def __init__(
        self, preprocessor: Preprocessor, ask: Ask, count: int, processes: Processes
    ) -> None:
        level = logging.getLogger("trimtok").getEffectiveLevel()
        try:
            self.task = pickle.dumps((level, preprocessor, ask))
        except Exception as error:
            raise ModelError(
                f"the preprocessor cannot be sent to worker processes ({error}): use 0 workers."
            ) from error
        self.ask, self.processes = ask, processes
        self.num_left = count  # processes that run or may still be started
        self.warned = False
        self.closed = False
        self.children: set[Child] = set()
        self.lock = threading.Lock()
        self.free: LifoQueue[Child | object | None] = LifoQueue()
        for _ in range(count):
            self.free.put(None)  # a process that is not started yet
        self.threads = ThreadPoolExecutor(count, "trimtok-worker")

    def submit(self, sample: Sample) -> Future:
        """A future of the prepared or failed sample, or of None: then the caller prepares it."""
        try:
            return self.threads.submit(self._run, sample)
        except RuntimeError as error:  # no thread can be started
            self._warn(str(error))
            without_result: Future = Future()
            without_result.set_result(None)
            return without_result

    def close(self) -> None:
        """Ends all processes at once, also those that are busy."""
        with self.lock:
            self.closed = True
            for child in self.children:
                child.process.kill()
        self.free.put(_NONE_LEFT)
        self.threads.shutdown(cancel_futures=True)
        for child in self.children:
            child.end()

    def _run(self, sample: Sample) -> Prepared | Failed | None:
        """The reply of a worker to one sample; None where the caller is to prepare it."""
        try:
            # A worker has no use for `extra`, which may hold anything.
            message = packed(replace(sample, extra={}))
        except Exception:  # a sample that a script made
            return None
        limit = self.ask.limit(sample)
        death: Ended | None = None
        for _ in range(CHANCES):
            child = self._take()
            if child is None:
                break
            try:
                reply = pickle.loads(child.ask(message, limit + GRACE))
            except Ended as error:
                death = error
                if death.overdue:
                    return Failed(sample, overdue(limit))
            except Exception as error:
                problem = (
                    "what a worker process prepared cannot be read here "
                    f"({sentence(error)}): use 0 workers"
                )
                return Failed(sample, SampleError(problem))
            else:
                if isinstance(reply, ModelError):
                    raise reply
                return reply and replace(reply, sample=sample)
            finally:
                self.free.put(child)
        if death is None:
            return None
        # The caller must not prepare this sample: it might end this process, and every other
        # sample's answer with it.
        problem = (
            f"the worker process that read it died ({death.how}): the file may be damaged, or "
            "memory has run out"
        )
        return Failed(sample, SampleError(problem))

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
                # The process ended, or the system allows no further one.
                except Exception as error:
                    reason = str(error)
            self._warn(f"a worker process cannot be started ({reason})")
            with self.lock:
                self.num_left -= 1
                if not self.num_left:
                    self.free.put(_NONE_LEFT)
        self.free.put(_NONE_LEFT)  # for the next thread
        return None

    def _start(self) -> Child:
        """A new process that has loaded its libraries; raises what keeps it from starting."""
        with self.lock:
            if self.closed:
                raise Ended(0)
            child = self.processes.take()
            self.children.add(child)
        try:
            refusal = pickle.loads(child.ask(self.task, STARTING))
        except Exception:
            self._forget(child)
            raise
        if refusal is not None:
            raise refusal
        return child

    def _forget(self, child: Child) -> None:
        """Ends a process and takes it out of the pool."""
        child.end()
        with self.lock:
            self.children.discard(child)

    def _warn(self, reason: str) -> None:
        """Logs once that the run goes on with fewer processes."""
        with self.lock:
            if not (self.warned or self.closed):
                log.warning("%s: the run goes on with fewer of them, or without", reason)
            self.warned = True
