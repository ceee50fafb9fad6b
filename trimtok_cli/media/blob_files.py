"""The bytes of a medium that may be no file of its own: opened as a file is, or saved as one.

What goes wrong is a MediaError of one sentence. Knows no format of pictures.
"""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from trimtok_cli import stores
from trimtok_cli.blobs import Address, Blob, Held, Medium, Stored, Within
from trimtok_cli.errors import MediaError
from trimtok_cli.media.files import refuse_irregular
from trimtok_cli.wording import shortened

# Bytes of one picture or video within another file. They are read at once.
MOST_BYTES = 1 << 30


def medium_of(path: Medium | str) -> tuple[Medium, str]:
    """(medium, its name in messages)."""
    return path if isinstance(path, Blob) else Path(path), shortened(str(path), 300)


@contextmanager
def opened(medium: Medium, name: str, kind: str) -> Iterator[BinaryIO]:
    """The medium, open to be read; `kind` is what it should be, image or video.

    MediaError for an empty one, and for what is no regular file.
    """
    if isinstance(medium, Path):
        refuse_irregular(medium.stat(), name, kind)
        with medium.open("rb") as file:
            yield file
        return
    content = read_blob(medium)
    if not content:
        raise MediaError(f"{name} is empty (0 bytes); fetch or save it again")
    yield io.BytesIO(content)


def read_blob(blob: Blob) -> bytes:
    """The content of a blob."""
    if isinstance(blob, Held):
        return blob.content
    if isinstance(blob, Within):
        return _cut(blob)
    if isinstance(blob, Stored):
        return _stored(blob)
    if isinstance(blob, Address):
        # urllib takes a while to import, and few runs need it.
        from trimtok_cli.media.fetch import fetch

        return fetch(blob.name)
    raise TypeError(f"no way to read a {type(blob).__name__}")


def _cut(blob: Within) -> bytes:
    if blob.size > MOST_BYTES:
        raise MediaError(
            f"{blob.name} has {blob.size:,} bytes, more than the {MOST_BYTES:,} that are read "
            f"out of another file; take it out of {blob.file}"
        )
    if isinstance(blob.file, Stored):
        content = stores.read(blob.file.name, blob.offset, blob.offset + blob.size)
    else:
        with blob.file.open("rb") as file:
            file.seek(blob.offset)
            content = file.read(blob.size)
    if len(content) < blob.size:
        raise MediaError(
            f"{blob.name} is cut short: {blob.file} ends before it does; fetch or save it again"
        )
    return content


def _stored(blob: Stored) -> bytes:
    size = stores.size(blob.name)
    if size > MOST_BYTES:
        raise MediaError(
            f"{blob.name} has {size:,} bytes, more than the {MOST_BYTES:,} that are read out of "
            "a store; save the file and name that"
        )
    return stores.read(blob.name)


@contextmanager
def saved(medium: Medium) -> Iterator[Path]:
    """The path of the medium, for a library that reads files alone.

    A blob lies in a temporary file as long as the context lasts.
    """
    if isinstance(medium, Path):
        yield medium
        return
    with tempfile.TemporaryDirectory(prefix="trimtok-") as folder:
        path = Path(folder) / ("clip" + os.path.splitext(medium.name)[1][:8].replace("/", ""))
        path.write_bytes(read_blob(medium))
        yield path
