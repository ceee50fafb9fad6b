"""Weights that load straight to the device, and memory that does not hold them."""

import json
import logging
import os
import platform
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from trimtok_cli import memory
from trimtok_cli.errors import ModelError
from trimtok_cli.models import family, loading
from trimtok_cli.models.checkpoint import read_settings
from trimtok_cli.models.folder import Folder
from trimtok_cli.models.loading import load_model
from trimtok_cli.models.weight_files import weight_bytes

CUDA = torch.device("cuda", 0)
GIB = 1 << 30


class Network(torch.nn.Module):
    """A model that says where it was moved."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.nn.Linear(4, 4)
        self.moved: list[torch.device] = []

    def to(self, device):
        self.moved.append(device)
        return self


@pytest.fixture
def loads(monkeypatch):
    """loads(accelerate=..., free=..., host=...) -> the model, and the options it was loaded with."""
    report = {"missing_keys": (), "unexpected_keys": (), "mismatched_keys": ()}

    def load(
        *, accelerate: bool, device=CUDA, free=80 * GIB, host=64 * GIB, quantized="", network=None
    ):
        network = network or Network()
        options = {}

        def from_pretrained(path, **given):
            options.update(given)
            return network, report

        monkeypatch.setattr(loading.AutoModelForImageTextToText, "from_pretrained", from_pretrained)
        monkeypatch.setattr(loading, "is_accelerate_available", lambda: accelerate)
        monkeypatch.setattr(loading, "free_bytes", lambda device: free)
        monkeypatch.setattr(loading, "host_bytes", lambda: host)

        class Config:
            num_hidden_layers = 4

            def get_text_config(self):
                return self

        found = loading._network(
            Folder("folder", "--model m"),
            Config(),
            dtype=torch.bfloat16,
            device=device,
            quantized=quantized,
            num_bytes=14 * GIB,
        )
        assert found is network and not found.training
        return found, options

    return load


def test_with_accelerate_weights_load_straight_to_the_device(loads):
    network, options = loads(accelerate=True, host=2 * GIB)
    assert options["device_map"] == {"": CUDA} and network.moved == []


def test_without_accelerate_they_go_through_the_host_and_a_hint_says_so(loads, caplog):
    with caplog.at_level(logging.INFO, "trimtok"):
        network, options = loads(accelerate=False)
    assert "device_map" not in options and network.moved == [CUDA]
    assert "pip install 'trimtok[gpu]'" in caplog.text


@pytest.mark.parametrize("accelerate", [True, False])
def test_on_a_cpu_there_is_nothing_to_place_and_nothing_to_hint(loads, caplog, accelerate):
    with caplog.at_level(logging.INFO, "trimtok"):
        _, options = loads(accelerate=accelerate, device=torch.device("cpu"))
    assert "device_map" not in options and not caplog.records


def test_quantized_weights_stay_where_they_were_laid_out(loads):
    network, options = loads(accelerate=True, quantized="bitsandbytes")
    assert options["device_map"] == {"": CUDA} and network.moved == []


def test_weights_that_were_never_filled_are_found_on_the_device_too(loads):
    network = Network()
    torch.nn.init.zeros_(network.matrix.weight)
    with pytest.raises(ModelError, match="nothing but zeros"):
        loads(accelerate=True, network=network)


@pytest.mark.parametrize(
    "options, said",
    [
        (
            {"accelerate": True, "free": 8 * GIB},
            "has 15.0 GB of weights, and cuda:0 has 8.6 GB free: use a smaller model or "
            "--device cpu.",
        ),
        (
            {"accelerate": False, "host": 8 * GIB},
            "and this machine has 8.6 GB of memory left: pip install 'trimtok[gpu]' loads them",
        ),
        (
            {"accelerate": True, "host": 8 * GIB, "device": torch.device("cpu")},
            "and this machine has 8.6 GB of memory left: use a smaller model or a machine",
        ),
    ],
)
def test_too_little_memory_is_said_before_anything_is_loaded(loads, options, said, monkeypatch):
    def unread(self, *_, **__):
        raise AssertionError("the weights were read")

    monkeypatch.setattr(Folder, "load", unread)
    with pytest.raises(ModelError) as caught:
        loads(**options)
    assert said in str(caught.value) and str(caught.value).startswith("--model m ")


def test_where_memory_is_unknown_the_weights_are_tried(loads):
    _, options = loads(accelerate=False, host=None)
    assert "device_map" not in options


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_memory_that_runs_out_on_the_way_is_one_sentence(loads, error):
    class Large(Network):
        def to(self, device):
            raise error

    with pytest.raises(ModelError, match="does not fit into the memory of cuda:0: use a smaller"):
        loads(accelerate=False, network=Large())

    def from_pretrained(*_, **__):
        raise error

    with pytest.raises(ModelError, match=r"not memory enough for its weights.* or --device cpu"):
        Folder("folder", "--model m").load("weights", from_pretrained)


def test_an_error_that_is_not_of_memory_stays_itself(loads):
    class Odd(Network):
        def to(self, device):
            raise RuntimeError("device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        loads(accelerate=False, network=Odd())


def test_bytes_of_weights_are_those_of_the_dtype_they_are_loaded_in(llava_folder, tmp_path):
    settings = read_settings(llava_folder)
    weights = load_file(llava_folder / "model.safetensors")
    count = sum(tensor.numel() for tensor in weights.values())
    assert weight_bytes(llava_folder, settings, 2) == 2 * count
    assert weight_bytes(llava_folder, settings, 4) == 4 * count
    halves = shutil.copytree(llava_folder, tmp_path / "halves")
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    (halves / "model.safetensors").unlink()
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, halves / file)
    files = {name: file for file, part in parts.items() for name in part}
    index = halves / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    assert weight_bytes(halves, read_settings(halves), 4) == 4 * count


def test_a_model_larger_than_the_machine_is_refused_by_its_name(llava_folder, monkeypatch):
    monkeypatch.setattr(loading, "host_bytes", lambda: 1000)
    with pytest.raises(ModelError, match=r"of weights, and this machine has 0\.0 GB"):
        load_model(str(llava_folder), device="cpu")


def test_memory_of_the_host_counts_what_is_left_of_a_containers_limits(monkeypatch, tmp_path):
    texts = {"/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 4000 kB\nSwapFree: 1000 kB\n"}

    class Files(type(tmp_path)):
        def read_text(self):
            if str(self) not in texts:
                raise FileNotFoundError
            return texts[str(self)]

    def group(folder: str, limit: object, used: int, files: int, old: bool = False) -> None:
        names = ("limit_in_bytes", "usage_in_bytes") if old else ("max", "current")
        for name, value in zip(names, (limit, used), strict=True):
            texts[f"/sys/fs/cgroup/{folder}memory.{name}"] = f"{value}\n"
        kinds = [("active_file", files - 1), ("inactive_file", 1), ("anon", 7)]
        stat = [f"{'total_' * old}{kind} {value}\n" for kind, value in kinds]
        texts[f"/sys/fs/cgroup/{folder}memory.stat"] = "".join(stat)

    monkeypatch.setattr(memory, "Path", Files)
    assert memory.host_bytes() == 5000 * 1024
    texts["/proc/self/cgroup"] = "0::/\n"
    assert memory.host_bytes() == 5000 * 1024
    group("", "max", 100, 50)
    assert memory.host_bytes() == 5000 * 1024
    group("", 2048000, 48000, 1000)
    assert memory.host_bytes() == 2048000 - 47000
    group("", 2048000, 3048000, 1000)
    assert memory.host_bytes() == 0
    group("", "max", 100, 50)
    texts["/proc/self/cgroup"] = "0::/a/b\n"
    group("a/", 1000, 500, 100)
    group("a/b/", 4000, 500, 100)
    assert memory.host_bytes() == 600
    texts["/proc/self/cgroup"] = "9:name=systemd:/\n4:cpu,memory:/docker/c\n0::/\n"
    group("memory/", 2**63 - 4096, 10**9, 100, old=True)
    assert memory.host_bytes() == 5000 * 1024
    group("memory/docker/c/", 3000, 1000, 200, old=True)
    assert memory.host_bytes() == 2200
    del texts["/proc/meminfo"]
    assert memory.host_bytes() is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_large_pieces_of_memory_lie_where_freed_ones_are_kept():
    script = """
import sys, torch
from trimtok_cli.memory import LARGEST_KEPT, keep_freed
if sys.argv[1] == "kept":
    keep_freed()
piece = torch.empty(LARGEST_KEPT - (1 << 20), dtype=torch.uint8)
heap = next(line for line in open("/proc/self/maps") if "[heap]" in line).split()[0]
start, end = (int(each, 16) for each in heap.split("-"))
print(start <= piece.data_ptr() < end)
"""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    said = [
        subprocess.check_output([sys.executable, "-c", script, way], env=own, text=True).strip()
        for way in ("kept", "usual")
    ]
    assert said == ["True", "False"]


def test_a_model_on_a_cpu_keeps_the_memory_that_it_frees(monkeypatch, adapter):
    calls = []
    monkeypatch.setattr(family, "keep_freed", lambda: calls.append(1))
    type(adapter)(adapter.model, adapter.processor, name="again", revision="")
    assert calls == [1]
