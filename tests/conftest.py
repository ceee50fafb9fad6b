"""Fixtures of all tests: tiny models, pictures, and a folder of its own for each test.

No test reaches the hub or reads the developer's settings.
"""

import gc
import json
import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
# Workers share the cores, so one thread each is fastest.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import stub_engine, tiny

# Test files that hold a fast path against a slow and obvious one. They must pass with every version
# of the libraries. `pytest -m oracle` runs them.
ORACLES = {
    "attention",
    "continuous",
    "families",
    "frame_times",
    "generation_config",
    "leaned_on",
    "not_numbers",
    "oracles",
    "own_loop",
    "packed_tower",
    "pixels",
    "published",
    "right_padding",
    "stage_masks",
    "staged_loop",
    "stages",
    "tower_signals",
    "tower_run",
    "user_text",
}


SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if item.path.stem.removeprefix("test_") in ORACLES:
            item.add_marker("oracle")


@pytest.fixture
def unbroken(caplog):
    """Fails a test in which a loop's step was run again.

    The loop repeats a broken step prompt by prompt and gives the same answers, which would hide
    the fault.
    """
    caplog.set_level("DEBUG", "trimtok")
    yield
    assert not [record for record in caplog.get_records("call") if "run again" in record.message]


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory) -> Path:
    return tiny.llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture(scope="session")
def adapter(llava_folder):
    from trimtok_cli.models.loading import load_model

    return load_model(str(llava_folder), device="cpu")


@pytest.fixture(scope="session", autouse=True)
def _heap_is_frozen() -> Iterator[None]:
    """The heap is frozen once for all tests, so that no run in them collects garbage to freeze it.

    That takes a quarter of a second each time: more than the run of a tiny model.
    """
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _prefills_are_padded() -> Iterator[None]:
    """Prompts of unequal length share a prefill, as on CUDA.

    A CPU's own rule would tell them apart, and padding would be tested less.
    """
    from trimtok_cli.generation import padding

    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(padding.PADDING, "cpu")
        yield


@pytest.fixture
def thawed(_heap_is_frozen) -> Iterator[None]:
    """A test whose runs freeze the heap themselves."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.fixture(autouse=True)
def _signals_are_heard() -> None:
    """Every test begins with the default signal handlers, because children inherit ignored signals.

    Signals may be ignored by the starter of the tests (nohup, a shell's background) or by a run
    that has closed.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.default_int_handler:
            signal.signal(
                number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            )


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch) -> None:
    """Every test works in a folder of its own.

    No test sees the developer's TRIMTOK_ settings or the width of the terminal.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    for key in [key for key in os.environ if key.startswith("TRIMTOK_")]:
        monkeypatch.delenv(key)


def picture(seed: int, width: int = 90, height: int = 84) -> Image.Image:
    """Smooth color fields, different for every seed."""
    small = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    """Seven images of different shapes, in natural order."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    paths = [folder / f"p{i}.png" for i in range(1, 8)]
    for i, path in enumerate(paths):
        picture(i, 60 + 17 * i, 140 - 13 * i).save(path)
    return paths


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """The models that were loaded; a stand-in takes the engine's place."""
    return stub_engine.install(monkeypatch)


@pytest.fixture
def bare_model(tmp_path) -> Path:
    """A folder that looks like a model's to whatever does not load it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    return folder


@pytest.fixture
def inputs(tmp_path) -> Path:
    """Six inputs, of which two fail; and a question file in which ids and questions repeat."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(1, 7):
        (folder / f"p{number}.png").write_text("x" * number if number not in (2, 5) else "")
    lines = [
        {"question_id": 7, "image": f"p{number}.png", "text": "What?", "category": number}
        for number in (1, 1, 2, 3, 1, 5)
    ]
    (folder / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
