"""Encoders: samples become requests, when the loop has room for them, or while it still decodes.

`InTurn` works in the caller's thread and is the oracle of `Ahead`, which has a thread and, on CUDA,
a stream of its own. Tower and projector are its thread's, the language model is the loop's: the
tower run installs nothing that the other thread could meet. Knows no method and no family.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from trimtok_cli.data import Failed
from trimtok_cli.device import LAUNCHES, reset_peak
from trimtok_cli.engine.answer import Encoding, reduce
from trimtok_cli.engine.batch import Pruned
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.sample import Prepared
from trimtok_cli.pruners.base import Pruner

# Samples that `Ahead` encodes together. Their dense visual tokens are in memory beside all answers
# under way; of the samples that wait behind them, only the pruned prompts are.
TOGETHER = 16

Reduced = tuple[list[Pruned], list[Failed]]


class InTurn:
    """Encodes and prunes samples when they are taken."""

    def __init__(
        self,
        adapter: Adapter,
        pruner: Pruner | None,
        samples: Iterator[Prepared | Failed],
        encoding: Encoding | None = None,
    ) -> None:
        """encoding: stands in the place of `answer.encode`."""
        self.adapter, self.pruner, self.samples = adapter, pruner, samples
        self.encoding = encoding

    def take(self, count: int) -> Reduced:
        """The next `count` samples, pruned or failed; fewer only at the end of the samples."""
        return self._reduced(list(islice(self.samples, count)))

    def close(self) -> None:
        """Ends the encoder."""

    def _reduced(self, group: Sequence[Prepared | Failed]) -> Reduced:
        ready = [each for each in group if isinstance(each, Prepared)]
        # A sample that could not be prepared never reaches the model.
        failed = [each for each in group if isinstance(each, Failed)]
        if not ready:
            return [], failed
        reset_peak(self.adapter.device)
        pruned, broken = reduce(self.adapter, self.pruner, ready, self.encoding)
        return pruned, failed + broken


class Ahead(InTurn):
    """Encodes and prunes the next samples on a thread and a stream of its own.

    As many samples are under way as the loop last had room for. The caller waits for them where
    `InTurn` would encode, so that the loop sees the same requests at the same steps. Samples are
    taken from their source, and its errors raised, in the caller's thread alone.
    """

    def __init__(
        self,
        adapter: Adapter,
        pruner: Pruner | None,
        samples: Iterator[Prepared | Failed],
        encoding: Encoding | None = None,
    ) -> None:
        super().__init__(adapter, pruner, samples, encoding)
        cuda = adapter.device.type == "cuda"
        self.stream = torch.cuda.Stream(adapter.device) if cuda else None
        self.thread = ThreadPoolExecutor(1, "trimtok-encoder")
        self.coming: deque[Future[Any]] = deque()
        self.ready: deque[Pruned | Failed] = deque()
        self.num_ahead = 0

    def take(self, count: int) -> Reduced:
        if not count:
            return [], []
        while self.num_ahead < count and self._begin(count - self.num_ahead):
            pass
        while len(self.ready) < count and self.coming:
            self._receive()
        found = [self.ready.popleft() for _ in range(min(count, len(self.ready)))]
        self.num_ahead -= len(found)
        if self.num_ahead < count:
            self._begin(count)
        pruned = [each for each in found if isinstance(each, Pruned)]
        return pruned, [each for each in found if isinstance(each, Failed)]

    def close(self) -> None:
        """Ends the thread; a group that it is at is finished first."""
        self.thread.shutdown(cancel_futures=True)

    def _begin(self, count: int) -> bool:
        """Hands the thread up to `count` samples; False where there are none left."""
        count = min(count, TOGETHER)
        future: Future[Any] = Future()
        try:
            group = list(islice(self.samples, count))
        except Exception as error:
            # It is due when the samples are, behind the answers of those before them.
            future.set_exception(error)
        else:
            if not group:
                return False
            count = len(group)
            future = self.thread.submit(self._work, group)
        self.coming.append(future)
        self.num_ahead += count
        return True

    def _work(self, group: Sequence[Prepared | Failed]) -> tuple[list[Pruned | Failed], object]:
        """In the thread: the group in its order, and the event behind the stream's work for it."""
        with ExitStack() as held:
            held.enter_context(LAUNCHES)
            if self.stream:
                held.enter_context(torch.cuda.stream(self.stream))
            pruned, failed = self._reduced(group)
            event = self.stream.record_event() if self.stream else None
        found: list[Pruned | Failed] = [*pruned, *failed]
        return sorted(found, key=lambda each: each.number), event

    def _receive(self) -> None:
        """Makes the oldest group ready for the caller's stream; raises the group's error."""
        found, event = self.coming.popleft().result()
        if event:
            stream = torch.cuda.current_stream(self.adapter.device)
            stream.wait_event(event)
            for tensor in (tensor for each in found for tensor in _tensors(each)):
                # The allocator may not give the memory away before this stream is done with it.
                if tensor.is_cuda:
                    tensor.record_stream(stream)
        self.ready += found


def _tensors(each: Pruned | Failed) -> list[Tensor]:
    """The tensors of a request that the loop reads."""
    if isinstance(each, Failed):
        return []
    return [value for value in vars(each.prompt).values() if isinstance(value, Tensor)]
