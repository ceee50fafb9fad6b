"""A shard: every n-th sample of a run, for a machine of its own.

Samples are counted after they have their keys, so a shard's keys are those of the whole run. By
position, in turn: neighbours are often of a size, so shards take as long as each other; the source
may be a stream; and answers in the order of each shard are put together without the source. Knows
no format.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.wording import brief

ENVIRONMENT = "env"
MOST = 100_000

_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)


@dataclass(frozen=True)
class Shard:
    """The shard `number` of `count`, from 1 on.

    facts: for run.json. At the end of all samples they hold how many there are, those of other
    shards among them, and a hash of their keys: shards were cut from one source if these are equal.
    """

    number: int
    count: int
    facts: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        self.facts.update(number=self.number, count=self.count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def folder(self) -> str:
        return f"shard-{self.number}-of-{self.count}"

    def size(self, total: int) -> int:
        """How many of `total` samples are in the shard."""
        return len(range(self.number - 1, total, self.count))

    def cut(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples of the shard, out of all samples with their keys."""
        number, keys = 0, hashlib.blake2b(digest_size=16)
        for number, sample in enumerate(samples, start=1):
            keys.update(bytes.fromhex(sample.key))
            if (number - 1) % self.count == self.number - 1:
                yield sample
        self.facts.update(inputs=number, keys=keys.hexdigest())


def part_of(samples: Iterable[Sample], shard: Shard | None) -> Iterable[Sample]:
    """The samples that are to be answered: those of the shard, or all."""
    return samples if shard is None else shard.cut(samples)


def parse_shard(text: str) -> Shard:
    """The shard of --shard: NUMBER/COUNT, or `env`. Raises UsageError."""
    if text == ENVIRONMENT:
        return _of_environment()
    match = _SHARD.fullmatch(text)
    if match is None:
        raise UsageError(f"--shard must be NUMBER/COUNT, such as 2/8, or env, got {brief(text)!r}.")
    return _checked(int(match[1]), int(match[2]), "--shard")


def _checked(number: int, count: int, where: str) -> Shard:
    if not 1 <= number <= count <= MOST:
        raise UsageError(
            f"{where} must be from 1/COUNT to COUNT/COUNT, with a COUNT of at most {MOST:,}, got "
            f"{number}/{count}."
        )
    return Shard(number, count)


def _of_environment() -> Shard:
    """The shard that torchrun (RANK, WORLD_SIZE) or a Slurm array gives this process."""
    ranks, tasks = _numbers("RANK", "WORLD_SIZE"), _numbers("SLURM_ARRAY_TASK_ID")
    if ranks and tasks:
        raise UsageError(
            "--shard env: both RANK and SLURM_ARRAY_TASK_ID are set: give --shard NUMBER/COUNT."
        )
    if ranks:
        return _checked(ranks[0] + 1, ranks[1], "--shard env: RANK + 1 of WORLD_SIZE")
    if not tasks:
        raise UsageError(
            "--shard env: neither RANK and WORLD_SIZE (torchrun) nor SLURM_ARRAY_TASK_ID is set: "
            "give --shard NUMBER/COUNT."
        )
    array = _numbers("SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX")
    if not array:
        raise UsageError(
            "--shard env: SLURM_ARRAY_TASK_COUNT, _MIN or _MAX is not set: give --shard "
            "NUMBER/COUNT."
        )
    count, first, last = array
    # Of an array that was submitted again in part, nobody knows what the whole was.
    if first not in (0, 1) or last - first + 1 != count:
        raise UsageError(
            f"--shard env: the Slurm array has {count} tasks from {first} to {last}; number them "
            "from 0 or 1 without a gap, or give --shard NUMBER/COUNT."
        )
    return _checked(tasks[0] - first + 1, count, "--shard env: the Slurm task")


def _numbers(*names: str) -> list[int]:
    """The values of these variables; empty if one is missing. Raises UsageError for no number."""
    values = [os.environ.get(name, "") for name in names]
    if not all(values):
        return []
    for name, value in zip(names, values, strict=True):
        if not re.fullmatch(r"\d{1,9}", value, re.ASCII):
            raise UsageError(f"--shard env: {name} must be a number, got {brief(value)!r}.")
    return list(map(int, values))
