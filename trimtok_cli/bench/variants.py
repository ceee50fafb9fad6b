"""Choices that are held beside the usual way on a GPU, one line each. Add a line for a new one.

A variant is a context in which it runs, a change of its loop, or a batch of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch


@dataclass(frozen=True)
class Variant:
    """name: in the JSON. why: what is asked. active: the context in which it runs. change: of a
    fresh loop. batch: 0 is the largest one asked for.
    """

    name: str
    why: str
    active: Callable[[], AbstractContextManager] = nullcontext
    change: Callable[[Any], None] = lambda loop: None
    batch: int = 0


@contextmanager
def cudnn_attention(enabled: bool) -> Iterator[None]:
    """A block in which attention may, or may not, be cuDNN's."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(enabled)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def attribute(path: str, value: Any, loop: Any) -> None:
    """Sets a loop's attribute of a dotted path. Raises AttributeError where there is none."""
    *owners, name = path.split(".")
    for owner in owners:
        loop = getattr(loop, owner)
    getattr(loop, name)
    setattr(loop, name, value)


def loop_with(path: str, value: Any) -> Callable[[Any], None]:
    """A change of one attribute of a loop."""
    return partial(attribute, path, value)


VARIANTS = (
    Variant("cudnn on", "does cuDNN's attention cost plans?", partial(cudnn_attention, True)),
    Variant("cudnn off", "is attention without cuDNN slower?", partial(cudnn_attention, False)),
    Variant("eager", "what do recordings save?", change=loop_with("steps.graphs.used", False)),
    Variant(
        "eager prefills",
        "what do recorded prefills save?",
        change=loop_with("steps.prefills.graphs.used", False),
    ),
    Variant("64 rows", "do more answers at once pay?", batch=64),
    Variant("128 rows", "do more answers at once pay?", batch=128),
    Variant("256 rows", "do more answers at once pay?", batch=256),
)
