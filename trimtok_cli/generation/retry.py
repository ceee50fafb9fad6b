"""Retry in halves, for work on a batch that may break or not fit."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from trimtok_cli.device import forget_frames, out_of_memory, release
from trimtok_cli.errors import ModelError

Item = TypeVar("Item")
Output = TypeVar("Output")


def in_halves(
    work: Callable[[list[Item]], list[Output]], items: list[Item], device: torch.device
) -> Iterator[tuple[Item, Output | Exception]]:
    """Each item with its result, or with the error that it raised when run by itself.

    A batch that fails is tried again in halves, so that a bad item fails alone, and a batch that is
    too large for the memory finds its size. ModelError ends everything.
    """
    if not items:
        return
    try:
        made = work(items)
    except ModelError:
        raise
    except Exception as error:
        failed = forget_frames(error)
    else:
        yield from zip(items, made, strict=True)
        return
    if out_of_memory(failed):
        release(device)
    if len(items) == 1:
        yield items[0], failed
        return
    middle = len(items) // 2
    yield from in_halves(work, items[:middle], device)
    yield from in_halves(work, items[middle:], device)
