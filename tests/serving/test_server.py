"""`trimtok serve` itself: vLLM's own server with the demo model, asked by the openai client.

The answers are held against the engine's, id by id. Skipped where vLLM or the client is missing.
"""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import tomllib
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.support.generating import rules
from tests.test_walls import ROOT
from trimtok_cli import TrimTokenator
from trimtok_cli.data import Sample, Seconds
from trimtok_cli.engine import answer
from trimtok_cli.engine.loops import loop_for
from trimtok_cli.generation.types import run
from trimtok_cli.media.images import load_image
from trimtok_cli.models.loading import load_model
from trimtok_cli.prepare.sample import Prepared
from trimtok_cli.serving.command_line import GROUP, PLUGIN

pytest.importorskip("vllm")
openai = pytest.importorskip("openai")

MODEL = str(ROOT / "samples" / "demo" / "model")
IMAGES = ROOT / "samples" / "images"
SCENES = [IMAGES / f"scene-0{i}.png" for i in (1, 2, 3)]
LONGEST = 24

# One thread, and no core that is pinned: the machine may have others to serve.
QUIET = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}

# With vLLM's caches as they are by default, and without those that can be turned off. Nothing is
# compiled, which takes vLLM minutes on a CPU.
ARGUMENTS = "--enforce-eager --max-model-len 1024 --max-num-seqs 8"
SERVERS = {
    "caches": ["--keep", "64", "--vllm-args", ARGUMENTS],
    "no caches": [
        *("--keep", "11.1%", "--vllm-args"),
        f"{ARGUMENTS} --mm-processor-cache-gb 0 --no-enable-prefix-caching",
    ],
}


@dataclass(frozen=True)
class Asked:
    """A question, and the engine's answer: its ids without the end token, and the prompt's length."""

    images: tuple[Path, ...]
    words: str
    ids: list[int]
    prompt_tokens: int


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    """The sample's questions, and a prompt of two images, of none, and one without words."""
    adapter, pruner = load_model(MODEL, device="cpu", dtype="float32"), TrimTokenator(keep=64)
    lines = (ROOT / "samples" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    questions = [((ROOT / "samples" / row["image"],), row["text"]) for row in rows]
    questions += [(tuple(SCENES[:2]), "What is the same?"), ((), "What is it?"), ((SCENES[2],), "")]
    found = []
    for images, words in questions:
        inputs = adapter.prepare([load_image(path)[0] for path in images], words)
        prepared = [Prepared(Sample("a"), words, inputs, (), Seconds())]
        requests = answer.prune(adapter, pruner, answer.encode(adapter, prepared, signals=False))
        loop = loop_for(
            adapter,
            pruner,
            rules(adapter, max_new_tokens=LONGEST),
            decode="simple",
            retries=False,
        )
        (finished,) = run(loop, requests)
        ids = list(finished.answer.ids)
        found.append(Asked(images, words, ids, len(finished.request.prompt)))
    assert len(found) == 43
    return found


def installed(folder: Path) -> dict[str, str]:
    """PYTHONPATH by which vLLM finds the plug-in: a checkout's entry points, if none are there."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    if not entry_points(group=GROUP, name=PLUGIN):
        declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        entry = declared["project"]["entry-points"][GROUP][PLUGIN]
        facts = folder / "trimtok-0.dist-info"
        facts.mkdir(parents=True)
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: trimtok\nVersion: 0\n")
        (facts / "entry_points.txt").write_text(f"[{GROUP}]\n{PLUGIN} = {entry}\n")
        paths.insert(0, str(folder))
    return {"PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture(scope="module", params=SERVERS)
def client(request, tmp_path_factory):
    """A client of a running server, which Ctrl-C then ends."""
    folder = tmp_path_factory.mktemp("serving")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "trimtok_cli", "serve", MODEL, *SERVERS[request.param]]
    environment = {**os.environ, **QUIET, **installed(folder / "site")}
    log = folder / "log"
    with log.open("wb") as told:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=folder,
            env=environment,
            stdout=told,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while not healthy(port):
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        process.send_signal(signal.SIGINT)
        process.wait()
        assert process.returncode == 130
        assert log.read_text(errors="replace").rstrip().endswith("error: interrupted")
        assert not healthy(port)
    finally:
        process.terminate()
        process.wait()


def healthy(port: int) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as reply:
        return reply.status == 200
    return False


def address(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def picture(data: Path | bytes | str):
    given = data.read_bytes() if isinstance(data, Path) else data
    url = given if isinstance(given, str) else address(given)
    return {"type": "image_url", "image_url": {"url": url}}


def ask(client, images, words, *, words_first=False, **options):
    """The client's own call; only the ids of the answer are asked for beside."""
    text = [{"type": "text", "text": words}] if words else []
    pictures = [picture(each) for each in images]
    content = text + pictures if words_first else pictures + text
    return client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": content}],
        temperature=0,
        max_tokens=LONGEST,
        extra_body={"return_token_ids": True},
        **options,
    )


def told(reply) -> tuple[list[int], int, int]:
    """The ids of an answer without its end token, and the tokens of its prompt and of itself."""
    ids = reply.choices[0].token_ids
    ended = reply.choices[0].finish_reason == "stop"
    usage = reply.usage
    return ids[: len(ids) - ended], usage.prompt_tokens, usage.completion_tokens - ended


def expected(one: Asked) -> tuple[list[int], int, int]:
    return one.ids, one.prompt_tokens, len(one.ids)


def test_answers_are_the_engines_one_by_one_and_many_at_once(client, asked):
    assert [model.id for model in client.models.list()] == [MODEL]
    alone = [told(ask(client, one.images, one.words)) for one in asked]
    assert alone == [expected(one) for one in asked]
    with ThreadPoolExecutor(8) as threads:
        replies = [threads.submit(ask, client, one.images, one.words) for one in reversed(asked)]
        together = [told(reply.result()) for reply in reversed(replies)]
    assert together == alone


def test_a_question_in_front_of_its_image_is_read_as_well(client, asked):
    replies = [ask(client, one.images, one.words, words_first=True) for one in asked[:5]]
    assert [told(reply) for reply in replies] == [expected(one) for one in asked[:5]]


def test_a_later_turn_prunes_by_its_own_question(client, asked):
    """As `generate` of transformers does in a block that prunes, with the same chat."""
    path, question = asked[0].images[0], asked[1].words
    model = AutoModelForImageTextToText.from_pretrained(MODEL, dtype="float32")
    processor = AutoProcessor.from_pretrained(MODEL)
    turns = [("user", asked[0].words), ("assistant", "no"), ("user", question)]
    chat = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    chat[0]["content"].insert(0, {"type": "image"})
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(text=text, images=load_image(path)[0], return_tensors="pt")
    with TrimTokenator(keep=64)(model) as pruned:
        made = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
    assert pruned.words == [question]
    ids = made[0, inputs["input_ids"].shape[1] :].tolist()
    chat[0]["content"][0] = picture(path)
    reply = client.chat.completions.create(
        model=MODEL,
        messages=chat,
        temperature=0,
        max_tokens=LONGEST,
        extra_body={"return_token_ids": True},
    )
    assert reply.choices[0].token_ids == ids
    assert reply.usage.prompt_tokens == inputs["input_ids"].shape[1] - 576 + 64


def test_a_stream_ends_with_the_usage(client, asked):
    one = asked[1]
    chunks = list(
        ask(client, one.images, one.words, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[-1].usage.prompt_tokens == one.prompt_tokens


REFUSED = {
    "no picture": ([b"no picture"], "What?", "cannot identify image"),
    "cut short": ([SCENES[0].read_bytes()[:1000]], "What?", "truncated"),
    "an address": (["http://127.0.0.1/a.png"], "What?", "without --allow-urls"),
    "too long": ([SCENES[0]], "red " * 3000, "maximum context length"),
    "a placeholder": ([SCENES[0]], "What is <image>?", "2 placeholders for 1 images"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_request_that_cannot_be_answered_is_one_sentence_and_the_server_goes_on(
    client, asked, what
):
    images, words, says = REFUSED[what]
    with pytest.raises(openai.BadRequestError, match=says):
        ask(client, images, words)
    assert told(ask(client, asked[0].images, asked[0].words)) == expected(asked[0])
