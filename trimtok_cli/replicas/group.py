"""The replicas of a run, seen by their parent: started, handed samples, listened to, replaced.

Everything happens in the caller's thread but for the listening: a thread for each process puts its
messages into one queue. A process that dies is replaced, and its samples are handed out again
(deal.py). Knows no model, and not where a process is.
"""

import pickle
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any, Protocol

from trimtok_cli.child_process import Ended
from trimtok_cli.data import Result, Sample
from trimtok_cli.errors import TrimtokError
from trimtok_cli.in_order import InOrder
from trimtok_cli.replicas.deal import Deal, Dealt, Hand, Instead
from trimtok_cli.replicas.messages import ASK, Ready, Refusal, Turn, Waiting, packed
from trimtok_cli.replicas.places import Place

# Deaths in a row without an answer between them, after which a replica is given up.
MOST_DEATHS = 10

STARTS = 2  # deaths before a model was ever ready, which are in a row as well

SENDING = 300  # seconds that a process may take to read a message


class Link(Protocol):
    """A process and the way to it, as `child_process.Child` is. where: its machine, if another."""

    where: str

    def send(self, message: bytes, seconds: float) -> None:
        """Raises OSError where the process takes no message."""

    def receive(self) -> bytes | bytearray:
        """The next message. Raises Ended."""

    def kill(self) -> None:
        """Ends the process."""


Begin = Callable[[Place, Mapping[str, str]], Link]
"""Starts a process at a place with further variables of its environment, or raises OSError."""


@dataclass(eq=False)
class Replica:
    """One place with the process that is there now."""

    place: Place
    hand: Hand = field(default_factory=Hand)
    child: Link | None = None
    ready: bool = False
    asking: bool = False
    deaths: int = 0  # in a row
    restarts: int = 0

    @property
    def name(self) -> str:
        where = self.child.where if self.child is not None else ""
        return f"{self.place.name} on {where}" if where else self.place.name


class Replicas:
    """Replicas at these places. Close them, to end their processes at once.

    facts: the places with a model that answers, or answered, for run.json.

    begin: starts a process. task: its first message. accept: raises TrimtokError for a model
    that is not that of the run. failed: the Result of a sample that no process survives. warn:
    tells the user.
    """

    def __init__(
        self,
        places: list[Place],
        begin: Begin,
        task: bytes,
        *,
        accept: Callable[[Ready], None],
        failed: Callable[[Sample, str], Result],
        warn: Callable[[str], None],
    ) -> None:
        self.begin, self.task = begin, task
        self.accept, self.failed, self.warn = accept, failed, warn
        self.replicas = [Replica(place) for place in places]
        self.facts: dict[str, dict[str, Any]] = {}
        self.left_out: list[tuple[Replica, TrimtokError]] = []
        self.events: SimpleQueue[tuple[Replica, bytes | Ended]] = SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.deal: Deal | None = None

    def start(self) -> Ready:
        """Starts all processes; returns when the first is ready.

        Raises the error of the first that cannot start if none can.
        """
        for each in list(self.replicas):
            self._start(each)
        while True:
            replica, message = self.events.get()
            for found in self._heard(replica, message):
                if isinstance(found, Ready):
                    for each, error in self.left_out:
                        self._tell_left_out(each, error)
                    return found

    def answer(self, samples: Iterable[Sample], total: int | None) -> Generator[Result]:
        """Results in the order of the samples. total: their number, None if it is not known.

        Raises TrimtokError if no process is left, or if one meets an error that ends the run.
        """
        turn = InOrder()
        deal = self.deal = Deal(samples, total, [each.hand for each in self.replicas])
        try:
            while True:
                for each in [each for each in self.replicas if each.asking]:
                    self._reply(each, deal)
                if deal.done:
                    return
                replica, message = self.events.get()
                for found in self._heard(replica, message):
                    if isinstance(found, tuple):
                        turn.put(*found)
                yield from turn.due()
                deal.given = turn.next
        finally:
            self.close()

    def close(self) -> None:
        """Ends all processes, and the threads that listen to them."""
        for each in self.replicas:
            if each.child is not None:
                each.child.kill()
        for thread in self.threads:
            thread.join(timeout=10)
        self.replicas.clear()

    def _start(self, replica: Replica) -> None:
        """Starts a process at the replica's place, and gives it its task."""
        # One process shows how far a download is.
        quiet = {} if replica is self.replicas[0] else {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        try:
            child = self.begin(replica.place, quiet)
        except OSError as error:
            reason = error.strerror or error
            return self._leave_out(replica, TrimtokError(f"no process can be started ({reason})."))
        replica.child, replica.ready, replica.asking = child, False, False
        thread = threading.Thread(target=self._listen, args=(replica, child), daemon=True)
        self.threads.append(thread)
        thread.start()
        self._send(replica, self.task)

    def _listen(self, replica: Replica, child: Link) -> None:
        while True:
            try:
                self.events.put((replica, bytes(child.receive())))
            except Ended as ended:
                self.events.put((replica, ended))
                return

    def _send(self, replica: Replica, message: bytes) -> None:
        if replica.child is None:
            return
        try:
            replica.child.send(message, SENDING)
        except OSError:  # it is dead, or as good as dead: whoever listens will say so
            replica.child.kill()

    def _reply(self, replica: Replica, deal: Deal) -> None:
        dealt = deal.deal(replica.hand)
        if dealt is Instead.WAIT:
            return
        replica.asking = False
        turn = Turn()
        if isinstance(dealt, Dealt):
            # A replica has no use for further columns, which may hold anything.
            turn = Turn(replace(dealt.sample, extra={}), alone=dealt.deaths > 0)
        self._send(replica, packed(turn))

    def _heard(
        self, replica: Replica, message: bytes | Ended
    ) -> Iterator[Ready | tuple[int, Result]]:
        """Takes in a message: what it says of the model or of samples, if it does."""
        if replica not in self.replicas:  # it was left out
            return
        if isinstance(message, Ended):
            yield from self._ended(replica, message)
            return
        try:
            said = pickle.loads(message)
        except Exception:
            said = None
        if said == ASK:
            replica.asking = True
        elif isinstance(said, Ready):
            with suppress(_LeftOut):
                yield self._accepted(replica, said)
        elif isinstance(said, Waiting):
            replica.hand.absent = True
            if said.text:
                self.warn(said.text)
        elif isinstance(said, Refusal) and replica.ready:
            raise said.error()
        elif isinstance(said, Refusal):
            self._leave_out(replica, said.error())
        elif isinstance(said, Result) and self.deal is not None:
            dealt = self.deal.answer(replica.hand)
            replica.deaths = 0
            yield dealt.number, replace(said, sample=dealt.sample)
        elif replica.child is not None:  # a library wrote between the messages
            replica.child.kill()

    def _accepted(self, replica: Replica, ready: Ready) -> Ready:
        try:
            self.accept(ready)
        except TrimtokError as error:
            self._leave_out(replica, error)
            raise _LeftOut from error
        replica.ready, replica.hand.absent = True, False
        facts = {"device": ready.model.get("device", ""), "restarts": replica.restarts}
        if replica.child is not None and replica.child.where:
            facts["node"] = replica.child.where
        self.facts[replica.place.name] = facts
        return ready

    def _ended(self, replica: Replica, ended: Ended) -> Iterator[tuple[int, Result]]:
        """Replaces a process that died, or gives its place up."""
        replica.deaths += 1
        was_ready, replica.ready, replica.asking = replica.ready, False, False
        lost = self.deal.lost(replica.hand) if self.deal is not None else []
        name, place = replica.name, replica.place.name
        if replica.deaths >= (MOST_DEATHS if was_ready or replica.restarts else STARTS):
            when = "again and again" if was_ready else "while it loaded the model"
            problem = f"its process died {when} ({ended.how}); memory may have run out."
            self._leave_out(replica, TrimtokError(f"{name}: {problem}"))
        else:
            replica.restarts += was_ready
            if place in self.facts:
                self.facts[place]["restarts"] = replica.restarts
            self.warn(f"{name}: its process died ({ended.how}), and is started anew")
            self._start(replica)
        for dealt in lost:
            problem = (
                f"every process that was asked died, {dealt.deaths} of them (the last by "
                f"{ended.how}): its files may crash a library, or memory has run out"
            )
            yield dealt.number, self.failed(dealt.sample, problem)

    def _leave_out(self, replica: Replica, error: TrimtokError) -> None:
        """Goes on without a replica. Raises the first such error if none is left."""
        self.replicas.remove(replica)
        if self.deal is not None:
            self.deal.leave(replica.hand)
        if replica.child is not None:
            replica.child.kill()
        self.left_out.append((replica, error))
        if not self.replicas:
            raise self.left_out[0 if self.deal is None else -1][1]
        if any(each.ready for each in self.replicas):
            self._tell_left_out(replica, error)

    def _tell_left_out(self, replica: Replica, error: TrimtokError) -> None:
        self.warn(f"the run goes on without {replica.name}: {error}")


class _LeftOut(Exception):
    """A replica that said it was ready is not used."""
