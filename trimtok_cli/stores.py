"""Object stores through fsspec: what is there, its bytes, and whole files fetched and put.

What goes wrong is an OSError, as it is for files: missing, not allowed, or with the kind of the
library's error, whose own words may hold what is secret. Knows no format.
"""

import errno
import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtok_cli.errors import UsageError
from trimtok_cli.wording import brief, shown_name

# The beginning of an address -> the package that reads it, where fsspec does not itself.
SCHEMES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "file": "", "memory": ""}

_STORED = re.compile(rf"({'|'.join(SCHEMES)})://", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """What a folder of a store holds: its name, its address, and whether it is a folder."""

    name: str
    path: str
    folder: bool

    def is_dir(self) -> bool:
        return self.folder


def is_stored(name: str) -> bool:
    """Whether a name is the address of an object store."""
    return _STORED.match(name) is not None


def checked(address: str) -> str:
    """The address in its usual form: no double slashes, dots or slash at its end.

    Raises UsageError for one that holds a secret, or that no installed package reads.
    """
    scheme, _, place = address.partition("://")
    scheme = scheme.lower()
    if "@" in place.partition("/")[0]:
        raise UsageError(
            f"{scheme}://...: a key has no place in an address, which is written to files; use "
            "the environment or the profile of your store."
        )
    if not place.strip("/") or "\0" in place:
        raise UsageError(f"{brief(address)} names nothing: write {scheme}://BUCKET/FOLDER.")
    try:
        _class(scheme)
    except ImportError as error:
        package = SCHEMES[scheme] or "fsspec"
        raise UsageError(
            f"{scheme}:// is read with {package} ({brief(str(error))}): pip install {package}."
        ) from None
    return f"{scheme}://{posixpath.normpath(place).removeprefix('//')}"


def is_folder(address: str) -> bool:
    """Whether the address is a folder, not an object. Raises OSError if nothing is there."""
    with _faults():
        fs, path = _opened(address)
        return fs.info(path)["type"] == "directory"


def entries(address: str) -> list[Entry]:
    """The entries of a folder but hidden ones, in no order. Raises OSError."""
    with _faults():
        fs, path = _opened(address)
        found = []
        for info in fs.ls(path, detail=True, refresh=True):
            # A store may keep an empty object for the folder itself.
            name = posixpath.basename(info["name"].rstrip("/"))
            itself = info["name"].strip("/") == path.strip("/")
            if name and not itself and name[0] != ".":
                found.append(Entry(name, f"{address}/{name}", info["type"] == "directory"))
        return found


def size(address: str) -> int:
    """The bytes of an object. Raises OSError, of a folder too."""
    with _faults():
        fs, path = _opened(address)
        info = fs.info(path)
        if info["type"] == "directory":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return int(info["size"] or 0)


def read(address: str, start: int = 0, end: int | None = None) -> bytes:
    """The bytes of an object, or those from `start` up to `end`. Raises OSError."""
    with _faults():
        fs, path = _opened(address)
        return bytes(fs.cat_file(path, start=start or None, end=end))


def fetch(address: str, file: Path) -> None:
    """Copies an object into a file. Raises OSError."""
    with _faults():
        fs, path = _opened(address)
        fs.get_file(path, str(file))


def put(file: Path, address: str) -> None:
    """Copies a file to a store, where it is there whole or not at all. Raises OSError."""
    with _faults():
        fs, path = _opened(address)
        fs.makedirs(posixpath.dirname(path), exist_ok=True)
        # A file system has no upload that ends at once: the name is given at the end.
        if address.startswith("file://"):
            fs.put_file(str(file), f"{path}.part")
            os.replace(f"{path}.part", path)
        else:
            fs.put_file(str(file), path)


def remove(address: str) -> None:
    """Removes an object, if it is there. Raises OSError."""
    with _faults():
        fs, path = _opened(address)
        if fs.exists(path):
            fs.rm_file(path)


def _class(scheme: str) -> Any:
    import fsspec

    return fsspec.get_filesystem_class(scheme)


def _opened(address: str) -> tuple[Any, str]:
    import fsspec

    scheme = address.partition("://")[0]
    # What others write to the store is seen at once.
    options = {"use_listings_cache": False} if SCHEMES[scheme] else {}
    fs = fsspec.filesystem(scheme, **options)
    return fs, fs._strip_protocol(address)


@contextmanager
def _faults() -> Iterator[None]:
    """Makes an OSError with a number of whatever a library raises."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
    except PermissionError:
        raise PermissionError(errno.EACCES, "the store refuses access") from None
    except MemoryError:
        raise
    except OSError as error:
        if error.errno and error.strerror and not isinstance(error, TimeoutError):
            raise
        raise OSError(errno.EIO, f"{type(error).__name__} of the store") from None
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__} of the store") from None


def shown_address(address: str) -> str:
    """An address for messages, without a key that somebody wrote into it."""
    scheme, _, place = address.partition("://")
    key, at, rest = place.partition("@")
    return shown_name(f"{scheme}://{rest}" if at and "/" not in key else address)
