"""Videos: which frames are taken, that they are the right ones and upright, and that no broken file
does harm.

Every frame of a clip carries its number in the picture (clips.py), so the number of a decoded frame
is read from its pixels.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from tests.support.clips import HEIGHT, WIDTH, make_clip, mark_rotation, number_in
from trimtok_cli.data import FrameRule
from trimtok_cli.errors import MediaError, UsageError
from trimtok_cli.media import video
from trimtok_cli.media.decoders.answer import choose_frames
from trimtok_cli.media.frames import pick_times
from trimtok_cli.media.video import load_video

ROOT = Path(__file__).parents[2]
B_FRAMES = {"bf": "3", "g": "12"}
HANGS = (
    "from trimtok_cli.media import decoder_child as child; import os, time; from pathlib "
    "import Path; "
)
HANGS += (
    "child.DECODERS['pyav'] = lambda path, *rest: (Path(path + "
    "'.pid').write_text(str(os.getpid())), time.sleep(60)); child.main()"
)
NO_AV = (
    "from trimtok_cli.media import decoder_child; from trimtok_cli.media.decoders import decord; "
    "decord.find_spec = lambda name: None; decoder_child.main()"
)
PATHS = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "


def numbers(clip) -> list[int]:
    assert (clip.width, clip.height) == (WIDTH, HEIGHT) and len(clip.frames) == len(clip.times)
    assert list(clip.times) == sorted(set(clip.times))
    return [number_in(frame) for frame in clip.frames]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """clips(name, ...) -> path of a clip, each of which is made once."""
    folder = tmp_path_factory.mktemp("clips")

    def make(name: str, *args, **options) -> Path:
        path = folder / name
        return path if path.exists() else make_clip(path, *args, **options)

    return make


@pytest.fixture
def plain(clips) -> Path:
    return clips("plain.mp4", 40, options=B_FRAMES)


# Which frames: no file needed


def test_slots_are_sampled_at_their_centres():
    starts = [number / 10 for number in range(40)]
    assert pick_times(starts, 4.0, FrameRule(frames=8)) == [2, 7, 12, 17, 22, 27, 32, 37]
    # The centres fall on the start of a frame.
    assert pick_times(starts, 4.0, FrameRule(frames=20)) == list(range(1, 40, 2))
    assert pick_times(starts, 4.0, FrameRule(frames=1)) == [20]


@pytest.mark.parametrize("frames", [40, 41, 100, 1000])
def test_never_a_frame_twice_nor_more_than_there_are(frames):
    assert pick_times([number / 10 for number in range(40)], 4.0, FrameRule(frames=frames)) == list(
        range(40)
    )
    assert pick_times([0.0], 0.04, FrameRule(frames=frames)) == [0]


def test_variable_rate_is_sampled_by_time_and_not_by_number():
    starts = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 6.0, 7.0]  # six frames in the first half second
    assert pick_times(starts, 8.0, FrameRule(frames=4)) == [5, 7]  # at 1, 3, 5 and 7 seconds
    assert pick_times(starts, 8.0, FrameRule(frames=1, start=2, end=3)) == [5]  # shown since 0.5


def test_span_and_rate():
    starts = [number / 10 for number in range(40)]
    assert pick_times(starts, 4.0, FrameRule(frames=4, start=2.0)) == [22, 27, 32, 37]
    assert pick_times(starts, 4.0, FrameRule(frames=2, start=1.0, end=2.0)) == [12, 17]
    assert pick_times(starts, 4.0, FrameRule(frames=2, end=99.0)) == [10, 30]
    assert pick_times(starts, 4.0, FrameRule(fps=1)) == [5, 15, 25, 35]
    capped = pick_times(starts, 4.0, FrameRule(fps=2, frames=4))
    assert capped == pick_times(starts, 4.0, FrameRule(frames=4))
    assert pick_times(starts, 4.0, FrameRule(fps=0.01)) == [20]
    assert pick_times(starts, 4.0, FrameRule(fps=1000, frames=999)) == list(range(40))
    assert pick_times(starts, 4.0, FrameRule(start=4.0)) == pick_times([], 0.0, FrameRule()) == []


@pytest.mark.parametrize(
    "values",
    [
        *(
            {"frames": 0},
            {"fps": 0.0},
            {"fps": float("nan")},
            {"start": -1.0},
            {"start": 2.0, "end": 2.0},
            {"end": float("nan")},
        ),
        *(
            {"backend": "opencv"},
            {"timeout": 0.0},
            {"timeout": float("nan")},
            {"timeout": float("inf")},
        ),
    ],
)
def test_a_rule_without_sense_is_a_usage_error(values):
    with pytest.raises(UsageError):
        FrameRule(**values)


# The right frames, upright


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_b_frames(plain, backend):
    pytest.importorskip(video.DECODER_PACKAGES[backend])
    clip = load_video(plain, FrameRule(backend=backend))
    assert numbers(clip) == [2, 7, 12, 17, 22, 27, 32, 37]
    assert clip.times == pytest.approx([0.2, 0.7, 1.2, 1.7, 2.2, 2.7, 3.2, 3.7])
    assert (clip.duration, clip.fps, clip.num_frames, clip.rotation, clip.decoder) == (
        4.0,
        10.0,
        40,
        0,
        backend,
    )
    assert clip.warnings == ()
    assert numbers(load_video(plain, FrameRule(backend=backend, frames=99))) == list(range(40))


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_variable_frame_rate(clips, backend):
    pytest.importorskip(video.DECODER_PACKAGES[backend])
    path = clips("vfr.mp4", [0, 1, 2, 3, 20, 21, 22, 50, 51, 80, 81, 82], options=B_FRAMES)
    clip = load_video(path, FrameRule(backend=backend, frames=5, end=8.2))
    assert numbers(clip) == [3, 6, 8] and clip.times == pytest.approx([0.3, 2.2, 5.1])
    assert clip.duration == pytest.approx(8.3) and clip.fps == pytest.approx(12 / 8.3)


@pytest.mark.parametrize("backend", ["decord", "pyav"])
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_undone_once(clips, degrees, backend):
    pytest.importorskip(video.DECODER_PACKAGES[backend])
    path = clips(f"turned{degrees}.mp4", 12, turn=360 - degrees)
    clip = load_video(mark_rotation(path, degrees), FrameRule(backend=backend, frames=3))
    assert numbers(clip) == [2, 6, 10] and clip.rotation == degrees


def test_one_frame(clips):
    clip = load_video(clips("one.mp4", 1), FrameRule())
    assert (
        numbers(clip) == [0]
        and clip.times == (0.0,)
        and clip.num_frames == 1
        and clip.duration == pytest.approx(0.1)
    )


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("stream.ts", "libx264", B_FRAMES),  # decord drops the first frames
        ("old.avi", "libx264", B_FRAMES),  # no presentation times
        ("disc.mpg", "mpeg2video", {"bf": "2"}),
        (
            "open.mp4",
            "libx265",
            {"x265-params": "log-level=none:pools=1:frame-threads=1:keyint=12"},
        ),
        (
            "open264.mp4",
            "libx264",
            {"bf": "3", "x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0"},
        ),
    ],
)
def test_files_in_which_decord_takes_wrong_frames_go_to_pyav(clips, name, codec, options):
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV without {codec}")
    rate = 25 if codec == "mpeg2video" else 10
    clip = load_video(
        clips(name, 40, codec=codec, options=options, rate=rate), FrameRule(frames=13)
    )
    assert (
        numbers(clip) == [1, 4, 7, 10, 13, 16, 20, 23, 26, 29, 32, 35, 38]
        and clip.decoder == "pyav"
    )
    assert clip.times == pytest.approx([number / rate for number in numbers(clip)], abs=2e-3)


def repack(source: Path, target: Path, *, drop: int = 0, early: int = 0) -> Path:
    """The packets in another file, without those before frame `drop`, all `early` frames sooner."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        tick = round(0.1 / stream.time_base)
        for packet in old.demux(stream):
            if packet.size and packet.pts >= drop * tick:
                packet.pts, packet.dts = packet.pts - early * tick, packet.dts - early * tick
                packet.stream = copy
                new.mux(packet)
    return target


@pytest.mark.parametrize("backend", ["auto", "pyav"])
def test_rotated_matroska(clips, tmp_path, backend):
    turned = mark_rotation(clips("phone.mp4", 12, turn=270), 90)
    clip = load_video(repack(turned, tmp_path / "phone.mkv"), FrameRule(frames=3, backend=backend))
    assert numbers(clip) == [2, 6, 10] and (clip.rotation, clip.decoder) == (90, "pyav")


def test_times_count_from_the_first_frame(plain, tmp_path):
    clip = load_video(
        repack(plain, tmp_path / "later.mp4", drop=12, early=4), FrameRule(frames=4, end=1.0)
    )
    assert numbers(clip) == [13, 15, 18, 20] and clip.times == pytest.approx([0.1, 0.3, 0.6, 0.8])


def test_a_last_frame_that_stays_long_is_a_warning():
    chosen, said = choose_frames("talk.mp4", [0.0, 0.1, 0.2], 30.0, FrameRule(frames=4))
    assert chosen == [2] and said["warnings"] == [
        "its last frame is shown for 29.8 seconds; it may be cut short"
    ]
    assert choose_frames("talk.mp4", [0.0, 0.1, 0.2], 0.3, FrameRule())[1]["warnings"] == []


def test_an_edit_list_hides_the_frames_before_it(plain, tmp_path):
    path = repack(plain, tmp_path / "trimmed.mp4", drop=12, early=17)
    clip = load_video(path, FrameRule(frames=99))
    assert numbers(clip) == list(range(17, 40)) and clip.times[0] == 0.0
    if video.find_spec("decord"):
        with pytest.raises(MediaError, match="cannot be read by decord"):
            load_video(path, FrameRule(backend="decord"))


@pytest.mark.parametrize("codec", ["libsvtav1", "libaom-av1"])
def test_av1_falls_back_to_pyav(clips, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV without {codec}")
    options = (
        {"preset": "8", "crf": "10"} if codec == "libsvtav1" else {"cpu-used": "8", "crf": "10"}
    )
    clip = load_video(clips(f"{codec}.mp4", 12, codec=codec, options=options), FrameRule(frames=4))
    assert numbers(clip) == [1, 4, 7, 10] and clip.decoder == "pyav"


def test_both_decoders_agree_on_the_pixels(plain):
    pytest.importorskip("decord")
    one, other = (
        load_video(plain, FrameRule(backend=backend, frames=5, fps=2, start=0.55))
        for backend in ("decord", "pyav")
    )
    assert one.times == other.times and numbers(one) == numbers(other) and len(one.frames) == 5
    for left, right in zip(one.frames, other.frames, strict=True):
        assert np.abs(np.asarray(left, dtype=int) - np.asarray(right, dtype=int)).max() <= 3


def test_decord_alone_reads_every_frame_in_turn(clips, monkeypatch):
    pytest.importorskip("decord")
    monkeypatch.setattr(video, "_CHILD", PATHS + NO_AV)
    path = clips(
        "open264.mp4",
        40,
        options={"bf": "3", "x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0"},
    )
    clip = load_video(path, FrameRule(backend="decord", frames=13))
    assert numbers(clip) == [1, 4, 7, 10, 13, 16, 20, 23, 26, 29, 32, 35, 38]


# Files that are broken, and files that are missing


def test_a_span_without_a_frame_names_the_length_and_the_options(plain):
    with pytest.raises(MediaError, match=r"plain.mp4 is 4.00 seconds long .*--start 4 and --end 9"):
        load_video(plain, FrameRule(start=4.0, end=9.0))


def test_wrong_files(tmp_path):
    for name, content, words in [
        ("empty.mp4", b"", "is empty"),
        (
            "page.mp4",
            b"<!DOCTYPE html><html><body>404</body></html>" * 9,
            "not a video of a known kind .*it looks like an HTML page",
        ),
        (
            "list.mp4",
            b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
            "not a video of a known kind .*a playlist",
        ),
        ("picture.mp4", b"\x89PNG\r\n\x1a\n" + bytes(300), "damaged or cut short"),
        ("head.mp4", b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "damaged or cut short"),
        ("noise.mkv", b"\x1aE\xdf\xa3" + bytes(range(256)) * 4, "damaged or cut short"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError, match=words) as caught:
            load_video(tmp_path / name, FrameRule(timeout=30))
        assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(MediaError, match="is a folder"):
        load_video(tmp_path / "folder.mp4", FrameRule())
    with pytest.raises(MediaError, match="does not exist"):
        load_video(tmp_path / "nowhere.mp4", FrameRule())
    with pytest.raises(MediaError, match="cannot be read"):
        load_video(tmp_path / "nul\0.mp4", FrameRule())


@pytest.mark.parametrize("name", ["late.mp4", "front.mp4", "cut.mkv", "cut.avi"])
def test_cut_short(clips, tmp_path, name):
    front = {"movflags": "faststart"} if name == "front.mp4" else {}
    data = clips(f"whole-{name}", 60, options=B_FRAMES, container_options=front).read_bytes()
    assert (
        (data.index(b"moov") < data.index(b"mdat")) == bool(front) if name.endswith("mp4") else True
    )
    for part in (0.97, 0.6, 0.3):
        (tmp_path / name).write_bytes(data[: int(len(data) * part)])
        with pytest.raises(MediaError, match="is damaged or cut short"):
            load_video(tmp_path / name, FrameRule())


def test_damage_within_a_file(clips, tmp_path, capfd):
    data = bytearray(
        clips(
            "whole-front.mp4", 60, options=B_FRAMES, container_options={"movflags": "faststart"}
        ).read_bytes()
    )
    data[len(data) // 2 : len(data) * 7 // 10] = bytes(len(data) * 7 // 10 - len(data) // 2)
    (tmp_path / "hole.mp4").write_bytes(data)
    with pytest.raises(MediaError, match="is damaged or cut short"):
        load_video(tmp_path / "hole.mp4", FrameRule(frames=60))
    assert capfd.readouterr() == ("", "")


def test_sound_only(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match="holds no moving picture"):
        load_video(path, FrameRule())


@pytest.mark.parametrize(
    ("backend", "command"),
    [
        ("auto", "pip install decord or: pip install av"),
        ("decord", "pip install decord"),
        ("pyav", "pip install av"),
    ],
)
def test_missing_packages_name_the_command(plain, monkeypatch, backend, command):
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(MediaError, match=f"{command}$"):
        load_video(plain, FrameRule(backend=backend))


def test_pyav_alone(plain, monkeypatch):
    monkeypatch.setattr(video, "find_spec", lambda name: True if name == "av" else None)
    assert load_video(plain, FrameRule()).decoder == "pyav"


# The child


def alive(pid: int) -> bool:
    """Whether the process runs, as one that ended and waits for its parent does not."""
    status = Path(f"/proc/{pid}/stat")
    if status.parent.parent.joinpath("self").exists():
        return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_decoder_that_hangs_is_ended(plain, monkeypatch):
    monkeypatch.setattr(video, "_CHILD", PATHS + HANGS)
    before = time.monotonic()
    with pytest.raises(MediaError, match=r"was not decoded within 1\.5 seconds"):
        load_video(plain, FrameRule(backend="pyav", timeout=1.5))
    assert time.monotonic() - before < 5
    assert not alive(int(Path(f"{plain}.pid").read_text()))


def test_a_decoder_that_crashes_is_one_sentence(plain, monkeypatch, capfd):
    monkeypatch.setattr(video, "_CHILD", "import os; os.abort()")
    with pytest.raises(MediaError, match="the decoder crashed"):
        load_video(plain, FrameRule())
    monkeypatch.setattr(video, "_CHILD", "raise RuntimeError('boom')")
    with pytest.raises(MediaError, match="the decoder crashed"):
        load_video(plain, FrameRule())
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("ending", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_no_child_is_left_behind(plain, tmp_path, ending):
    script = tmp_path / "script.py"  # no __main__ guard
    code = (
        "from pathlib import Path\nfrom trimtok_cli.media import video\nvideo._CHILD = "
        f"{PATHS + HANGS!r}\n"
    )
    script.write_text(
        code + f"video.load_video(Path({str(plain)!r}), video.FrameRule(backend='pyav'))\n"
    )
    told = Path(f"{plain}.pid")
    told.unlink(missing_ok=True)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: told.exists() and told.read_text())
        parent.send_signal(getattr(signal, ending))
        parent.wait(10)
        wait_for(lambda: not alive(int(told.read_text())))
    finally:
        parent.kill()
        parent.wait()


def wait_for(happened) -> None:
    until = time.monotonic() + 10
    while not happened() and time.monotonic() < until:
        time.sleep(0.02)
    assert happened()


def test_works_from_a_script_without_a_guard_and_without_torch(plain, tmp_path):
    script = tmp_path / "script.py"
    lines = [
        "import sys",
        "from pathlib import Path",
        "from trimtok_cli.media.video import FrameRule, load_video",
    ]
    lines += [
        f"print(len(load_video(Path({str(plain)!r}), FrameRule()).frames), 'torch' in sys.modules)"
    ]
    script.write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("8 False\n", "")
    code = "import sys, trimtok_cli.media.decoder_child; print('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        ).stdout
        == "False\n"
    )
