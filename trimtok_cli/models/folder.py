"""Folder: a checkpoint on disk, and how transformers loads each of its parts.

No code of a checkpoint runs unless it is trusted, and a part that cannot be loaded is one sentence.
Knows no family.
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

from trimtok_cli.device import out_of_memory
from trimtok_cli.errors import ModelError
from trimtok_cli.models.broken import Broken
from trimtok_cli.models.catalog import locate
from trimtok_cli.models.hub import fetch
from trimtok_cli.wording import brief, shortened

log = logging.getLogger("trimtok")


class Folder:
    """A checkpoint on this machine, whose parts transformers loads one after the other.

    named_by: the option that named the checkpoint, as the user wrote it, for sentences.
    trusted: whether the checkpoint's own Python code may run.
    """

    def __init__(self, path: Path, named_by: str, *, trusted: bool = False) -> None:
        self.path = path
        self.named_by = named_by
        self.trusted = trusted

    def load(self, part: str, from_pretrained: Callable[..., Any], **options: Any) -> Any:
        """Loads one part by its `from_pretrained`; ModelError with one sentence if that fails."""
        try:
            with no_dialogue():
                return from_pretrained(
                    str(self.path),
                    trust_remote_code=self.trusted,
                    local_files_only=not self.trusted,
                    **options,
                )
        except Exception as error:
            log.debug("%s: its %s cannot be loaded", self.named_by, part, exc_info=error)
            raise self.error(reason(part, error)) from error

    def error(self, reason: str) -> ModelError:
        """The sentence for a checkpoint that cannot be loaded for this reason."""
        return ModelError(f"{self.named_by} cannot be loaded: {reason}.")

    def placed(self, network: torch.nn.Module, device: torch.device) -> Any:
        """A loaded model on a device, ready to answer; ModelError where it does not fit."""
        try:
            return network.to(device).eval()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise self.too_large(device) from None

    def too_large(self, device: torch.device) -> ModelError:
        return ModelError(
            f"{self.named_by} does not fit into the memory of {device}: use a smaller model or "
            "--device cpu."
        )

    @contextlib.contextmanager
    def sentences(self) -> Iterator[None]:
        """Within this context, Broken becomes a ModelError."""
        try:
            yield
        except Broken as error:
            raise self.error(str(error)) from error


def find_folder(
    model: str, flag: str, *, revision: str | None = None, trusted: bool = False
) -> tuple[Folder, str]:
    """The folder of an alias, hub id or path, and its commit (`local` for a path).

    Raises UsageError for a name that means nothing, ModelError for one that cannot be downloaded.
    """
    source = locate(model, flag)
    named_by = f"{flag} {model}"
    if isinstance(source, Path):
        return Folder(source, named_by, trusted=trusted), revision or "local"
    path = fetch(source, named_by, revision=revision, code=trusted)
    return Folder(path, named_by, trusted=trusted), path.name


def strip(config: transformers.PretrainedConfig) -> None:
    """Removes settings by which a configuration chooses kernels, or weights outside its folder.

    transformers may fetch an implementation that is named there from the hub.
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
def no_dialogue() -> Iterator[None]:
    """Within this context, no library reads standard input or prints to standard output.

    Standard input may hold the user's paths, and a path that begins with y would answer a question.
    Standard output may be where the answers go.
    """
    stdin = sys.stdin
    printed = io.StringIO()
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
    """Native code prints past `sys.stdout`: within this context, to standard error."""
    try:
        saved = os.dup(1)
    except OSError:  # standard output is closed
        yield
        return
    try:
        with contextlib.suppress(OSError):
            os.dup2(2, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def reason(part: str, error: Exception) -> str:
    """Why a part of a checkpoint cannot be loaded, and what to do.

    The library's own advice is left out: it is for programmers.
    """
    text = " ".join(str(error).split())
    if out_of_memory(error) or "not enough memory" in text:
        elsewhere = " or --device cpu" if "CUDA" in text else ""
        return f"there is not memory enough for its {part}; use a smaller model{elsewhere}"
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
        remedy = f": pip install {package[1]}" if package else ""
        return f"for its {part} a package is not installed ({first_sentence(text)}){remedy}"
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
    return (
        f"its {part} cannot be read by transformers {transformers.__version__}"
        f"{_in_brackets(error, text)}; check the folder"
    )


def _in_brackets(error: Exception, text: str) -> str:
    """The library's words on an error in brackets, where they are of use to a user; else ""."""
    # A setting that the library's class of settings refuses.
    if type(error).__name__.startswith("StrictDataclass"):
        return f" ({text.split('Error: ', 1)[-1][:160].rstrip('.')})"
    if isinstance(error, KeyError):
        return f" ({brief(text)} is not known)"
    # Other errors speak to programmers.
    if isinstance(error, (OSError, ValueError, RuntimeError)) and text:
        return f" ({first_sentence(text)})"
    return ""


def first_sentence(text: str) -> str:
    """The first sentence of a library's message, shortened, without its full stop."""
    return shortened(re.split(r"(?<=[\w)'\"`])[.!?] ", " ".join(text.split()))[0].rstrip("."))
