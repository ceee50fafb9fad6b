"""Names under which the samples of several sources are told apart. Knows no source."""

from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

from trimtok_cli.blobs import Medium, Stored
from trimtok_cli.data import Sample
from trimtok_cli.wording import shortened


def name_apart(
    parts: list[list[Sample]], by_path: bool
) -> tuple[list[list[Sample]], tuple[str, ...]]:
    """The samples of each source under names that tell any two files apart, and notes.

    Names stay as given where they do; else, or with `by_path`, they are paths. The notes tell what
    was named twice.
    """
    if len(parts) < 2:
        return parts, ()
    paths: dict[str, Medium] = {}
    for sample in chain.from_iterable(parts):
        path = _path_of(sample)
        if path is not None and paths.setdefault(sample.names[0], path) != path:
            by_path = True
    if by_path:
        parts = [[_named_by_path(sample) for sample in part] for part in parts]
    counts = Counter(sample.id for sample in chain.from_iterable(parts))
    twice = [name for name, count in counts.items() if count > 1]
    if not twice:
        return parts, ()
    listed = [shortened(name) for name in twice[:3]]
    if len(twice) > 3:
        listed.append("...")
    return parts, (f"named more than once, and answered as often: {', '.join(listed)}",)


def _path_of(sample: Sample) -> Medium | None:
    return sample.video or next(iter(sample.images), None)


def _named_by_path(sample: Sample) -> Sample:
    path = _path_of(sample)
    name = sample.names[0]
    if isinstance(path, (Path, Stored)):
        name = path.as_posix() if isinstance(path, Path) else path.name
    return replace(sample, id=name, names=(name,))
