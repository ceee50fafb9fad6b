"""A Ray cluster, seen by the command: joined or started, counted, and asked for actors.

The actors are plain ones, dealt to by replicas/: Ray Data waits for the end of each batch, tries an
input that ends its process for ever, and where that is bounded leaves rows out without a word.
Imports ray where it is needed. Knows no model.
"""

import logging
import math
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from trimtok_cli import interrupts
from trimtok_cli.child_process import Ended
from trimtok_cli.errors import TrimtokError, UsageError
from trimtok_cli.on_ray.host import Host, Order
from trimtok_cli.replicas.messages import Refusal, Waiting, packed
from trimtok_cli.replicas.places import VISIBLE, Place
from trimtok_cli.wording import brief

LOCAL = "local"  # Ray's word for a cluster of this machine, which ends with the command
PATIENCE = 30.0  # seconds until the user is told that actors wait for a place
AGAIN = 600.0  # seconds until that is told once more
OBJECTS = 128 << 20  # bytes for objects of a cluster that is started here: messages are small


class Gone(Ended):
    """An actor that is there no more."""

    def __init__(self, how: str) -> None:
        Exception.__init__(self, how)
        self.how, self.overdue = how, False


@dataclass(frozen=True)
class Asked:
    """What each actor asks for, by Ray's names of resources: CPU, GPU, memory, or others."""

    amounts: Mapping[str, float]

    @classmethod
    def by(cls, device: str, pairs: Iterable[str] | None) -> "Asked":
        """A GPU or a CPU, and what --ray-resources says. Raises UsageError."""
        return cls({"CPU" if device == "cpu" else "GPU": 1.0} | parse_resources(pairs))

    def __str__(self) -> str:
        return " and ".join(f"{amount:g} {name}" for name, amount in self.amounts.items())

    def options(self) -> dict[str, Any]:
        """The same as the options of an actor."""
        own = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
        options: dict[str, Any] = {"num_cpus": 0, "resources": {}}
        for name, amount in self.amounts.items():
            if name in own:
                options[own[name]] = amount
            else:
                options["resources"][name] = amount
        return options

    def room(self, there: Mapping[str, float]) -> int:
        """How many such actors a node with these resources could hold."""
        return min(int(there.get(name, 0) / amount + 1e-6) for name, amount in self.amounts.items())


@dataclass
class Cluster:
    """A cluster that this process is connected to."""

    ray: Any
    waiting: set[int] = field(default_factory=set)
    told: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def nodes(self) -> list[dict[str, float]]:
        """The resources of each node that is there."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def count(self, number: int | None, asked: Asked) -> int:
        """How many actors the run has: `number`, or as many as there is room for.

        Raises UsageError if there is room for none.
        """
        room = sum(map(asked.room, self.nodes))
        if number is None and room == 0:
            raise UsageError(
                f"--engine ray: no node of the cluster has {asked}; --device cpu --processes N "
                "runs without a GPU, --ray-resources says what each process asks for."
            )
        return room if number is None else number

    def workers(self, asked: Asked) -> int:
        """The worker processes of each actor: the cores of the fullest node, shared out."""
        rooms = [(node.get("CPU", 0), asked.room(node)) for node in self.nodes]
        shares = [int(cores / room) for cores, room in rooms if room]
        return max(0, min(8, min(shares, default=1) - 1))

    def begin(self, order: Order, asked: Asked, place: Place, more: Mapping[str, str]) -> "Actor":
        """Starts an actor with a replica's process."""
        environment = {**order.environment, **more, **place.environment}
        return Actor(self, replace(order, environment=environment), asked)

    def wait_told(self, actor: "Actor") -> Waiting:
        """The message of an actor that has no place as yet. One of them speaks for all."""
        with self.lock:
            self.waiting.add(id(actor))
            if time.monotonic() - self.told < AGAIN and self.told:
                return Waiting()
            self.told = time.monotonic()
            number = len(self.waiting)
        free = self.ray.available_resources()
        there = self.ray.cluster_resources()
        state = ", ".join(
            f"{free.get(name, 0):g} of {there.get(name, 0):g} {name} free"
            for name in actor.asked.amounts
        )
        return Waiting(
            f"Ray has no place yet for {'a process' if number == 1 else f'{number} processes'}, "
            f"each asks for {actor.asked} ({state}); the run goes on with those that have one, and "
            "with each that gets one"
        )

    def placed(self, actor: "Actor") -> None:
        with self.lock:
            self.waiting.discard(id(actor))


class Actor:
    """An actor, and the way to the process in it: a `replicas.group.Link`."""

    def __init__(self, cluster: Cluster, order: Order, asked: Asked) -> None:
        self.cluster, self.asked, self.where = cluster, asked, ""
        self.messages: deque[bytes] = deque()
        self.ended = ""
        options = asked.options()
        kind = cluster.ray.remote(max_concurrency=4, max_restarts=0, max_task_retries=0, **options)
        self.actor = kind(Host).remote(order)
        self.begun = self.actor.begun.remote()

    def send(self, message: bytes, seconds: float) -> None:
        """Hands a message over; `receive` tells if the actor is dead."""
        with suppress(self.cluster.ray.exceptions.RayError):
            self.actor.send.remote(message)

    def receive(self) -> bytes:
        """The next message of the process, or about it. Raises Ended."""
        get, errors = self.cluster.ray.get, self.cluster.ray.exceptions
        try:
            if not self.where:
                if not self.cluster.ray.wait([self.begun], timeout=PATIENCE)[0]:
                    return packed(self.cluster.wait_told(self))
                self.cluster.placed(self)
                self.where, refusal = get(self.begun)
                if refusal:
                    return bytes(refusal)
            while not self.messages:
                if self.ended:
                    self.kill()
                    raise Gone(self.ended)
                heard, self.ended = get(self.actor.heard.remote())
                self.messages.extend(heard)
            return self.messages.popleft()
        except (errors.RayError, RuntimeError) as error:
            self.cluster.placed(self)
            deaths = (
                errors.RayActorError,
                errors.OutOfMemoryError,
                errors.NodeDiedError,
                errors.WorkerCrashedError,
            )
            began = isinstance(error, deaths) and "creation task" not in str(error)
            if began or self.where or self.ended:
                raise Gone(self.ended or _how(error)) from None
            self.ended = "Ray could not start it"
            return packed(Refusal("TrimtokError", _refused(error)))

    def kill(self) -> None:
        """Ends the actor, and its process with it."""
        with suppress(Exception):  # it is dead, or the cluster is
            self.cluster.ray.kill(self.actor)


def _how(error: Exception) -> str:
    """What Ray says of an actor's end, in few words."""
    text = str(error).lower()
    if type(error).__name__ == "OutOfMemoryError" or "due to memory pressure" in text:
        return "Ray ended it, as the node's memory ran out"
    lost = type(error).__name__ == "NodeDiedError" or "its node has died" in text
    return "its node is gone" if lost else "its actor is gone"


def _refused(error: Exception) -> str:
    """Why an actor could not begin: a node without trimtok, mostly."""
    missing = "; install trimtok on every node" if "ModuleNotFoundError" in str(error) else ""
    return f"Ray cannot start a process ({_line(error)}){missing}."


def _line(error: Exception) -> str:
    """The last line of an error, which names what is missing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return brief(lines[-1] if lines else type(error).__name__, 200)


def parse_resources(pairs: Iterable[str] | None) -> dict[str, float]:
    """`["CPU=4", "memory=32e9"]` -> the amount of each. Raises UsageError."""
    found = {}
    for pair in pairs or ():
        name, _, value = pair.partition("=")
        try:
            amount = float(value)
        except ValueError:
            amount = 0.0
        whole = name != "GPU" or amount < 1 or amount.is_integer()
        if not (name.strip() and 0 < amount < math.inf and whole):
            raise UsageError(
                f"--ray-resources {brief(pair)}: write it as NAME=AMOUNT, such as CPU=4, with an "
                "amount above 0, and GPUs whole or a share of one."
            )
        found[name.strip()] = amount
    return found


def check_address(address: str) -> None:
    """Raises UsageError for an address that no run can use."""
    if address.startswith("ray://"):
        raise UsageError(
            f"--ray-address {brief(address)}: Ray Client is not used; start the command on a node "
            "of the cluster, with --ray-address auto."
        )


@contextmanager
def connected(address: str | None) -> Iterator[Cluster]:
    """A cluster: at `address`, else at RAY_ADDRESS, else one of this machine for the run alone.

    Raises UsageError where ray is missing, and TrimtokError where no cluster answers.
    """
    # Nothing of a run is told to others.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS") or LOCAL
    check_address(address)
    handlers = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    try:
        ray = _imported()
        own: dict[str, Any] = {}
        if address == LOCAL:
            own = {"include_dashboard": False, "object_store_memory": OBJECTS}
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except Exception as error:
            raise TrimtokError(
                f"--ray-address {brief(address)}: no Ray cluster answers ({_line(error)}); start "
                "one with `ray start --head`, or leave the address out for one of this machine."
            ) from None
    finally:
        for number, handler in handlers.items():  # ray puts its own in their place
            signal.signal(number, handler)
    try:
        yield Cluster(ray)
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError where nothing listens at HOST:PORT: ray itself would wait for many minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=30).close()


def _imported() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UsageError(
            f"--engine ray needs ray ({error}): pip install 'trimtok[ray]', on every node."
        ) from None
    return ray


def places(number: int, device: str) -> list[Place]:
    """A place for each actor; Ray says which GPU each sees."""
    hidden = {VISIBLE: ""} if device == "cpu" else {}
    return [Place(f"actor {each}", device, hidden) for each in range(1, number + 1)]
