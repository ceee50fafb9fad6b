"""Choices that are held beside the usual way on a GPU, one line each. Add a line for a new one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """name: in the JSON. why: what is asked.

    settings: attributes by their dotted paths from the loop, with values that they have for the
    variant alone; the arguments of `answer_all` for a variant that runs from files. batch: 0 is the
    largest one asked for. unseen: prompts of a round, one at a time, each of a length that was not
    seen before; 0 is the same batch every round.
    """

    name: str
    why: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 0
    unseen: int = 0
    from_files: bool = False


@contextmanager
def settings(loop: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """A block in which a loop's attributes have other values.

    Raises AttributeError for a path that leads to none.
    """
    before = []
    try:
        for path, value in values.items():
            *owners, name = path.split(".")
            owner = loop
            for each in owners:
                owner = getattr(owner, each)
            before.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


CUDNN, NO_BUCKETS = {"model.cudnn_attention": True}, {"steps.in_buckets": False}
EAGER_PREFILLS = {"steps.prefills.graphs.used": False}
LATE = "what does reading tokens a step late save?"
PLANS = "what do plans for new shapes cost?"
AHEAD = "what does encoding on a second thread save?"
ROWS = "do more answers at once pay?"

VARIANTS = (
    Variant("eager", "what do recordings save?", {"steps.graphs.used": False}),
    Variant("eager prefills", "what do recorded prefills save?", EAGER_PREFILLS),
    Variant("tokens read at once", LATE, {"lag": 0}),
    Variant("tokens read two steps late", "is one step enough?", {"lag": 2}),
    Variant("masked steps", "what does attention save unmasked?", {"steps.unmasked": False}),
    Variant("the library's pieces", "what do fused pieces save?", {"model.faster": []}),
    Variant("cudnn", "is attention without cuDNN slower?", CUDNN),
    Variant("unseen lengths, cudnn", PLANS, CUDNN, unseen=20),
    Variant("unseen lengths, no buckets", PLANS, NO_BUCKETS, unseen=20),
    Variant("unseen lengths, cudnn, no buckets", PLANS, CUDNN | NO_BUCKETS, unseen=20),
    Variant("encoded in turn", AHEAD, {"encode_ahead": False}, from_files=True),
    Variant("encoded ahead", AHEAD, {"encode_ahead": True}, from_files=True),
    Variant("32 rows", ROWS, batch=32),
    Variant("64 rows", ROWS, batch=64),
    Variant("128 rows", ROWS, batch=128),
    Variant("256 rows", ROWS, batch=256),
)
