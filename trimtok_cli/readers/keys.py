"""Keys: what tells a sample from every other one of its run, and is the same in the next run.

A key says what is asked, not who asks: ids repeat in real question files. A picture counts by its
path, or by its name within an archive. Its content is not read, and neither its size nor its time
counts: a copy of the pictures, or a file system that keeps other times, would otherwise answer
everything anew. A picture that the row itself holds counts by its content. Knows no format.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from trimtok_cli.blobs import Blob, Held, Medium, Within
from trimtok_cli.data import Sample
from trimtok_cli.key_table import SIZE, KeyTable


def keyed(samples: Iterable[Sample]) -> Iterator[Sample]:
    """The samples, each with its `key` and its `turn`.

    The key is a hash of the id, the names, the full paths, the question, every further column, and
    the turn. Holds some 30 bytes of each sample, for the repeats.
    """
    folder = _current_folder()
    seen = KeyTable()
    repeats: Counter[int] = Counter()
    for sample in samples:
        before = len(seen)
        asked, turn = seen.put(_hash([sample.names, sample.question])), 1
        if asked < before:
            repeats[asked] += 1
            turn += repeats[asked]
        key = _hash(
            [
                sample.id,
                sample.names,
                [_place(medium, folder) for medium in (*sample.images, sample.video) if medium],
                sample.question,
                sample.answers,
                dict(sample.extra),
                turn,
            ]
        )
        yield replace(sample, key=key.hex(), turn=turn)


def _hash(value: Any) -> bytes:
    """A hash of plain values; lone surrogates of odd file names are escapes in JSON."""
    return hashlib.blake2b(json.dumps(value, default=repr).encode(), digest_size=SIZE).digest()


def _place(medium: Medium, folder: str) -> str | list[str]:
    if isinstance(medium, Held):
        return hashlib.blake2b(medium.content, digest_size=SIZE).hexdigest()
    if isinstance(medium, Within):
        return [str(_place(medium.file, folder)), medium.name]
    return medium.name if isinstance(medium, Blob) else _full(medium, folder)


def _full(path: os.PathLike[str], folder: str) -> str:
    return os.path.normpath(os.path.join(folder, path))


def _current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""
