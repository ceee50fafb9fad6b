"""Which GPU each replica sees, whatever the environment says of them already."""

import pytest
import torch

from trimtok_cli.commands import replica
from trimtok_cli.errors import ModelError, TrimtokError, UsageError
from trimtok_cli.replicas.messages import Refusal
from trimtok_cli.replicas.places import cpu_places, gpu_places, parse_gpus

UUID, MIG = "GPU-8f2a1c3e-0000-1111-2222-333344445555", "MIG-GPU-8f2a/7/0"

# What --gpus says, what CUDA_VISIBLE_DEVICES says, and the GPU that each replica is left with.
SEEN = {
    "numbers": ("0,2", None, ["0", "2"]),
    "with spaces": ("0, 2", None, ["0", "2"]),
    "numbers of those that are visible": ("1,0", "4,6", ["6", "4"]),
    "UUIDs": (f"{UUID},{MIG}", None, [UUID, MIG]),
    "a UUID whatever is visible": (UUID, "4,6", [UUID]),
    "all of this machine": ("all", None, ["0", "1", "2"]),
    "all that are visible": ("all", f"6,{MIG}", ["6", MIG]),
    "all up to the first that is none": ("all", "6,-1,7", ["6"]),
}


@pytest.mark.parametrize("case", SEEN.values(), ids=SEEN.keys())
def test_each_replica_sees_one_gpu(case, monkeypatch):
    text, visible, expected = case
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    places = gpu_places(text)
    assert [place.environment for place in places] == [
        {"CUDA_VISIBLE_DEVICES": name} for name in expected
    ]
    assert len({place.name for place in places}) == len(expected)
    assert {place.device for place in places} == {"cuda"}


WRONG = ("", ",", "0,", "cuda:0", "-1", "0-3", "GPU", "GPU-", "٣", "0,0", "all,0", "1" * 50)


@pytest.mark.parametrize("text", WRONG)
def test_what_names_no_gpu_is_refused(text):
    with pytest.raises(UsageError, match="--gpus"):
        parse_gpus(text)


@pytest.mark.parametrize("visible", ["", "-1", "2"])
def test_a_gpu_that_is_hidden_is_refused(visible, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES leaves"):
        gpu_places("1")


def test_a_machine_without_a_gpu_says_so(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match="there is no GPU here"):
        gpu_places("all")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="torch finds no GPU in this process"):
        replica.check_gpu("cuda")
    assert replica.check_gpu("cpu") is None


def test_processes_on_a_cpu_share_its_cores_unless_the_user_does(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("trimtok_cli.replicas.places.num_cores", lambda: 7)
    assert [place.environment["OMP_NUM_THREADS"] for place in cpu_places(2)] == ["3", "3"]
    assert cpu_places(9)[8].environment["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert "OMP_NUM_THREADS" not in cpu_places(2)[0].environment


def test_a_device_that_fails_at_everything_does_not_answer(monkeypatch):
    assert replica.device_answers("cpu")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert replica.device_answers("cuda")

    def fail() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    assert not replica.device_answers("cuda")


def test_the_parent_raises_the_error_that_a_run_alone_would_end_in():
    for error in (ModelError("a"), UsageError("b"), TrimtokError("c")):
        raised = Refusal.of(error).error()
        assert type(raised) is type(error) and str(raised) == str(error)
    raised = Refusal.of(KeyError("d")).error()
    assert type(raised) is TrimtokError and str(raised) == "KeyError: 'd'"
