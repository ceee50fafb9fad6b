"""A run without a model: an engine that answers at once, and a disk that fails at the n-th call.

All else is the program itself: readers, options, files and exit codes. Loads no torch.
"""

import hashlib
import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BytesIO, TextIOWrapper
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.main import get_command

from trimtok_cli.data import Result, Seconds, Setting, TokenCounts

# What a second run of the same line may write otherwise: times, and names made of the run's.
TIMES = {"timing_ms", "throughput", "started", "run", "answer_id"}


def answer_all(
    adapter, pruner, samples, ask, *, batch_size=1, workers=0, processes=None, shared=None
) -> Iterator[Result]:
    """Answers what the file holds; an empty or missing file fails. Reads ahead as batches do."""
    samples = iter(samples)
    while batch := list(islice(samples, batch_size or 4)):
        for sample in batch:
            text = sample.images[0].read_text() if sample.images[0].exists() else ""
            asked = f"{sample.names}{sample.question}{sample.turn}"
            answered = {
                "answer": f"ünï {text} {hashlib.sha256(asked.encode()).hexdigest()[:8]}",
                "finish": "stop" if len(text) % 2 else "length",
                "tokens": TokenCounts(5, 36, 6, 6.0, len(text)),
                "notes": ("long",) * (len(text) > 2),
                "seconds": Seconds(decode=0.001 * len(text)),
            }
            failed = {"error": f"{sample.names[0]} is empty", "error_class": "MediaError"}
            yield Result(
                sample=sample,
                question=sample.question or ask.prompt,
                setting=Setting("stub", "6"),
                **(answered if text else failed),
            )


def fake(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> None:
    module = types.ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


def install(monkeypatch: pytest.MonkeyPatch, engine: Callable = answer_all) -> list[str]:
    """Puts the stub in the engine's place; the list tells of each model that was loaded."""
    from trimtok_cli.commands import run

    loaded: list[str] = []

    def load(config, screen, meanwhile=None):
        loaded.append(config.model)
        return SimpleNamespace(device=SimpleNamespace(type="cpu")), SimpleNamespace(
            prompt=config.prompt
        )

    fake(
        monkeypatch,
        "trimtok_cli.pruners.registry",
        build_pruner=lambda *_: SimpleNamespace(setting=Setting("stub", "6")),
        own_params=lambda *_: {},
        check_idle=lambda *_: None,
    )
    fake(monkeypatch, "trimtok_cli.engine.stream", answer_all=engine)
    fake(monkeypatch, "trimtok_cli.engine.prompt_stage", check_method=lambda *_: None)
    monkeypatch.setattr(run, "load", load)
    monkeypatch.setattr(
        run, "describe", lambda _: {"name": "m", "commit": "local", "dtype": "float32"}
    )
    monkeypatch.setattr(run, "generation", lambda *_: {"max_new_tokens": {"value": 5}})
    monkeypatch.setattr(run, "check_video", lambda *_: None)
    return loaded


@cache
def command():
    """The program, made once: that takes longer than these runs."""
    from trimtok_cli.cli import app

    return get_command(app)


def call(*arguments: object, stdin: str = "") -> SimpleNamespace:
    """One command line as a user sees its end: exit_code, stdout and stderr."""
    streams = {
        name: TextIOWrapper(BytesIO(), "utf-8", errors="backslashreplace")  # as main opens them
        for name in ("stdout", "stderr")
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", TextIOWrapper(BytesIO(stdin.encode()), "utf-8"))
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        code = command().main([str(each) for each in arguments], standalone_mode=False)
    for stream in streams.values():
        stream.flush()
    said = {name: stream.buffer.getvalue().decode() for name, stream in streams.items()}
    return SimpleNamespace(exit_code=code or 0, **said)


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {name: without_times(each) for name, each in value.items() if name not in TIMES}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict[str, object]:
    """Every file of a folder, whole, without times and run names."""
    found: dict[str, object] = {}
    for path in sorted(folder.iterdir()):
        text = path.read_text(encoding="utf-8")
        assert text.endswith("\n"), path
        if path.suffix == ".jsonl":
            found[path.name] = [
                json.dumps(without_times(json.loads(line))) for line in text.splitlines()
            ]
        else:
            found[path.name] = json.dumps(without_times(json.loads(text)))
    return found


class Died(BaseException):
    """Stands for the end of the process: nothing is written after it."""


class Disk:
    """Counts the calls that change a disk, and at the n-th has the process die or the call fail.

    n: 0 counts alone. half: the n-th call is done first, and of a write the first half. code: the
    error that the call raises instead, and every later one if `lasting`.
    """

    def __init__(self, n: int = 0, *, half: bool = False, code: int = 0, lasting: bool = False):
        self.n, self.half, self.code, self.lasting = n, half, code, lasting
        self.calls: list[str] = []
        self.dead = False

    def take(self, name: str, do: Callable, halfway: Callable | None = None):
        if self.dead:
            raise Died
        self.calls.append(name)
        due = len(self.calls) == self.n or (self.lasting and 0 < self.n < len(self.calls))
        if not due:
            return do()
        if self.half:
            with suppress(OSError):
                (halfway or do)()
        if self.code:
            raise OSError(self.code, os.strerror(self.code))
        self.dead = True
        raise Died

    def wrapped(self, name: str, do: Callable) -> Callable:
        return lambda *given, **named: self.take(name, lambda: do(*given, **named))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        opened = Path.open

        def open_counted(path, mode="r", *given, **named):
            if not set(mode) & set("xwa+"):
                return opened(path, mode, *given, **named)
            file = self.take("open", lambda: opened(path, mode, *given, **named))
            return CountedFile(self, file)

        with pytest.MonkeyPatch.context() as patch:
            for name in ("fsync", "replace", "unlink", "truncate", "ftruncate", "mkdir", "rmdir"):
                patch.setattr(os, name, self.wrapped(name, getattr(os, name)))
            patch.setattr(Path, "open", open_counted)
            pwrite = os.pwrite
            patch.setattr(
                os,
                "pwrite",
                lambda file, data, at: self.take(
                    "pwrite",
                    lambda: pwrite(file, data, at),
                    lambda: pwrite(file, data[: len(data) // 2], at),
                ),
            )
            yield


class CountedFile:
    def __init__(self, disk: Disk, file) -> None:
        self.disk, self.file = disk, file

    def write(self, data) -> int:
        half = bytes(data)[: len(data) // 2]
        return self.disk.take("write", lambda: self.file.write(data), lambda: self.file.write(half))

    def truncate(self, size: int) -> int:
        return self.disk.take("truncate", lambda: self.file.truncate(size))

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str):
        return getattr(self.file, name)
