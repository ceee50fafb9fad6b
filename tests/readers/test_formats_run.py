"""Whole runs over pictures that are no file of their own, and over prompts that are templates."""

import base64
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from trimtok_cli.cli import app


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def png(color=(200, 30, 60)):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), color).save(buffer, "PNG")
    return buffer.getvalue()


def run(*args, code=0):
    args = [
        *map(str, args),
        "--keep",
        "4",
        "--max-new-tokens",
        "2",
        "-o",
        "a.jsonl",
        "-v",
        "--overwrite",
    ]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == code, f"{done.exit_code}\n{done.stderr}\n{done.exception!r}"
    rows = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    Path("a.jsonl").unlink()
    return rows, " ".join(done.stderr.split())


def plain(row):
    """What an answer says, without times and ids."""
    return row["text"], row["metadata"]["visual"], row["metadata"]["media"]


def test_pictures_in_a_tar_are_answered_as_their_files_are(llava_folder):
    with tarfile.open("a.tar", "w") as tar:
        for name, content in (
            ("x/a.png", png()),
            ("x/a.txt", b"red"),
            ("x/b.png", b"\x89PNG broken"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    Path("a.png").write_bytes(png())
    common = ("-m", llava_folder)
    (a, b), said = run(
        "caption",
        "a.tar",
        *common,
        "--workers",
        "1",
        "--prompt",
        "{stem} in {dir}: {caption}?",
        code=3,
    )
    assert "a.tar is read as a tar of pictures" in said
    assert (a["question_id"], a["image"], a["prompt"]) == ("x/a", "x/a.png", "a in x: red?")
    assert "it has no caption" in b["metadata"]["error"] and b["text"] == ""
    (file,), _ = run("caption", "a.png", *common, "--prompt", "a in x: red?")
    assert plain(a) == plain(file)
    (_, b), _ = run("caption", "a.tar", *common, code=3)
    assert "x/b.png" in b["metadata"]["error"]


def test_a_table_of_data_uris_and_addresses(llava_folder):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(png())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        uri = "data:image/png;base64," + base64.b64encode(png()).decode()
        lines = [
            "question_id,image,question",
            f'1,"{uri}",What?',
            f"2,{url},What?",
            f"3,{url}x,What?",
        ]
        Path("q.csv").write_text("\n".join(lines))
        (held, fetched, gone), _ = run("vqa", "q.csv", "-m", llava_folder, "--allow-urls", code=3)
        (_, refused, _), _ = run("vqa", "q.csv", "-m", llava_folder, code=3)
        server.shutdown()
    assert plain(held) == plain(fetched) and held["text"] == fetched["text"]
    assert fetched["image"] == url and len(held["image"]) < 100
    assert "answered 404" in gone["metadata"]["error"]
    assert "--allow-urls" in refused["metadata"]["error"]


def test_compare_draws_a_picture_that_is_no_file(llava_folder):
    uri = "data:image/png;base64," + base64.b64encode(png()).decode()
    Path("q.jsonl").write_text(json.dumps({"image": uri}))
    rows, _ = run("compare", "q.jsonl", "-m", llava_folder, "--prompt", "What is {name}?")
    assert rows and "data:image/png;base64," in Path("a.html").read_text()
