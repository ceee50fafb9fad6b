"""One method in full, for `trimtok methods NAME`: docstrings, facts, parameters. Knows no name."""

import dataclasses
import inspect
import re
import shutil
import sys
import textwrap
from typing import Any

from trimtok_cli.errors import UsageError
from trimtok_cli.wording import brief, suggestion

WIDEST = 100  # columns of text

KEEP = ("keep", "budget")  # parameters of every method, which are options of the run


def method_details(name: str) -> str:
    """The description of a method, as text. Raises UsageError if no method has that name."""
    from trimtok_cli.pruners.registry import PRUNERS

    if name not in PRUNERS:
        known = ", ".join(PRUNERS)
        near = suggestion(name, PRUNERS)
        raise UsageError(f"{brief(name)} is not a method: choose from {known}{near}.")
    kind = PRUNERS[name]
    if kind is None:
        return f"{name}: no pruner at all, the language model reads every visual token."
    parts = [
        _columns(_facts(kind)),
        *map(_paragraphs, (sys.modules[kind.__module__].__doc__, _own_doc(kind))),
        _columns(_parameters(kind)) or "It has no parameters but --keep and --budget.",
    ]
    return "\n\n".join(part for part in parts if part)


def _facts(kind: Any) -> list[tuple[str, str]]:
    address = f"https://arxiv.org/abs/{kind.paper}" if kind.paper else "none"
    return [
        ("method", kind.name),
        ("prunes", kind.where),
        ("needs", ", ".join(kind.needs).replace("_", " ") or "the visual tokens alone"),
        ("positions", "renumbered where they are 1-D" if kind.renumbers else "keep their ids"),
        ("paper", address),
        ("licence of the code", kind.licence or "none"),
    ]


def _parameters(kind: Any) -> list[tuple[str, str]]:
    """(option, its values and default) for each parameter of a method."""
    from trimtok_cli.pruners.params import Limits, requirement
    from trimtok_cli.pruners.registry import OPTIONS

    rows = []
    for field in dataclasses.fields(kind):
        if field.name in KEEP:
            continue
        option = OPTIONS.get(field.name, f"--param {field.name}")
        words = requirement(field.name, field.type, field.metadata.get("limits", Limits()))
        rows.append((option, f"{words}; default {_default(field.default)}"))
    return rows


def _default(value: Any) -> str:
    if value is None:
        return "by the model"
    return f"{value:.4g}" if isinstance(value, float) else brief(value)


def _own_doc(kind: Any) -> str:
    """The docstring of a class; empty if dataclasses wrote the signature there."""
    doc = kind.__dict__.get("__doc__") or ""
    return "" if doc.startswith(f"{kind.__name__}(") else doc


def _paragraphs(doc: str | None) -> str:
    """A docstring's paragraphs, each filled to the width of the terminal."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(doc or ""))
    return "\n\n".join(textwrap.fill(" ".join(each.split()), _width()) for each in paragraphs)


def _columns(rows: list[tuple[str, str]]) -> str:
    """Names and texts, the texts filled beside their names."""
    first = max((len(name) for name, _ in rows), default=0) + 2
    return "\n".join(
        textwrap.fill(
            text, _width(), initial_indent=name.ljust(first), subsequent_indent=" " * first
        )
        for name, text in rows
    )


def _width() -> int:
    return min(shutil.get_terminal_size().columns, WIDEST)
