"""A batch that breaks is tried again in halves."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from trimtok_cli.device import forget_frames, out_of_memory, release
from trimtok_cli.errors import ModelError

Item = TypeVar("Item")

Made = TypeVar("Made")


def in_halves(
    work: Callable[[list[Item]], list[Made]], items: list[Item], device: torch.device
) -> Iterator[tuple[Item, Made | Exception]]:
    """Each item with what `work` makes of it. A batch that fails is tried again in halves, so that
    only the item fails that cannot be done even alone, and a batch that is too large for the memory
    finds its size.
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
