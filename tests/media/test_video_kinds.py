"""Every kind of video and animation: recognised by content, read by the demuxer of its kind alone, in
square pixels, within limits.
"""

import os
import shutil
import struct
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.support.clips import HEIGHT, WIDTH, make_clip, mark_rotation, number_in, picture
from trimtok_cli.data import FrameRule, Sample
from trimtok_cli.errors import MediaError
from trimtok_cli.media import kinds, video
from trimtok_cli.media.decoders import pyav
from trimtok_cli.media.frames import pick_times
from trimtok_cli.media.images import load_image
from trimtok_cli.media.kinds import by_content, kind_of
from trimtok_cli.media.video import VIDEO_SUFFIXES, load_video

ROOT = Path(__file__).parents[2]
PATHS = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "

# Ending -> codec.
CONTAINERS = {
    "mp4": "libx264",
    "m4v": "libx264",
    "mov": "libx264",
    "3gp": "libx264",
    "3g2": "libx264",
    "f4v": "libx264",
    "mkv": "libx264",
    "webm": "libvpx-vp9",
    "avi": "mpeg4",
    "wmv": "wmv2",
    "asf": "wmv2",
    "flv": "libx264",
    "ogv": "libtheora",
    "mpg": "mpeg2video",
    "vob": "mpeg2video",
    "ts": "libx264",
    "m2ts": "libx264",
    "mts": "libx264",
    "mxf": "mpeg2video",
    "m2v": "mpeg2video",
    "ivf": "libvpx-vp9",
    "y4m": "wrapped_avframe",
    "rm": "rv20",
}


def numbers(clip):
    return [number_in(frame) for frame in clip.frames]


@pytest.mark.parametrize("ending", list(CONTAINERS))
def test_what_pyav_decodes_is_read_whatever_it_is_called(tmp_path, ending):
    path, codec = tmp_path / f"clip.{ending}", CONTAINERS[ending]
    rate = 25 if codec in ("mpeg2video", "rv20") else 10
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV without {codec}")
    if ending in ("m2ts", "mts"):  # 192 bytes a packet, as cameras write them
        make_clip(path.with_suffix(".ts"), 20, options={"g": "5"}, rate=rate)
        data = path.with_suffix(".ts").read_bytes()
        path.write_bytes(
            b"".join(bytes(4) + data[at : at + 188] for at in range(0, len(data), 188))
        )
    else:
        make_clip(
            path,
            20,
            codec=codec,
            rate=rate,
            options={"q:v": "2"} if codec in ("rv20", "wmv2") else {},
        )
    assert f".{ending}" in VIDEO_SUFFIXES and kind_of(path) == "video"
    expected = None
    for name in (path.name, path.name.upper(), "clip.jpg", "clip"):
        shutil.copy(path, tmp_path / "x")
        target = (tmp_path / "x").rename(tmp_path / name)
        found = numbers(load_video(target, FrameRule(frames=4)))
        expected = expected or found
        assert (
            found == expected
            and len(found) == 4
            and found == sorted(found)
            and 0 <= found[0] <= 4
            and found[-1] >= 15
        )


# Pixels that are not square


@pytest.mark.parametrize("backend", ["decord", "pyav"])
@pytest.mark.parametrize("turn", [0, 90])
@pytest.mark.parametrize(
    "shape", [Fraction(4, 3), Fraction(2), Fraction(8, 9), Fraction(1, 2), Fraction(1)]
)
def test_pixels_that_are_not_square_are_drawn_out(tmp_path, shape, turn, backend):
    pytest.importorskip(video.DECODER_PACKAGES[backend])
    path = tmp_path / "dvd.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.pix_fmt, stream.width, stream.height = "yuv420p", WIDTH, HEIGHT
        stream.codec_context.sample_aspect_ratio = shape
        for number in range(6):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if turn:
        mark_rotation(path, turn)
    clip = load_video(path, FrameRule(frames=3, backend=backend))
    wide, high = (round(WIDTH * max(shape, 1)), round(HEIGHT * max(1 / shape, 1)))
    assert (
        clip.frames[0].size == (clip.width, clip.height) == ((high, wide) if turn else (wide, high))
    )
    assert clip.rotation == turn and clip.decoder == backend
    upright = [
        frame.transpose(Image.Transpose.ROTATE_90) if turn else frame for frame in clip.frames
    ]
    assert [number_in(frame.resize((WIDTH, HEIGHT))) for frame in upright] == [1, 3, 5]


def test_a_strange_shape_is_not_believed():
    stream = type("Stream", (), {"sample_aspect_ratio": Fraction(1000, 1)})
    assert pyav.pixel_shape_of(stream) == 1
    stream.sample_aspect_ratio = None
    assert pyav.pixel_shape_of(stream) == 1


# Moving pictures


def animation(path, format, **options):
    frames = [Image.fromarray(picture(number)) for number in range(12)]
    if format == "GIF":
        frames = [frame.quantize(16) for frame in frames]
    frames[0].save(
        path,
        format,
        save_all=True,
        append_images=frames[1:],
        **{"duration": 100, "loop": 0} | options,
    )
    return path


@pytest.mark.parametrize(
    ("format", "options"),
    [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("AVIF", {"quality": 95})],
)
def test_a_moving_picture_given_as_a_video_shows_its_frames(tmp_path, format, options):
    Image.init()
    if format not in Image.SAVE_ALL:
        pytest.skip("this Pillow lacks the format")
    path = animation(tmp_path / "moving.mp4", format, **options)
    clip = load_video(path, FrameRule(frames=4))
    assert numbers(clip) == [1, 4, 7, 10] and clip.decoder == "pillow" and clip.num_frames == 12
    assert clip.times == pytest.approx([0.1, 0.4, 0.7, 1.0]) and clip.duration == pytest.approx(1.2)
    assert kind_of(path) == "animated" and numbers(load_video(path, FrameRule(frames=99))) == list(
        range(12)
    )
    assert number_in(load_image(path)[0]) == 0


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_frames_that_stay_long_count_as_long(tmp_path, format):
    lengths = [100, 100, 1000, 100, 100, 100, 100, 2000, 100, 100, 100, 100]
    path = animation(
        tmp_path / "slow.gif",
        format,
        duration=lengths,
        **({"lossless": True} if format == "WEBP" else {}),
    )
    assert numbers(load_video(path, FrameRule(frames=4))) == [2, 6, 7]
    assert load_video(path, FrameRule()).duration == pytest.approx(4.0)


def test_frames_without_a_time_are_shown_as_browsers_show_them(tmp_path):
    clip = load_video(animation(tmp_path / "fast.gif", "GIF", duration=0), FrameRule(frames=2))
    assert clip.duration == pytest.approx(1.2) and numbers(clip) == [3, 9]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_still_picture_in_a_video_column_is_one_frame(tmp_path, format):
    still = Image.fromarray(picture(9))
    still.save(tmp_path / "still.mp4", format)
    clip = load_video(tmp_path / "still.mp4", FrameRule(frames=8))
    assert (
        numbers(clip) == [9] and clip.times == (0.0,) and kind_of(tmp_path / "still.mp4") == "image"
    )


def test_a_sample_is_what_its_file_is(tmp_path):
    Image.fromarray(picture(3)).save(tmp_path / "picture.mp4", "JPEG")
    make_clip(tmp_path / "clip.mp4", 5).rename(tmp_path / "clip.jpg")
    animation(tmp_path / "moving.gif", "GIF")
    still, clip = tmp_path / "picture.mp4", tmp_path / "clip.jpg"
    assert by_content(Sample(id=1, video=still, question="<video> what?")) == Sample(
        id=1, images=(still,), question="<image> what?"
    )
    assert by_content(Sample(id=1, images=(clip,))) == Sample(id=1, video=clip)
    for sample in (
        Sample(id=1, video=tmp_path / "moving.gif"),
        Sample(id=1, images=(tmp_path / "moving.gif",)),
        Sample(id=1, question="?"),
        Sample(id=1, images=(still, clip)),
        Sample(id=1, images=(still,), video=still),
        Sample(id=1, images=(tmp_path / "no",)),
        Sample(id=1, video=Path("nul\0")),
        replace(Sample(id=1), video=tmp_path),
    ):
        assert by_content(sample) == sample


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_kind_of_waits_for_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert kind_of(tmp_path / "pipe.mp4") == kind_of(tmp_path) == "other"


# Files that never reach FFmpeg

SDP = (
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP "
    b"96\na=rtpmap:96 H264/90000\n"
)
FOREIGN = {
    "sdp": SDP,
    "sdp with marks of a transport stream": b"".join(
        (b"G" + SDP)[:188].ljust(187, b"\n") + b"\n" for _ in range(9)
    ),
    "hls": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "dash": b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>",
    "hls in an mp4": struct.pack(">I4s", 8, b"free") + b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    "sdp in an mp4": struct.pack(">I4s", 8, b"free") + b"\n" + SDP,
    "dash in a matroska": b"\x1aE\xdf\xa3" + b"<MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>",
    "hls in a flv": b"FLV\1" + b"\n#EXTM3U\n",
}


@pytest.mark.parametrize("backend", ["auto", "pyav", "decord"])
@pytest.mark.parametrize("what", list(FOREIGN))
def test_text_is_never_followed(tmp_path, what, backend):
    (tmp_path / "list.mp4").write_bytes(FOREIGN[what])
    with pytest.raises(MediaError) as caught:
        load_video(tmp_path / "list.mp4", FrameRule(timeout=30, backend=backend))
    assert "passwd" not in str(caught.value) and "whitelist" not in str(caught.value)


def test_the_demuxer_is_named_and_the_protocol_is_file(tmp_path, monkeypatch):
    asked = []

    def opened(path, **options):
        asked.append(options)
        raise ValueError("enough")

    monkeypatch.setattr(av, "open", opened)
    for kind, head in (
        ("mp4", b"\0\0\0\x18ftypisom"),
        ("ts", (b"G" + bytes(187)) * 5),
        ("mkv", b"\x1aE\xdf\xa3"),
    ):
        (tmp_path / "x").write_bytes(head)
        with pytest.raises(ValueError, match="enough"):
            pyav.open_stream(str(tmp_path / "x"), "x")
        assert asked.pop() == {
            "format": kinds.DEMUXERS[kind],
            "options": {"protocol_whitelist": "file"},
        }


# Limits


def test_frames_that_do_not_fit_are_shrunk_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(
        video,
        "_CHILD",
        PATHS + "from trimtok_cli.media import decoder_child; from trimtok_cli.media.decoders "
        "import decord, pyav; decord.MOST_PIXELS = pyav.MOST_PIXELS = 12288; decoder_child.main()",
    )
    path = make_clip(tmp_path / "a.mp4", 20)
    for backend in ("pyav", "decord"):
        if not video.find_spec(video.DECODER_PACKAGES[backend]):
            continue
        clip = load_video(path, FrameRule(frames=8, backend=backend))
        assert (clip.width, clip.height) == clip.frames[0].size == (48, 32)
        assert clip.warnings == (
            "its frames were shrunk to 48 x 32, as so many would not fit into memory",
        )
        assert [number_in(frame.resize((WIDTH, HEIGHT))) for frame in clip.frames] == [
            1,
            3,
            6,
            8,
            11,
            13,
            16,
            18,
        ]
    clip = load_video(path, FrameRule(frames=2))
    assert clip.frames[0].size == (WIDTH, HEIGHT) and not clip.warnings


def test_a_frame_over_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        video,
        "_CHILD",
        PATHS + "from trimtok_cli.media import decoder_child; from trimtok_cli.media.decoders "
        "import pyav; pyav.MOST_FRAME = 6000; decoder_child.main()",
    )
    with pytest.raises(
        MediaError, match=r"frames of 96 x 64 pixels, more than the limit of 6000; make it smaller"
    ):
        load_video(make_clip(tmp_path / "a.mp4", 4), FrameRule())


def test_large_frames_are_left_to_pyav_which_holds_few(tmp_path, monkeypatch):
    monkeypatch.setattr(
        video,
        "_CHILD",
        PATHS + "from trimtok_cli.media import decoder_child; from trimtok_cli.media.decoders "
        "import pyav; pyav.LARGE_FRAME = 6000; decoder_child.main()",
    )
    clip = load_video(make_clip(tmp_path / "a.mp4", 4), FrameRule(frames=2))
    assert numbers(clip) == [1, 3] and clip.decoder == "pyav"


@pytest.mark.parametrize("place", ["before the index", "behind it"])
def test_a_flood_of_boxes_is_passed_by(tmp_path, place):
    data, flood = (
        make_clip(tmp_path / "a.mp4", 4).read_bytes(),
        struct.pack(">I4s", 8, b"free") * 500_000,
    )
    (tmp_path / "b.mp4").write_bytes(
        data[:32] + flood if place == "before the index" else data + flood
    )
    began = time.monotonic()
    if place == "behind it":
        assert numbers(load_video(tmp_path / "b.mp4", FrameRule(frames=2))) == [1, 3]
    else:
        with pytest.raises(MediaError, match="no index among its first 1000 boxes"):
            load_video(tmp_path / "b.mp4", FrameRule())
    assert time.monotonic() - began < 20


def slow_pick(starts, duration, rule):
    """The oracle: every slot is looked at."""
    span = min(duration, rule.end if rule.end is not None else duration) - rule.start
    if span <= 0:
        return []
    count, step = rule.frames, span / rule.frames
    if (
        rule.fps is not None
        and (wanted := max(1, int(np.ceil(span * rule.fps - 0.5 - 1e-3)))) <= rule.frames
    ):
        count, step = wanted, min(span, 1 / rule.fps)
    shown = (
        np.searchsorted(starts, rule.start + (slot + 0.5) * step + 1e-3, side="right") - 1
        for slot in range(count)
    )
    return sorted({max(0, int(number)) for number in shown})


def test_picking_passes_over_slots_and_misses_none():
    random = np.random.default_rng(0)
    for _ in range(400):
        starts = np.concatenate(
            [
                [0.0],
                np.sort(
                    random.exponential(
                        random.choice([0.001, 0.04, 2]), random.integers(0, 60)
                    ).cumsum()
                ),
            ]
        )
        duration = float(starts[-1] + random.exponential(0.1))
        rule = FrameRule(
            frames=int(random.integers(1, 500)),
            fps=random.choice([None, 0.3, 3.0, 700.0]),
            start=duration * random.choice([0, 0.3]),
        )
        assert pick_times(list(map(float, starts)), duration, rule) == slow_pick(
            starts, duration, rule
        )


@pytest.mark.parametrize(
    "rule",
    [
        {"frames": 10_000},
        {"frames": 10_000, "fps": 1000},
        {"fps": 1000, "frames": 64},
        {"fps": 1e-308},
    ],
)
def test_the_largest_and_the_smallest_numbers_take_no_time(rule):
    starts, began = [number / 25 for number in range(100_000)], time.monotonic()
    picked = pick_times(starts, 4000.0, FrameRule(**rule))
    assert time.monotonic() - began < 5
    assert len(picked) == rule.get("frames", 1)
    assert pick_times([0.0], 1e-300, FrameRule(frames=10_000)) == [0]


def test_the_largest_numbers_take_every_frame_of_a_file(tmp_path):
    path = make_clip(tmp_path / "a.mp4", 10)
    assert numbers(load_video(path, FrameRule(frames=10_000))) == list(range(10))
    assert numbers(load_video(path, FrameRule(frames=10_000, fps=1000))) == list(range(10))


# The machine's fault


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
@pytest.mark.parametrize("lack", ["TMPDIR", "a full TMPDIR", "files", "processes", "memory"])
def test_what_the_machine_lacks_is_not_put_on_the_file(tmp_path, lack):
    """Runs in a child with the limit set.

    Root may start processes whatever the limit, so the call itself is made to fail.
    """
    path = make_clip(tmp_path / "good.mp4", 4)
    Image.fromarray(picture(1)).save(tmp_path / "good.png")
    code = f"""
import os, resource, subprocess, sys
from pathlib import Path
from trimtok_cli.media.images import load_image
from trimtok_cli.media.video import FrameRule, load_video
import trimtok_cli.media.pixels, PIL.ImageCms
lack = {lack!r}
if lack == "files":
    soft = max(map(int, os.listdir("/proc/self/fd"))) if os.path.isdir("/proc/self/fd") else 10
    held = [os.dup(0) for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[0], held[0]))
if lack == "processes":
    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")
    subprocess.Popen = refuse
if lack == "memory":
    from trimtok_cli.media import video
    video._CHILD = "import resource; resource.setrlimit(resource.RLIMIT_AS, (60_000_000, 60_000_000)); " + {PATHS!r} + video._CHILD
for load in (lambda: load_video(Path({str(path)!r}), FrameRule()), lambda: load_image(Path({str(path.with_suffix(".png"))!r}))):
    try:
        load()
        print("read")
    except Exception as error:
        print(type(error).__name__, error)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if lack == "TMPDIR":
        environment["TMPDIR"] = str(tmp_path / "nowhere")
    if lack == "a full TMPDIR" and Path("/dev/full").exists():
        environment["TMPDIR"] = "/dev/full"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    said = done.stdout.splitlines()
    assert len(said) == 2, done.stderr
    wanted = {"files": "ulimit -n", "processes": "ulimit -u", "memory": "memory"}.get(lack, "read")
    assert (
        wanted in said[0] and said[1] == "read"
        if lack != "files"
        else all(wanted in line for line in said)
    ), said
    assert all(line == "read" or line.startswith("MediaError") for line in said)
    assert not any(word in done.stdout for word in ("damaged", "does not exist"))


def test_a_decoder_that_is_killed_is_no_damage(tmp_path, monkeypatch):
    path = make_clip(tmp_path / "a.mp4", 4)
    monkeypatch.setattr(
        video,
        "_CHILD",
        "import os, signal; print('ready', flush=True); os.kill(os.getpid(), signal.SIGKILL)",
    )
    with pytest.raises(
        MediaError, match="its decoder was killed, as the system does when memory is short"
    ):
        load_video(path, FrameRule())


@pytest.mark.parametrize(
    "load", [load_image, lambda path: load_video(path, FrameRule())], ids=["image", "video"]
)
def test_a_nul_in_a_name_is_no_damage(load):
    with pytest.raises(MediaError, match=r"cannot be read .*check the path"):
        load(Path("nul\0.mp4"))
