"""trimtok env: a bug report gets the facts, whatever is broken or missing on the machine."""

import importlib.metadata
import json
import sys

import torch
from typer.testing import CliRunner

from trimtok_cli import __version__
from trimtok_cli.cli import app
from trimtok_cli.commands import env


def said(*args: str) -> str:
    done = CliRunner().invoke(app, ["env", *args])
    assert done.exit_code == 0 and done.stderr == "", done.stderr
    return done.stdout


def test_the_report_names_versions_devices_cache_and_settings(monkeypatch):
    monkeypatch.setenv("TRIMTOK_KEEP", "64")
    monkeypatch.setenv("HF_TOKEN", "secret")
    found, text = json.loads(said("--json")), said()
    assert found["trimtok"] == __version__
    for name in ("torch", "transformers", "tokenizers", "pillow", "av", "typer", "rich"):
        assert found["packages"][name] == importlib.metadata.version(name)
        assert f"{name} " in text and found["packages"][name] in text
    assert found["cuda_build"] == torch.version.cuda
    assert len(found["devices"]) == torch.cuda.device_count() + torch.backends.mps.is_available()
    assert found["cpus"]["usable"] >= 1 and found["threads"] == torch.get_num_threads()
    assert found["memory_bytes"] > 2**20 and found["hub_cache"]["free_bytes"] > 0
    assert found["variables"] == {"TRIMTOK_KEEP": "64"}
    assert text.splitlines()[-1].split() == ["TRIMTOK_KEEP", "64"] and "secret" not in text


def test_a_package_that_is_missing_and_a_torch_that_does_not_load_are_facts(monkeypatch):
    monkeypatch.setattr(env, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setitem(sys.modules, "torch", None)
    found, text = json.loads(said("--json")), said()
    assert found["packages"]["no-such-package"] is None
    assert found["torch_error"].startswith("ModuleNotFoundError: ") and found["devices"] == []
    assert "no-such-package  not installed" in text and "ModuleNotFoundError" in text


def test_an_odd_value_and_a_cache_that_is_not_there_are_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("TRIMTOK_PROMPT", "red\x1b[31m\nline \udcff")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "a" / "b"))
    assert json.loads(said("--json"))["hub_cache"]["free_bytes"] > 0
    last = said().splitlines()[-1]
    assert last.endswith(r"red\x1b[31m\x0aline \udcff") or last.endswith(
        r"red\x1b[31m\nline \udcff"
    )


def test_a_cuda_device_is_shown_with_its_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Some GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (3 * 2**30, 4 * 2**30))
    assert "cuda:0" in said() and "Some GPU, capability 9.0, 3.0 GiB of 4.0 GiB free" in said()
    (device,) = json.loads(said("--json"))["devices"][:1]
    assert (device["device"], device["memory_bytes"]) == ("cuda:0", 4 * 2**30)
