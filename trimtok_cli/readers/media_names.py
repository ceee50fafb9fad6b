"""The name of a picture, as a row has it -> where the picture is: a path, a blob or an address.

No name leads out of the root, or to the network, unless that is allowed. Opens no picture.
"""

import base64
import binascii
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from trimtok_cli.blobs import Address, Blob, Held, Medium, Stored
from trimtok_cli.errors import UsageError
from trimtok_cli.readers.columns import Problem
from trimtok_cli.stores import checked, is_stored, shown_address
from trimtok_cli.wording import shown_name

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)

_WINDOWS = re.compile(r"[a-z]:[\\/]|\\\\", re.IGNORECASE)

# The hub's cache: a snapshot is a folder of links to the blobs beside it.
_SNAPSHOT = re.compile(r"(.+)/snapshots/[^/]+(/|$)")

# Folders whose real paths are remembered.
_MOST_FOLDERS = 10_000


@dataclass(frozen=True)
class MediaNames:
    """How the names of pictures are read.

    root: the folder that they start from; outside: they may lead out of it; urls: they may be
    addresses; store: the address of the folder that they start from, if it is in a store.
    """

    root: Path
    outside: bool = False
    urls: bool = False
    store: str = ""

    @cached_property
    def allowed(self) -> tuple[str, ...]:
        """The real paths of the folders that pictures may lie in."""
        real = os.path.realpath(self.root)
        snapshot = _SNAPSHOT.match(real)
        return (real, snapshot[1] + "/blobs") if snapshot else (real,)

    @cached_property
    def _real_folders(self) -> dict[str, str]:
        """Folder -> its real path, for folders met so far."""
        return {}

    def find(self, name: str | Blob) -> Medium:
        """The medium of that name. Problem for a name that nothing readable can have."""
        if isinstance(name, Blob):
            return name
        if name[:5].lower() == "data:":
            return held(name)
        of_file = name[:7].lower() == "file://"
        if not of_file and (self.store or is_stored(name)):
            return self._stored(name)
        if _ADDRESS.match(name):
            if not of_file:
                return address(name, self.urls)
            name = unquote(re.sub("^file://(localhost(?=/))?", "", name, flags=re.IGNORECASE))
        return self._file(name)

    def _stored(self, name: str) -> Blob:
        """The object of that name. Problem for one beyond the folder that names start from."""
        shown = shown_name(shown_address(name))
        if _ADDRESS.match(name) and not is_stored(name):
            return address(name, self.urls)
        try:
            place = checked(name if is_stored(name) else f"{self.store}/{name}")
        except UsageError as error:
            raise Problem(str(error).rstrip(".")) from None
        absolute = name[:1] == "/"  # leads out of any folder, as on a disk
        inside = bool(self.store) and place.startswith(self.store + "/") and not absolute
        if inside or (self.urls and not absolute):
            return Stored(place)
        if self.store:
            raise Problem(
                f"{shown} lies outside of {self.store}; name its folder with --image-root, or add "
                "--allow-urls"
            )
        raise Problem(
            f"{shown} is an address, and nothing is fetched unless --allow-urls says so; add it, "
            "or name its folder with --image-root"
        )

    def _file(self, name: str) -> Path:
        shown = shown_name(name)
        path = self.root / name
        try:
            os.fsencode(name)
            real = self._real_path(path)
        except ValueError:
            raise Problem(f"{shown!r} is no name that a file can have") from None
        if "\0" in name:
            raise Problem("a file's name holds a NUL character, which none can have")
        if os.sep == "/" and _WINDOWS.match(name) and not os.path.lexists(path):
            raise Problem(
                f"{shown} is a path of Windows, which leads nowhere here; name the file relative "
                "to --image-root"
            )
        if self.outside or self._is_inside(real):
            return path
        raise Problem(
            f"{shown} lies outside of {self.root}; name its folder with --image-root, or add "
            "--allow-outside"
        )

    def _is_inside(self, real: str) -> bool:
        return any(
            real == folder or real.startswith(folder.rstrip(os.sep) + os.sep)
            for folder in self.allowed
        )

    def _real_path(self, path: Path) -> str:
        """The path behind all links. Each folder is looked up once, as many rows share it."""
        folder, name = os.path.split(path)
        if len(self._real_folders) > _MOST_FOLDERS:
            self._real_folders.clear()
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        real = os.path.join(self._real_folders[folder], name)
        return os.path.realpath(real) if name in ("", ".", "..") or os.path.islink(real) else real


def address(name: str, allowed: bool) -> Address:
    """The picture at an address. Problem where none may be fetched, or not from there."""
    if not name.lower().startswith(("http://", "https://")):
        raise Problem(
            f"{shown_name(name)} is an address that is not fetched; download it and name the file"
        )
    if not allowed:
        raise Problem(
            f"{shown_name(name)} is an address, and nothing is fetched unless --allow-urls says "
            "so; add it, or download the picture and name the file"
        )
    return Address(name)


def held(uri: str) -> Held:
    """The picture in a data: URI. Problem where it cannot be taken out."""
    head, comma, data = uri.partition(",")
    if not comma:
        raise Problem("a data: URI has no comma, behind which its picture would stand")
    try:
        if head.lower().rstrip().endswith(";base64"):
            data = re.sub(r"\s+", "", unquote(data) if "%" in data else data)
            content = base64.b64decode(data + "=" * (-len(data) % 4), validate=True)
        else:
            content = unquote_to_bytes(data)
    except (binascii.Error, ValueError):
        raise Problem("the base64 text of a data: URI is damaged or cut short") from None
    if not content:
        raise Problem("a data: URI is empty")
    return Held(shown_name(uri), content)
