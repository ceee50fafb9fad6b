"""An output in an object store: written here in a folder of its own, and sent.

A store cannot append, so the journal is a local file, and whole files are sent now and then and at
the end. Another machine goes on from what was sent last; where both have answers that the other
lacks, the run is refused. A small object says which version is there: it is written last. Knows no
format.
"""

import hashlib
import json
import posixpath
import re
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trimtok_cli import stores
from trimtok_cli.blobs import Stored
from trimtok_cli.data import Result
from trimtok_cli.errors import TrimtokError, UsageError
from trimtok_cli.outputs.destination import OWN
from trimtok_cli.outputs.earlier import OVERWRITE
from trimtok_cli.outputs.lock import Busy, Lock
from trimtok_cli.outputs.whole_files import writing

EVERY = 300.0  # seconds between two times that files are sent, at least
VERSION = ".trimtok.json"  # the object that says which version is there
STATE = ".sent.json"  # the local file that says what was sent, or fetched


@dataclass
class State:
    """What is known of the store: the version, the next one while it is being sent, and files.

    files: the size and the time of each file as it was sent. fetching: files are being fetched, so
    those here are of no worth.
    """

    version: str = ""
    next: str = ""
    files: dict[str, list[int]] = field(default_factory=dict)
    fetching: bool = False


class Mirror:
    """A folder here, and one of a store that has its files. out: where the run writes.

    Raises UsageError for an address that is none.
    """

    def __init__(self, out: str, warn: Callable[[str], None]) -> None:
        address = stores.checked(out)
        is_file = not out.endswith("/") and address.lower().endswith((".jsonl", ".json"))
        self.address = posixpath.dirname(address) if is_file else address
        self.folder = local_folder(self.address)
        self.shown, self.warn = address, warn
        self.out = str(self.folder / posixpath.basename(address) if is_file else self.folder)
        self.state = State()
        self.due = time.monotonic() + EVERY

    def bring(self, existing: str) -> None:
        """Makes the folder here what the run goes on with. Raises UsageError and TrimtokError."""
        self.state, there = self._known(), self._there()
        sent = {self.state.version, self.state.next} - {""}
        own = bool(self.files()) and not self.state.fetching
        if existing == OVERWRITE:
            self.state.version = there.get("version", "")
        elif not there:
            if self.state.version and own:
                raise UsageError(
                    f"--out: {self.address} no longer has what was sent to it from {self.folder}: "
                    "remove that folder or give --overwrite to begin anew, or choose another --out."
                )
            if not self.state.next:  # else the first sending was cut short
                self._refuse_strangers()
        elif there["version"] not in sent:
            if own and self._unsent():
                raise UsageError(
                    f"--out: {self.address} was written by another run since, and {self.folder} "
                    "has answers that were not sent: remove one of the two, or choose another "
                    "--out."
                )
            self._fetch(there)
        else:
            self.state.version = there["version"]
        self.state.next = ""

    def refuse(self, sources: Iterable[Any]) -> None:
        """Raises UsageError if the run would send a file to where it reads one."""
        for source in sources:
            if isinstance(source, Stored) and posixpath.dirname(source.name) == self.address:
                name = posixpath.basename(source.name)
                if name in self.files() or name == posixpath.basename(self.shown):
                    raise UsageError(
                        f"--out: {self.shown} is an input of this run; choose another --out."
                    )

    def send(self) -> None:
        """Sends what has changed. Raises TrimtokError; all answers are here then."""
        files = self.files()
        if files == self.state.files:
            return
        try:
            there = self._there().get("version", "")
            if there != self.state.version:
                raise TrimtokError(
                    f"{self.address} was written by another run meanwhile, and nothing is sent: "
                    f"the answers are in {self.folder}."
                )
            self.state.next = uuid.uuid4().hex
            self._note()
            # run.json is the last: it says whether the run is over.
            for name in sorted(files, key=lambda name: (name.endswith("run.json"), name)):
                if files[name] != self.state.files.get(name):
                    stores.put(self.folder / name, f"{self.address}/{name}")
            for name in self.state.files.keys() - files.keys():
                stores.remove(f"{self.address}/{name}")
            self._put_version(self.state.next, list(files))
        except OSError as error:
            raise TrimtokError(
                f"{self.address} cannot be written ({error.strerror or error}): the answers are in "
                f"{self.folder}, and the same command sends them."
            ) from None
        self.state = State(self.state.next, files=files)
        self._note()

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Sends at the end of the block, however it ends."""
        try:
            yield
        except BaseException:
            try:
                self.send()
            except TrimtokError as error:
                self.warn(f"not sent: {error}")
            raise
        self.send()

    def following(self, results: Generator[Result]) -> Generator[Result]:
        """The results; between them, files are sent every few minutes."""
        with closing(results):
            for result in results:
                yield result
                if time.monotonic() >= self.due:
                    try:
                        self.send()
                    except TrimtokError as error:
                        self.warn(f"not sent as yet: {error}")
                    self.due = time.monotonic() + EVERY

    def files(self) -> dict[str, list[int]]:
        """The files of the run that are here, with their sizes and times."""
        found = {}
        for path in self.folder.glob("[!.]*"):
            if path.is_file() and path.suffix != ".lock":
                status = path.stat()
                found[path.name] = [status.st_size, status.st_mtime_ns]
        return found

    def _unsent(self) -> bool:
        return self.files() != self.state.files

    def _known(self) -> State:
        try:
            return State(**json.loads((self.folder / STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return State()

    def _note(self) -> None:
        with writing(self.folder / STATE) as file:
            file.write(json.dumps(asdict(self.state)).encode())

    def _there(self) -> dict[str, Any]:
        """What the store's small object says; empty if there is none. Raises TrimtokError."""
        address = f"{self.address}/{VERSION}"
        try:
            found = json.loads(stores.read(address))
            return {"version": str(found["version"]), "files": list(map(str, found["files"]))}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise TrimtokError(
                f"--out: {self.address} cannot be read ({error.strerror or error}); check the "
                "network and your credentials."
            ) from None
        except (ValueError, TypeError, KeyError):
            raise TrimtokError(f"--out: {address} is damaged: choose another --out.") from None

    def _put_version(self, version: str, files: list[str]) -> None:
        path = self.folder / VERSION
        with writing(path) as file:
            file.write(json.dumps({"version": version, "files": files}).encode())
        stores.put(path, f"{self.address}/{VERSION}")

    def _refuse_strangers(self) -> None:
        """Raises UsageError if files are there that no run of trimtok has sent."""
        try:
            there = {entry.name for entry in stores.entries(self.address)}
        except OSError:  # nothing is there; where it cannot be written, the first sending says so
            return
        if found := there & {"answers.jsonl", "run.json", posixpath.basename(self.shown)}:
            raise UsageError(
                f"--out: {self.address} has {' and '.join(sorted(found))} that no run has sent "
                "whole: begin the run again on the machine that sent it, choose another --out, or "
                "add --overwrite."
            )

    def _fetch(self, there: dict[str, Any]) -> None:
        self.state = State(fetching=True)
        self._note()
        for name in self.files():
            (self.folder / name).unlink()
        try:
            for name in there["files"]:
                if posixpath.basename(name) == name and not name.startswith("."):
                    stores.fetch(f"{self.address}/{name}", self.folder / name)
        except OSError as error:
            raise TrimtokError(
                f"--out: {self.address} cannot be read whole ({error.strerror or error}); run it "
                "again."
            ) from None
        self.state = State(there["version"], files=self.files())
        self._note()


@contextmanager
def mirrored(
    out: str | None, existing: str, warn: Callable[[str], None]
) -> Iterator[Mirror | None]:
    """The mirror of an --out that is the address of a store, else None.

    Raises UsageError if another run of this machine has it.
    """
    if out is None or not stores.is_stored(out):
        yield None
        return
    mirror = Mirror(out, warn)
    mirror.folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(mirror.folder / ".store.lock")
    try:
        lock.take()
    except Busy as error:
        raise UsageError(f"--out: {out} cannot be used: {error}; choose another --out.") from None
    try:
        mirror.bring(existing)
        yield mirror
    finally:
        lock.release()
        with suppress(OSError):  # something is in it
            mirror.folder.rmdir()


def local_folder(address: str) -> Path:
    """The folder here of what is sent to an address."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", address).strip("-")[-60:]
    return OWN / f"{words}-{hashlib.blake2b(address.encode(), digest_size=4).hexdigest()}"
