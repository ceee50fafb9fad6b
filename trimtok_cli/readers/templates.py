"""The prompt of a run as a template: `Describe {stem} in {dir}`, and the columns of a row.

A question of the input's own is no template. A prompt without braces is left alone. Two braces are
one: `{{`. Opens no picture; a sidecar's text is read where the prompt names it.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from trimtok_cli.config import VIDEO_PROMPT, RunConfig
from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.readers.source import Source
from trimtok_cli.wording import shortened, shown, suggestion

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")

# Samples at the beginning whose columns a prompt may name.
_FIRST = 100

# Endings of the texts that lie beside pictures.
_SIDECARS = (".caption", ".txt")

# Bytes of a sidecar.
_MOST_TEXT = 1 << 20


def _name(sample: Sample) -> str:
    return sample.names[0] if sample.names else str(sample.id)


def _folder(sample: Sample) -> Path:
    medium = next(iter((*sample.images, *filter(None, [sample.video]))), None)
    return medium.parent if isinstance(medium, Path) else Path(_name(sample)).parent


def _dir(sample: Sample) -> str:
    """The folder's name, which `.` and `..` have as well; empty at the root of an archive."""
    folder = _folder(sample)
    on_disk = any(isinstance(medium, Path) for medium in (*sample.images, sample.video))
    return os.path.basename(os.path.abspath(folder)) if on_disk else folder.name


# Name in a prompt -> what it stands for, of a sample. A column of that name comes first.
NAMES: dict[str, Callable[[Sample], str]] = {
    "name": lambda sample: Path(_name(sample)).name,
    "stem": lambda sample: Path(_name(sample)).stem,
    "dir": _dir,
    "parent": lambda sample: _folder(sample).as_posix(),
    "concept": lambda sample: re.sub(r"^\d+_", "", _dir(sample)),
}


def with_prompt(source: Source, prompt: str) -> Source:
    """The source, each sample without a question of its own asked the prompt with its names put in.

    UsageError for a prompt that is no template, or names what no sample has. A sample that lacks a
    column, or its sidecar, fails alone.
    """
    if not re.search(r"[{}]", prompt):
        return source
    names = _names_in(prompt)
    samples = iter(source.samples)
    if names - NAMES.keys():
        first = list(islice(samples, _FIRST))
        _refuse_unknown(names, first)
        samples = chain(first, samples)
    return replace(source, samples=_filled(samples, prompt))


def prompted(source: Source, config: RunConfig) -> Source:
    """As `with_prompt`, of a run's config. A video is asked about the video, not the image, unless
    a prompt was given.
    """
    if "prompt" in config.sources:
        return with_prompt(source, config.prompt)
    asked = (
        replace(sample, question=VIDEO_PROMPT)
        if sample.video is not None and sample.question is None
        else sample
        for sample in source.samples
    )
    samples = list(asked) if isinstance(source.samples, list) else asked
    return replace(source, samples=samples)


def _names_in(prompt: str) -> set[str]:
    names = set()
    for piece in _PIECE.finditer(prompt):
        if piece[0] in ("{", "}"):
            raise UsageError(
                f"--prompt has a single {piece[0]} at character {piece.start() + 1}; write "
                f"{piece[0] * 2} where a brace is meant"
            )
        if piece[1] is not None:
            names.add(piece[1])
    return names


def _refuse_unknown(names: set[str], samples: Sequence[Sample]) -> None:
    asked = [sample for sample in samples if sample.question is None]
    known = {*NAMES, *(column for sample in asked for column in sample.extra)}
    if any(_sidecar(sample) for sample in asked):
        known |= {"caption", "tags"}
    for name in sorted(names - known):
        if asked:
            listed = ", ".join(shown(shortened(column, 40)) for column in sorted(known)[:40])
            raise UsageError(
                f"--prompt names {{{shown(shortened(name, 40))}}}, which no input "
                f"has{suggestion(name, known)}; known are {listed}; write {{{{ }}}} for braces"
            )


def _filled(samples: Iterator[Sample], prompt: str) -> Iterator[Sample]:
    for sample in samples:
        if sample.question is not None or sample.problem:
            yield sample
            continue
        try:
            question = _PIECE.sub(lambda piece: _text(piece, sample), prompt)  # noqa: B023
            yield replace(sample, question=question)
        except (LookupError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error.args[0]
            yield replace(sample, question=prompt, problem=f"{_name(sample)}: {reason}")
        except UnicodeDecodeError:
            problem = f"{_name(sample)}: the text beside it is not UTF-8; save it as UTF-8"
            yield replace(sample, question=prompt, problem=problem)


def _text(piece: re.Match[str], sample: Sample) -> str:
    """What stands for a piece of the prompt. LookupError for a column that the sample lacks."""
    name = piece[1]
    if name is None:
        return piece[0][0]
    value = sample.extra.get(name)
    if isinstance(value, str | int | float) and value != "":
        return str(value)
    if name in sample.extra:
        raise LookupError(f"its column {shortened(name, 40)} holds no text, and --prompt names it")
    if name in NAMES:
        return NAMES[name](sample)
    if name in ("caption", "tags") and (path := _sidecar(sample)):
        with path.open("rb") as file:
            text = file.read(_MOST_TEXT).decode("utf-8-sig").strip()
        if text:
            return text
        raise LookupError(f"{path.name} beside it is empty, and --prompt names {{{name}}}")
    raise LookupError(f"it has no {shortened(name, 40)}, and --prompt names it")


def _sidecar(sample: Sample) -> Path | None:
    """The text beside a picture, `a.caption` or `a.txt` for `a.jpg`; None where there is none."""
    medium = next(iter((*sample.images, *filter(None, [sample.video]))), None)
    if not isinstance(medium, Path):
        return None
    paths = [medium.with_suffix(ending) for ending in _SIDECARS if medium.name]
    return next((path for path in paths if os.path.isfile(path)), None)
