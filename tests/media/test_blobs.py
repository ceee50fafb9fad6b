"""Pictures that are no file of their own are read as files are, with the same limits."""

import io
import pickle
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from tests.support.clips import make_clip
from trimtok_cli.blobs import Address, Held, Within
from trimtok_cli.data import FrameRule, Sample
from trimtok_cli.errors import MediaError
from trimtok_cli.media import blob_files
from trimtok_cli.media.fetch import fetch
from trimtok_cli.media.images import load_image
from trimtok_cli.media.kinds import by_content, kind_of
from trimtok_cli.media.video import load_video


def content(format="PNG", size=(32, 24)):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format)
    return buffer.getvalue()


def failure(call, *args, **options):
    with pytest.raises(MediaError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value) and ";" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_picture_in_memory_or_within_a_file_is_the_picture_of_its_file(tmp_path, format):
    path, around = tmp_path / "a.dat", tmp_path / "around"
    path.write_bytes(content(format))
    around.write_bytes(b"x" * 700 + path.read_bytes() + b"y" * 700)
    size = path.stat().st_size
    expected, facts = load_image(path)
    for blob in (Held("a", path.read_bytes()), Within("a", around, 700, size)):
        image, media = load_image(pickle.loads(pickle.dumps(blob)))
        assert image.tobytes() == expected.tobytes() and media == facts


def test_what_is_wrong_with_a_blob_is_one_sentence_with_its_name(tmp_path):
    around = tmp_path / "around"
    around.write_bytes(b"x" * 100)
    for blob, said in (
        (Held("a.png", b""), "a.png is empty"),
        (Held("a.png", b"<!doctype html>"), "a.png is not an image"),
        (Held("a.png", content()[:200]), "a.png is damaged or cut short"),
        (Within("a.png", around, 50, 60), "a.png is cut short"),
        (Within("a.png", tmp_path / "gone", 0, 9), "a.png does not exist"),
        (Within("a.png", around, 0, 1 << 40), "more than"),
    ):
        assert said in failure(load_image, blob)


def test_the_limit_of_pixels_holds_for_blobs():
    assert "999" in failure(load_image, Held("a.png", content(size=(40, 40))), max_pixels=999)


def test_the_content_of_a_blob_tells_a_video_from_a_picture(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", 12)
    held = Held("looks/like.png", clip.read_bytes())
    assert kind_of(held) == "video" and kind_of(Held("v.mp4", content())) == "image"
    sample = by_content(Sample("a", images=(held,), question="<image> What?"))
    assert sample.video == held and sample.images == () and sample.question == "<video> What?"
    rule = FrameRule(frames=3)
    expected, got = load_video(clip, rule), load_video(held, rule)
    assert got.times == expected.times
    assert [f.tobytes() for f in got.frames] == [f.tobytes() for f in expected.frames]
    assert "looks/like.png" in failure(
        load_video, Held("looks/like.png", clip.read_bytes()[:300]), rule
    )


def test_a_clip_leaves_no_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(blob_files.tempfile, "tempdir", str(tmp_path))
    with blob_files.saved(Held("../../a.mp4", b"123")) as path:
        assert path.read_bytes() == b"123" and path.is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


# Addresses. The server is this process.


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.strip("/")
        if name == "a.png":
            self.reply(200, content())
        elif name == "page":
            self.reply(200, b"<!doctype html><p>Log in")
        elif name == "moved":
            self.reply(302, b"", Location="/a.png")
        elif name == "to-a-file":
            self.reply(302, b"", Location="file:///etc/hostname")
        elif name == "to-ftp":
            self.reply(302, b"", Location="ftp://127.0.0.1/a.png")
        elif name == "circle":
            self.reply(302, b"", Location="/circle")
        elif name == "large":
            self.reply(200, b"x" * 5000)
        elif name == "large-untold":
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 200_000)
        elif name == "cut":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 999\r\n\r\n" + content()[:99])
        elif name == "silent":
            threading.Event().wait(1.5)
        elif name == "drip":
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
            for _ in range(20):
                threading.Event().wait(0.1)
                self.wfile.write(b"x")
        elif name == "noise":
            self.wfile.write(b"\x00\x01\x02 not http\r\n")
        else:
            self.reply(404, b"no")

    def reply(self, status, body, **headers):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """A client that hangs up is part of the tests."""


@pytest.fixture(scope="module")
def server():
    with Quiet(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize("name", ["a.png", "moved", "a.png?size=1#top"])
def test_an_address_gives_the_picture(server, name):
    if "?" in name:
        assert "404" in failure(fetch, f"{server}/{name}")
    else:
        assert load_image(Address(f"{server}/{name}"))[0].size == (32, 24)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "answered 404"),
        ("page", "an HTML page"),
        ("to-a-file", "cannot be fetched"),
        ("to-ftp", "cannot be fetched"),
        ("circle", "cannot be fetched"),
        ("cut", "was cut off after 99 of 999 bytes"),
        ("noise", "cannot be fetched"),
        ("a b.png", "cannot be fetched"),
    ],
)
def test_an_address_that_gives_no_picture_is_one_sentence(server, name, said):
    assert said in failure(load_image, Address(f"{server}/{name}"))


def test_a_download_has_bounds(server):
    assert "5,000 bytes" in failure(fetch, f"{server}/large", most=4999)
    assert len(fetch(f"{server}/large", most=5000)) == 5000
    assert "more bytes" in failure(fetch, f"{server}/large-untold", most=100_000)
    assert "silent" in failure(fetch, f"{server}/silent", silence=0.3)
    assert "in time" in failure(fetch, f"{server}/drip", patience=0.5)


def test_no_server_and_no_http(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "cannot be fetched" in failure(fetch, f"http://127.0.0.1:{port}/a.png")
    secret = tmp_path / "secret.png"
    secret.write_bytes(content())
    assert "no http" in failure(fetch, secret.as_uri())
    assert "cannot be fetched" in failure(fetch, "http://")
