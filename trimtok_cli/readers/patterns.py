"""Patterns of paths such as `photos/**/*.jpg`, for those that a shell left alone.

`**` stands for any number of folders. Knows names only: it searches no folder.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path


@dataclass(frozen=True)
class Pattern:
    """A pattern in two: the folder where the search begins, and the parts of the paths below it."""

    folder: Path
    parts: tuple[str, ...]

    @classmethod
    def of(cls, source: str) -> "Pattern":
        """The pattern `source`. Parts that exist are folders, even one that is called [x]."""
        path = Path(source)
        folder = Path(path.anchor)
        parts = list(path.parts[1 if path.anchor else 0 :])
        while len(parts) > 1 and os.path.exists(folder / parts[0]):
            folder /= parts.pop(0)
        return cls(folder, tuple(parts))

    @property
    def depth(self) -> int | None:
        """Levels of subfolders that a match may lie in; None for any number."""
        return None if "**" in self.parts else len(self.parts) - 1

    def matches(self, name: str) -> bool:
        """Whether a path matches; `name` is relative to the folder, with slashes."""
        return _matches(name.split("/"), self.parts)


def _matches(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the names of a path match the parts of a pattern, one by one.

    Keeps every part that may come next, so the time is names times parts, however many `**` stand
    in the pattern.
    """
    nexts = _past_stars({0}, parts)
    for name in names:
        staying = {at for at in nexts if at < len(parts) and parts[at] == "**"}
        moving = {
            at + 1 for at in nexts - staying if at < len(parts) and fnmatchcase(name, parts[at])
        }
        nexts = _past_stars(staying | moving, parts)
    return len(parts) in nexts


def _past_stars(nexts: set[int], parts: Sequence[str]) -> set[int]:
    """The parts that may come next, and those behind each `**` among them, which may be empty."""
    reached = set(nexts)
    for at in sorted(nexts):
        while at < len(parts) and parts[at] == "**":
            at += 1
            reached.add(at)
    return reached
