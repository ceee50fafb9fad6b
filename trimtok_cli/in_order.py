"""Results in the order of their samples, whatever the order in which they come. Knows no model."""

from collections.abc import Iterator

from trimtok_cli.data import Result


class InOrder:
    """Puts results in order: a result waits here for all results before it."""

    def __init__(self) -> None:
        self.waiting: dict[int, Result] = {}
        self.next = 0

    def put(self, number: int, result: Result) -> None:
        self.waiting[number] = result

    def due(self) -> Iterator[Result]:
        while self.next in self.waiting:
            yield self.waiting.pop(self.next)
            self.next += 1
