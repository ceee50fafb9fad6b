"""A model's name before anything is loaded, and a hub that answers, refuses, or is out of reach."""

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tests.commands.test_cli import run
from tests.test_walls import ROOT
from trimtok_cli.errors import ModelError, UsageError
from trimtok_cli.models.catalog import ALIASES, CHECKPOINTS, locate
from trimtok_cli.models.hub import fetch, wanted


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("llava-1.5-7c", "did you mean llava-1.5-7b"),
        ("qwen2.5vl-7b", "did you mean qwen2.5-vl-7b"),
        ("./gone", "no such folder"),
        ("/gone/away", "no such folder"),
        ("~nosuchuser/x", "no such folder"),
        ("", "no such folder"),
        (" ", "no such folder"),
        ("a/b/c", "no such folder"),
        ("a/b c", "no such folder"),
        ("-x/y", "no such folder"),
        ("x" * 5000, "no such folder"),
        ("a\0b", "no such folder"),
        ("../a", "no such folder"),
        ("https://huggingface.co/a/b", "no such folder"),
        ("a/" + "b" * 200, "no such"),
        ("model.gguf", "is a file: name the folder that holds it"),
    ],
)
def test_a_name_that_is_none_is_wrong_usage(name, says):
    Path("model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=says) as caught:
        locate(name)
    assert caught.value.exit_code == 2


def test_names_that_are_some(tmp_path, monkeypatch):
    assert (
        locate("llava-1.5-7b") == ALIASES["llava-1.5-7b"]
        and locate("owner/name.v1_2-x") == "owner/name.v1_2-x"
    )
    assert locate(str(tmp_path)) == tmp_path
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("owner/name") == Path("owner/name") and locate("~/owner") == tmp_path / "owner"
    assert len(ALIASES) == len(CHECKPOINTS), "no short name twice"


@pytest.mark.parametrize("command", ["caption", "vqa", "compare"])
def test_a_typing_error_is_said_before_torch_is_imported(command):
    Path("q.jsonl").write_text('{"text": "?", "image": "p.png"}')
    Path("p.png").write_bytes(b"x")
    code = (
        "import sys\nfrom trimtok_cli.cli import main\n"
        "try:\n    main()\nexcept SystemExit as error:\n    print(error.code, 'torch' in "
        "sys.modules, 'transformers' in sys.modules)"
    )
    source = "p.png" if command == "caption" else "q.jsonl"
    arguments = [command, source, "--model", "llava-1.5-7c", "-o", "out"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.stdout.split() == ["2", "False", "False"], done.stderr
    assert "did you mean llava-1.5-7b?" in done.stderr and not Path("out").exists()


@pytest.mark.parametrize(
    ("files", "code", "want"),
    [
        (
            [
                "config.json",
                "model.safetensors",
                "pytorch_model.bin",
                "README.md",
                "onnx/model.onnx",
                "onnx/config.json",
                "x.gguf",
            ],
            False,
            ["config.json", "model.safetensors"],
        ),
        (
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "consolidated.safetensors",
                "model.fp16.safetensors",
                "original/params.json",
            ],
            False,
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
            ],
        ),
        (
            [
                "pytorch_model.bin",
                "pytorch_model.bin.index.json",
                "training_args.bin",
                "optimizer.pt",
            ],
            False,
            ["pytorch_model.bin", "pytorch_model.bin.index.json"],
        ),
        (
            ["chat_template.jinja", "tokenizer.model", "merges.txt", "modeling_x.py", "lib/y.py"],
            False,
            ["chat_template.jinja", "merges.txt", "tokenizer.model"],
        ),
        (
            ["modeling_x.py", "lib/y.py", "config.json"],
            True,
            ["config.json", "lib/y.py", "modeling_x.py"],
        ),
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            False,
            ["adapter_config.json", "adapter_model.safetensors"],
        ),
        ([], False, []),
    ],
)
def test_of_a_repository_only_what_is_loaded_is_downloaded(files, code, want):
    assert sorted(wanted(files, code=code)) == want


class Hub(BaseHTTPRequestHandler):
    """A hub with one repository, `owner/model`, of `files`; all else is answered with `status`."""

    files: ClassVar[dict[str, bytes]] = {}
    status, code = 200, ""
    asked: ClassVar[list[str]] = []
    sha = "0123456789abcdef0123456789abcdef01234567"

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.status != 200:
            return self._send(
                self.status, b"{}", **({"X-Error-Code": self.code} if self.code else {})
            )
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/owner/model/tree/"):
            tree = [
                {"type": "file", "path": n, "size": len(b), "oid": f"{i:040x}"}
                for i, (n, b) in enumerate(self.files.items())
            ]
            return self._send(
                200, json.dumps(tree).encode(), **{"Content-Type": "application/json"}
            )
        if path.startswith("/api/models/owner/model"):
            files = [{"rfilename": name} for name in self.files]
            found = {
                "_id": "1",
                "id": "owner/model",
                "modelId": "owner/model",
                "sha": self.sha,
                "siblings": files,
                "private": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
            return self._send(
                200, json.dumps(found).encode(), **{"Content-Type": "application/json"}
            )
        name = path.partition(f"/resolve/{self.sha}/")[2]
        number = list(self.files).index(name)
        return self._send(
            200,
            self.files[name],
            ETag=f'"{number:040x}"',
            **{"X-Repo-Commit": self.sha, "Accept-Ranges": "bytes"},
        )

    do_HEAD = do_GET

    def log_message(self, *_) -> None:
        pass


FETCH = """
import sys, time
from trimtok_cli.errors import TrimtokError
from trimtok_cli.models.hub import fetch
begin = time.monotonic()
try:
    print(fetch("owner/model", "--model owner/model", revision=sys.argv[1] or None))
except TrimtokError as error:
    print(f"{type(error).__name__}: {error}")
print(time.monotonic() - begin)
"""


@pytest.fixture
def hub(tmp_path, llava_folder):
    """(server, ask): `ask(address)` fetches in a process of its own; the cache lasts for the test."""
    handler = type(
        "Ours",
        (Hub,),
        {"asked": [], "files": {p.name: p.read_bytes() for p in llava_folder.iterdir()}},
    )
    handler.files["onnx/model.onnx"] = b"x" * 99
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"

    def ask(address: str = here, revision: str = "", offline: str = "0") -> tuple[str, float, str]:
        environment = {
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "cache"),
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": offline,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_VERBOSITY": "error",
            "HF_HUB_DISABLE_XET": "1",
            "PATH": "",
        }
        done = subprocess.run(
            [sys.executable, "-c", FETCH, revision],
            capture_output=True,
            text=True,
            env=environment,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        said, seconds = done.stdout.strip().rsplit("\n", 1)
        return said, float(seconds), done.stderr

    yield handler, ask
    server.shutdown()
    server.server_close()


def test_a_checkpoint_of_the_hub_becomes_a_folder_and_stays_one_without_the_hub(hub, llava_folder):
    handler, ask = hub
    said, _, noise = ask()
    folder = Path(said)
    assert folder.name == handler.sha and not noise.strip()
    want = {path.name for path in llava_folder.iterdir() if path.suffix != ".md"}
    assert {path.name for path in folder.iterdir()} == want, "and nothing of onnx/"
    assert all((folder / name).read_bytes() == (llava_folder / name).read_bytes() for name in want)
    for options in ({"address": "http://127.0.0.1:9"}, {"offline": "1"}):
        found, seconds, noise = ask(**options)
        assert found == said and seconds < 8 and not noise.strip()
    handler.status = 503
    assert ask()[0] == said, "a hub that is ill is no reason to stop"


@pytest.mark.parametrize(
    ("status", "code", "revision", "says"),
    [
        (401, "", "", "the hub has no owner/model, or keeps it private; check the name, or log in"),
        (404, "RepoNotFound", "", "the hub has no owner/model"),
        (403, "GatedRepo", "", "is gated; ask for access on its page"),
        (404, "RevisionNotFound", "v9", "has no revision v9; check --revision"),
        (503, "", "", "the hub answered 503; check the network"),
    ],
)
def test_a_hub_that_refuses_is_one_sentence(hub, status, code, revision, says):
    handler, ask = hub
    handler.status, handler.code = status, code
    said, seconds, noise = ask(revision=revision)
    assert (
        said.startswith("ModelError: --model owner/model cannot be loaded: ")
        and says in said
        and "\n" not in said
    )
    assert seconds < 8 and not noise.strip()


def test_no_hub_is_one_sentence_and_quick(hub):
    _, ask = hub
    said, seconds, noise = ask(address="http://127.0.0.1:9")
    assert (
        "is not wholly in the cache, and the hub cannot be reached; check the network, or "
        "name a local folder." in said
    )
    assert seconds < 8 and not noise.strip()
    said, seconds, _ = ask(offline="1")
    assert "HF_HUB_OFFLINE forbids to look on the hub" in said and seconds < 5


def test_the_command_says_one_sentence_offline(pictures):
    begin = time.monotonic()
    done = run("caption", pictures[0], "-m", "owner/gone", "-o", "o.jsonl", code=1)
    assert done.stderr.count("\n") <= 2 and "owner/gone is not in the cache" in done.stderr.replace(
        "\n", " "
    )
    assert time.monotonic() - begin < 20


def test_a_full_cache_is_named(monkeypatch, tmp_path):
    import huggingface_hub

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda *_, **__: type("Info", (), {"siblings": []})()
    )
    with pytest.raises(ModelError, match="No space left on device"):
        fetch("owner/gone", "--model owner/gone")


def test_a_checkpoint_is_found_and_looked_at_without_torch():
    code = (
        "import sys, trimtok_cli.models.catalog, trimtok_cli.models.hub, "
        "trimtok_cli.models.checkpoint; print({'torch', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "set()"
