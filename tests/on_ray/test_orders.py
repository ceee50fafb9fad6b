"""What an actor's node has to have, and what actors ask for: no ray is needed to say so."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest

from trimtok_cli.child_process import Ended
from trimtok_cli.errors import TrimtokError, UsageError
from trimtok_cli.models.identity import identity
from trimtok_cli.on_ray.cluster import Actor, Asked, Cluster, check_address, parse_resources
from trimtok_cli.on_ray.host import Host, Order


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def order(model: Path, **other) -> Order:
    kept = {"needed": (str(model),), "models": {"--model": (str(model), identity(model))}}
    return Order("pass", str(model.parent), **(kept | other))


def test_a_node_that_has_all_is_used(model):
    order(model).check()
    assert Path.cwd() == model.parent


LACKS = {
    "the folder of the command": (
        {"folder": "/nowhere"},
        "/nowhere, where the command was started",
    ),
    "the pictures": ({"needed": ("/no/pictures",)}, "/no/pictures is not there: share the folder"),
    "the model": ({"models": {"--model": ("/no/model", "x")}}, "/no/model is not there"),
    "another trimtok": ({"version": "0.0.1"}, "is installed there and 0.0.1 here"),
}


@pytest.mark.parametrize("case", LACKS.values(), ids=LACKS.keys())
def test_a_node_that_lacks_something_says_what(case, model):
    other, says = case
    given = {"folder": str(model.parent)} | other
    folder = given.pop("folder")
    asked = Order(
        "pass",
        folder,
        **({"models": {"--model": (str(model), identity(model))}} | given),
    )
    with pytest.raises(TrimtokError, match=says):
        asked.check()
    name, refusal = Host(asked).begun()
    assert name and says.encode() in refusal


def test_a_model_of_other_files_under_the_same_path_is_refused(model):
    asked = order(model)
    (model / "config.json").write_text('{"other": 1}')
    with pytest.raises(TrimtokError, match=r"the files of --model in .* are others"):
        asked.check()


def test_resources_are_read_and_refused():
    assert parse_resources(["CPU=4", "memory=32e9", "accelerator_type:H100=0.001"]) == {
        "CPU": 4.0,
        "memory": 32e9,
        "accelerator_type:H100": 0.001,
    }
    for wrong in ("CPU", "CPU=", "=4", "CPU=0", "CPU=-1", "CPU=nan", "CPU=inf", "GPU=1.5"):
        with pytest.raises(UsageError, match=r"--ray-resources .*NAME=AMOUNT"):
            parse_resources([wrong])


def test_actors_ask_for_a_gpu_alone_so_that_no_cpu_is_lacking():
    assert Asked.by("cuda", None).options() == {"num_cpus": 0, "num_gpus": 1.0, "resources": {}}
    more = Asked.by("cuda", ["CPU=8", "accelerator_type:A100=0.001"])
    assert more.options() == {
        "num_cpus": 8.0,
        "num_gpus": 1.0,
        "resources": {"accelerator_type:A100": 0.001},
    }
    assert str(more) == "1 GPU and 8 CPU and 0.001 accelerator_type:A100"


class Nodes:
    """A ray that has these nodes."""

    def __init__(self, *nodes: dict[str, float]) -> None:
        self.each = nodes

    def nodes(self) -> list[dict]:
        return [{"Alive": True, "Resources": each} for each in self.each] + [
            {"Alive": False, "Resources": {"GPU": 8.0}}
        ]


def test_one_actor_a_gpu_of_the_nodes_that_are_there():
    asked = Asked.by("cuda", None)
    cluster = Cluster(Nodes({"CPU": 64.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 96.0}))
    assert cluster.count(None, asked) == 6 and cluster.count(2, asked) == 2
    assert cluster.workers(asked) == 3  # of the four cores that a GPU of the small node has
    assert cluster.count(None, Asked.by("cuda", ["GPU=0.5"])) == 12
    assert cluster.count(None, Asked.by("cuda", ["CPU=16"])) == 4
    with pytest.raises(UsageError, match="no node of the cluster has 1 GPU"):
        Cluster(Nodes({"CPU": 8.0})).count(None, asked)


class RayError(Exception):
    """As ray's own of this name."""


class RayActorError(RayError):
    pass


class OutOfMemoryError(RayError):
    pass


class NodeDiedError(RayError):
    pass


class Broken:
    """A ray of which every call about an actor ends in an error."""

    exceptions = SimpleNamespace(
        RayError=RayError,
        RayActorError=RayActorError,
        OutOfMemoryError=OutOfMemoryError,
        NodeDiedError=NodeDiedError,
        WorkerCrashedError=RayActorError,
    )

    def __init__(self, error: Exception) -> None:
        self.error = error

    def remote(self, **options):
        call = SimpleNamespace(remote=lambda *_: None)
        return lambda kind: SimpleNamespace(remote=lambda order: SimpleNamespace(begun=call))

    def wait(self, references, timeout):
        return references, []

    def get(self, reference):
        raise self.error

    def kill(self, actor) -> None:
        pass


DEATHS = {
    "its node is gone": NodeDiedError("no heartbeat"),
    "its actor is gone": RayActorError("its worker process has died"),
    "Ray ended it, as the node's memory ran out": OutOfMemoryError("a worker was killed"),
}


@pytest.mark.parametrize("how", DEATHS)
def test_a_death_is_told_apart_from_an_actor_that_cannot_begin(how, model):
    asked = Asked.by("cpu", None)
    actor = Actor(Cluster(Broken(DEATHS[how])), order(model), asked)
    with pytest.raises(Ended, match=how):
        actor.receive()
    lacking = RayActorError(
        "died because of an error raised in its creation task\nModuleNotFoundError: No module "
        "named 'trimtok_cli'\n"
    )
    actor = Actor(Cluster(Broken(lacking)), order(model), asked)
    said = pickle.loads(actor.receive())
    assert "cannot start a process (ModuleNotFoundError: No module named" in said.text
    assert said.text.endswith("install trimtok on every node.")
    with pytest.raises(Ended, match="Ray could not start it"):
        actor.receive()


def test_ray_client_is_refused():
    with pytest.raises(UsageError, match="Ray Client is not used"):
        check_address("ray://head:10001")
