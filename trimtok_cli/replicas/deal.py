"""Which replica is handed which sample: one at a time, to whoever asks.

A replica that dies loses the samples that it held. Nobody knows which of them was to blame, so each
is handed out again alone, and fails once it was held at `DEATHS` deaths. Knows no process.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from trimtok_cli.data import Sample

DEATHS = 3  # of processes that held a sample: two of them held it alone

# Samples that may be handed out before their results are written: results wait for those before.
WINDOW = 4096


@dataclass(eq=False)
class Dealt:
    """A sample, its number in the run, and how many processes died with it in their hands."""

    number: int
    sample: Sample
    deaths: int = 0


@dataclass(eq=False)
class Hand:
    """What one replica holds, in order; and its suspects, which it is to be handed alone.

    absent: nobody knows when its process will be there, so others take over its suspects.
    """

    held: deque[Dealt] = field(default_factory=deque)
    suspects: deque[Dealt] = field(default_factory=deque)
    absent: bool = False


class Instead(Enum):
    """What an asking replica gets instead of a sample."""

    FINISH = "answer what you hold, then ask again"
    WAIT = "no reply as yet"


class Deal:
    """The samples of a run, and the hands of its replicas.

    total: how many samples there are, None if that is not known. given: the results that were taken
    in order, which the caller counts.
    """

    def __init__(
        self, samples: Iterable[Sample], total: int | None, hands: list[Hand], window: int = WINDOW
    ) -> None:
        self.samples, self.total, self.window = enumerate(samples), total, window
        self.hands = hands
        self.over = False
        self.dealt = self.answered = self.given = 0

    @property
    def done(self) -> bool:
        return self.over and not any(hand.held or hand.suspects for hand in self.hands)

    def deal(self, hand: Hand) -> Dealt | Instead:
        """What the replica that asks is handed. Reads the next sample only where it is handed out.

        A replica that holds something and asks cannot go on before it has a reply.
        """
        for other in self.hands:
            if other.absent and other.suspects:
                hand.suspects.extend(other.suspects)
                other.suspects.clear()
        if hand.suspects or (hand.held and hand.held[0].deaths):
            return Instead.FINISH if hand.held else self._hand_out(hand, hand.suspects.popleft())
        if self._full(hand):
            return Instead.WAIT
        if hand.held and self.total is not None and len(hand.held) >= self._share():
            return Instead.FINISH
        found = None if self.over else next(self.samples, None)
        if found is None:
            self.over = True
            return Instead.FINISH if hand.held else Instead.WAIT
        self.dealt += 1
        return self._hand_out(hand, Dealt(*found))

    def answer(self, hand: Hand) -> Dealt:
        """The sample of a replica's next result: they come in the order of its samples."""
        self.answered += 1
        return hand.held.popleft()

    def lost(self, hand: Hand) -> list[Dealt]:
        """Takes back what a process held when it died; returns the samples that now fail."""
        for dealt in hand.held:
            dealt.deaths += 1
        failed = [dealt for dealt in hand.held if dealt.deaths >= DEATHS]
        self.answered += len(failed)
        hand.suspects.extend(dealt for dealt in hand.held if dealt.deaths < DEATHS)
        hand.held.clear()
        return failed

    def leave(self, hand: Hand) -> None:
        """A replica is gone for good; its suspects go to the one that has the fewest, if any."""
        self.hands.remove(hand)
        if self.hands:
            heir = min(self.hands, key=lambda each: len(each.suspects))
            heir.suspects.extend(hand.suspects)

    def _hand_out(self, hand: Hand, dealt: Dealt) -> Dealt:
        hand.held.append(dealt)
        return dealt

    def _full(self, hand: Hand) -> bool:
        """Whether too many results wait, unless it is this replica that they wait for."""
        first = bool(hand.held) and hand.held[0].number == self.given
        return self.dealt - self.given >= self.window and not first

    def _share(self) -> int:
        """An equal share of what has no answer: none holds so much that others have nothing."""
        left = (self.total or 0) - self.answered
        return max(1, -(-left // len(self.hands)))
