"""How transformers loads each part of a folder: no code of a checkpoint runs unless it is trusted,
and what cannot be loaded is one sentence. Knows no family.
"""

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from trimtok_cli.errors import ModelError
from trimtok_cli.models.broken import Broken
from trimtok_cli.models.catalog import locate
from trimtok_cli.models.hub import fetch
from trimtok_cli.wording import brief, shortened

log = logging.getLogger("trimtok")


class Folder:
    """A checkpoint on this machine, out of which transformers loads one part after the other.

    said: the option that named it, as the user wrote it, for sentences; trusted: whether its own
    Python code may run.
    """

    def __init__(self, path: Path, said: str, *, trusted: bool = False) -> None:
        self.path, self.said, self.trusted = path, said, trusted

    def load(self, part: str, from_pretrained: Callable[..., Any], **options: Any) -> Any:
        """What `from_pretrained` makes of the folder. ModelError with one sentence, whatever goes
        wrong.
        """
        try:
            with unasked():
                return from_pretrained(
                    str(self.path),
                    trust_remote_code=self.trusted,
                    local_files_only=not self.trusted,
                    **options,
                )
        except Exception as error:
            log.debug("%s: its %s cannot be loaded", self.said, part, exc_info=error)
            raise self.error(reason(part, error)) from error

    def error(self, reason: str) -> ModelError:
        return ModelError(f"{self.said} cannot be loaded: {reason}.")

    @contextlib.contextmanager
    def sentences(self) -> Iterator[None]:
        """While it lasts, Broken becomes a ModelError."""
        try:
            yield
        except Broken as error:
            raise self.error(str(error)) from error


def find_folder(
    model: str, flag: str, *, revision: str | None = None, trusted: bool = False
) -> tuple[Folder, str]:
    """A checkpoint by alias, hub id or folder, and its commit (`local` for a folder). UsageError or
    ModelError.
    """
    source, said = locate(model, flag), f"{flag} {model}"
    if isinstance(source, Path):
        return Folder(source, said, trusted=trusted), revision or "local"
    path = fetch(source, said, revision=revision, code=trusted)
    return Folder(path, said, trusted=trusted), path.name


def strip(config: transformers.PretrainedConfig) -> None:
    """Takes out of a configuration how the library is to run it and where else its weights are:
    that is not a file's to say.

    An implementation that it names may be a kernel which the library fetches from the hub.
    """
    for name in (
        "fusion_config",
        "distributed_config",
        "transformers_weights",
        "_experts_implementation_internal",
    ):
        if vars(config).get(name) is not None:
            log.debug("config.json says %s, which is not asked for here", name)
            setattr(config, name, None)
    for part in vars(config).values():
        if isinstance(part, transformers.PretrainedConfig):
            strip(part)


@contextlib.contextmanager
def unasked() -> Iterator[None]:
    """While it lasts, whoever asks on standard input is told nothing, and whatever a library prints
    stays off standard output.

    Standard input holds the user's paths, of which one may begin with y; standard output may be the
    answers.
    """
    stdin, printed = sys.stdin, io.StringIO()
    with (
        open(os.devnull, encoding="utf-8") as nothing,
        _native_prints_on_stderr(),
        contextlib.redirect_stdout(printed),
    ):
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = stdin
    if printed.getvalue().strip():
        log.debug("while loading: %s", printed.getvalue().strip())


@contextlib.contextmanager
def _native_prints_on_stderr() -> Iterator[None]:
    """What is no Python prints past `sys.stdout`."""
    try:
        kept = os.dup(1)
    except OSError:  # standard output is closed
        yield
        return
    try:
        with contextlib.suppress(OSError):
            os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def reason(part: str, error: Exception) -> str:
    """Why a part of a checkpoint cannot be loaded and what to do, without the library's own advice,
    which is for programmers.
    """
    text = " ".join(str(error).split())
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "not enough memory" in text:
        return f"there is not memory enough for its {part}; use a smaller model"
    if "trust_remote_code" in text or "custom code" in text:
        return (
            f"for its {part} it would run Python code of its own; read that code, and add "
            "--trust-remote-code if you trust it, "
            "or use another checkpoint"
        )
    if "num2words" in text:
        return "the processor of this family needs num2words: pip install 'trimtok[smolvlm]'"
    if isinstance(error, ImportError):
        package = re.search(r"pip install (?:-U |--upgrade )?([\w\-\[\]]+)", text)
        what_to_do = f": pip install {package[1]}" if package else ""
        return f"for its {part} a package is not installed ({_first_sentence(text)}){what_to_do}"
    if isinstance(error, OSError) and error.strerror:
        return f"its {part} cannot be read ({error.strerror}); check the folder"
    if (
        "weights_only" in text
        or "Unsupported" in type(error).__name__
        or "Unpickling" in type(error).__name__
    ):
        return (
            f"for its {part} it has a pickle that holds more than tensors, or is damaged; "
            "use a checkpoint with safetensors"
        )
    if type(error).__name__.startswith(
        "StrictDataclass"
    ):  # a setting that the library's class of settings refuses
        said = text.split("Error: ", 1)[-1][:160].rstrip(".")
        return (
            f"its {part} cannot be read by transformers {transformers.__version__} ({said}); "
            "check the folder"
        )
    told = (
        isinstance(error, (OSError, ValueError, RuntimeError)) and text
    )  # else it speaks to programmers
    said = (
        f" ({brief(text)} is not known)"
        if isinstance(error, KeyError)
        else f" ({_first_sentence(text)})"
        if told
        else ""
    )
    return (
        f"its {part} cannot be read by transformers {transformers.__version__}{said}; check "
        "the folder"
    )


def _first_sentence(text: str) -> str:
    return shortened(re.split(r"(?<=[\w)'\"`])[.!?] ", " ".join(text.split()))[0].rstrip("."))
