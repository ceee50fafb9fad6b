"""Who is handed which sample: replicas that ask, answer and die in any order lose none."""

import random
from collections.abc import Iterable

import pytest

from trimtok_cli.data import Sample
from trimtok_cli.in_order import InOrder
from trimtok_cli.replicas.deal import DEATHS, Deal, Dealt, Hand, Instead


def samples(number: int) -> list[Sample]:
    return [Sample(i) for i in range(number)]


class Played:
    """A run of replicas that are not there: each asks, answers or dies as lots decide.

    deadly: numbers of samples that end whoever holds them. chance: of a death at any step. leaving:
    replicas that are given up at their first death. late: replicas that begin when half is done.
    """

    def __init__(
        self,
        number: int,
        replicas: int,
        seed: int,
        *,
        deadly: Iterable[int] = (),
        chance: float = 0.0,
        leaving: int = 0,
        late: int = 0,
        ahead: int = 5,
        window: int = 20,
        known: bool = True,
    ) -> None:
        self.lots, self.number, self.deadly, self.chance = (
            random.Random(seed),
            number,
            {*deadly},
            chance,
        )
        self.leaving, self.late, self.ahead = leaving, late, ahead
        self.hands = [Hand() for _ in range(replicas)]
        self.deal = Deal(samples(number), number if known else None, [*self.hands], window=window)
        self.draining = {id(hand): False for hand in self.hands}
        self.order: list[int] = []
        self.failed: set[int] = set()
        self.alone: list[int] = []
        self.most = 0
        self.turn = InOrder()

    def put(self, dealt: Dealt) -> None:
        assert dealt.number not in self.turn.waiting and dealt.number >= self.turn.next, "twice"
        self.turn.put(dealt.number, dealt.number)
        self.order += self.turn.due()
        self.deal.given = self.turn.next

    def run(self) -> None:
        idle = 0
        while not self.deal.done:
            ready = self.deal.hands
            if len(self.order) < self.number // 2:
                ready = ready[: len(ready) - self.late]
            hand = self.lots.choice(ready)
            idle = 0 if self.step(hand) else idle + 1
            assert idle < 400, "nobody can go on"
            self.most = max(self.most, self.deal.dealt - self.deal.given)

    def step(self, hand: Hand) -> bool:
        """One event of a replica; False if there is none to happen."""
        if hand.held and (
            self.lots.random() < self.chance or {dealt.number for dealt in hand.held} & self.deadly
        ):
            self.die(hand)
            return True
        full = len(hand.held) >= self.ahead or self.draining[id(hand)]
        if hand.held and (full or self.lots.random() < 0.3):
            self.put(self.deal.answer(hand))
            self.draining[id(hand)] &= bool(hand.held)
            return True
        found = self.deal.deal(hand)
        if isinstance(found, Dealt) and found.deaths:
            self.alone.append(found.number)
        assert len(hand.held) < 2 or not any(each.deaths for each in hand.held), "not alone"
        self.draining[id(hand)] = found is Instead.FINISH
        return found is not Instead.WAIT

    def die(self, hand: Hand) -> None:
        lost = self.deal.lost(hand)
        self.draining[id(hand)] = False
        self.failed |= {dealt.number for dealt in lost}
        if self.leaving and len(self.deal.hands) > 1:
            self.leaving -= 1
            self.deal.leave(hand)
        for dealt in lost:
            self.put(dealt)


@pytest.mark.parametrize("seed", range(40))
def test_every_sample_is_answered_once_in_order_whoever_dies(seed):
    """A replica that asks and holds something cannot answer before it has its reply."""
    lots = random.Random(seed)
    number = lots.choice((0, 1, 7, 60, 150))
    deadly = {each for each in range(number) if lots.random() < 0.05}
    played = Played(
        number,
        lots.randint(1, 4),
        seed,
        deadly=deadly,
        leaving=seed % 3,
        known=seed % 2 == 0,
        ahead=lots.randint(1, 9),
    )
    played.run()
    assert played.order == list(range(number))
    assert played.failed == deadly, "what does no harm never fails"
    assert {*played.alone} >= deadly


@pytest.mark.parametrize("seed", range(10))
def test_deaths_by_chance_fail_only_what_was_there_each_time(seed):
    played = Played(120, 3, seed, chance=0.02)
    played.run()
    assert played.order == list(range(120))
    assert all(played.alone.count(each) == DEATHS - 1 for each in played.failed)


def test_the_window_bounds_what_waits_and_stops_nobody_for_ever():
    """The replica that all others wait for is never made to wait itself."""
    deal = Deal(samples(100), None, hands := [Hand(), Hand()], window=10)
    slow, quick = hands
    assert isinstance(deal.deal(slow), Dealt)
    for _ in range(9):
        assert isinstance(deal.deal(quick), Dealt)
        deal.answer(quick)
    assert deal.deal(quick) is Instead.WAIT and deal.deal(quick) is Instead.WAIT
    assert isinstance(deal.deal(slow), Dealt), "it could not answer before it has a reply"
    deal.answer(slow)
    deal.given = 10
    assert isinstance(deal.deal(quick), Dealt)


def test_a_replica_that_reads_far_ahead_leaves_others_their_share():
    deal = Deal(samples(100), 100, hands := [Hand(), Hand()])
    first, late = hands
    while isinstance(deal.deal(first), Dealt):
        pass
    assert len(first.held) == 50
    while isinstance(deal.deal(late), Dealt):
        pass
    assert len(late.held) == 50 and deal.deal(late) is Instead.FINISH


def test_nothing_is_read_before_somebody_asks():
    read = []
    deal = Deal((read.append(each) or each for each in samples(9)), 9, hands := [Hand()])
    assert not read
    deal.deal(hands[0])
    assert [each.id for each in read] == [0]


def test_a_sample_that_was_held_at_a_death_runs_alone_and_another_takes_an_orphan():
    deal = Deal(samples(9), None, hands := [Hand(), Hand()])
    one, other = hands
    first, second = deal.deal(one), deal.deal(one)
    third = deal.deal(other)
    assert deal.lost(one) == [] and [first.deaths, second.deaths] == [1, 1]
    assert deal.deal(one) is first and deal.deal(one) is Instead.FINISH
    assert deal.lost(one) == [] and deal.deal(one) is second
    deal.answer(one)
    deal.leave(one)
    assert deal.deal(other) is Instead.FINISH and deal.answer(other) is third
    assert deal.deal(other) is first and deal.lost(other) == [first], "the third death"
    assert not other.suspects


def test_suspects_of_a_replica_that_may_never_come_back_are_taken_over():
    """Each is still handed out alone, and none before the other has answered what it holds."""
    here, lost = Hand(), Hand()
    deal = Deal(samples(5), 5, [here, lost])
    for hand in (lost, lost, here):
        assert isinstance(deal.deal(hand), Dealt)
    assert not deal.lost(lost) and len(lost.suspects) == 2
    assert isinstance(deal.deal(here), Dealt), "its process is about to be there again"
    lost.absent = True
    assert deal.deal(here) is Instead.FINISH and not lost.suspects
    deal.answer(here), deal.answer(here)
    for number in (0, 1):
        dealt = deal.deal(here)
        assert isinstance(dealt, Dealt) and (dealt.number, dealt.deaths) == (number, 1)
        assert deal.deal(here) is Instead.FINISH
        deal.answer(here)
    assert deal.deal(here).number == 4
    deal.answer(here)
    assert deal.deal(here) is Instead.WAIT and deal.done
