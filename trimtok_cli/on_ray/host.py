"""What runs in an actor of Ray: starts a replica's process on its node, and passes messages on.

The replica has a process of its own, as on one machine: its main thread keeps the limits on time,
its death is known by its signal, and it ends with the actor. Imports no ray, and knows no model.
"""

import os
import platform
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

from trimtok_cli import __version__
from trimtok_cli.child_process import Child, Ended
from trimtok_cli.errors import TrimtokError
from trimtok_cli.models.identity import identity
from trimtok_cli.replicas.messages import Refusal, packed

SENDING = 300  # seconds that the process may take to read a message

SHARE = "share the folder among the nodes, under the same path"


@dataclass(frozen=True)
class Order:
    """What an actor is to start, and what its node has to have.

    code: the Python of the process. folder: the one in which the command was started. needed: paths
    that the run reads. models: the folder of each model, by its option, and their identities.
    """

    code: str
    folder: str
    version: str = __version__
    environment: Mapping[str, str] = field(default_factory=dict)
    needed: tuple[str, ...] = ()
    models: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def check(self) -> None:
        """Goes to the folder. Raises TrimtokError for what this node lacks."""
        if self.version != __version__:
            raise TrimtokError(
                f"trimtok {__version__} is installed there and {self.version} here: install the "
                "same on all nodes."
            )
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise TrimtokError(
                f"{self.folder}, where the command was started, is not there ({error.strerror}): "
                "start it in a folder that every node has, such as /tmp."
            ) from None
        for path in (*self.needed, *(path for path, _ in self.models.values())):
            if not os.path.exists(path):
                raise TrimtokError(f"{path} is not there: {SHARE}.")
        for option, (path, wanted) in self.models.items():
            if identity(Path(path)) != wanted:
                raise TrimtokError(f"the files of {option} in {path} are others: {SHARE}.")


class Host:
    """The actor. refusal: what was wrong, as the message of a replica that cannot start."""

    def __init__(self, order: Order) -> None:
        self.refusal = b""
        self.messages: SimpleQueue[bytes | Ended] = SimpleQueue()
        try:
            order.check()
            self.child = Child(order.code, os.environ | dict(order.environment))
        except (TrimtokError, OSError) as error:
            self.refusal = packed(Refusal.of(error))
            return
        threading.Thread(target=self._listen, daemon=True).start()

    def begun(self) -> tuple[str, bytes]:
        """The node's name, and the refusal."""
        return platform.node(), self.refusal

    def send(self, message: bytes) -> None:
        """Passes a message on to the process; one that takes none is ended."""
        try:
            self.child.send(message, SENDING)
        except OSError:
            self.child.kill()

    def heard(self) -> tuple[list[bytes], str]:
        """The messages of the process, at least one; and how it ended, once it has."""
        heard: list[bytes] = []
        message: bytes | Ended = self.messages.get()
        try:
            while not isinstance(message, Ended):
                heard.append(message)
                message = self.messages.get_nowait()
        except Empty:
            return heard, ""
        return heard, message.how

    def _listen(self) -> None:
        while True:
            try:
                self.messages.put(bytes(self.child.receive()))
            except Ended as ended:
                self.messages.put(ended)
                return
