"""A checkpoint on the hub becomes a folder in the hub's local cache. Downloads files; reads and
runs none of them.

The first request is short and is not repeated: without a network, a run begins at once with what
the cache holds, or ends with a sentence.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from trimtok_cli.errors import ModelError

log = logging.getLogger("trimtok")

FIRST_REQUEST = 10  # seconds

_SETTINGS = re.compile(r"[^/]+\.(json|jinja|model|txt|tiktoken)")

_WEIGHTS = (
    re.compile(r"model(-\d+-of-\d+)?\.safetensors"),
    re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin"),
    re.compile(r"(?!consolidated)[^/]+\.safetensors"),
)

_ADAPTER = re.compile(r"adapter_model\.(safetensors|bin)")


def fetch(hub_id: str, said: str, *, revision: str | None = None, code: bool = False) -> Path:
    """The folder that holds a checkpoint, downloaded as far as it is not there. `said` is the
    option that named it.

    code: the checkpoint's own Python files as well. ModelError where it can be had neither from the
    hub nor from the cache.
    """
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        info = HfApi().model_info(hub_id, revision=revision, timeout=FIRST_REQUEST)
        names = wanted([file.rfilename for file in info.siblings or []], code=code)
        return Path(
            snapshot_download(
                hub_id, revision=revision, allow_patterns=[_literal(name) for name in names]
            )
        )
    except Exception as error:
        log.debug("%s cannot be had from the hub", hub_id, exc_info=error)
        here = [
            try_to_load_from_cache(hub_id, name, revision=revision)
            for name in ("config.json", "adapter_config.json")
        ]
        folders = [Path(path).parent for path in here if isinstance(path, str)]
        if folders and not isinstance(error, RevisionNotFoundError):
            return folders[0]
        raise ModelError(f"{said} cannot be loaded: {_why(hub_id, revision, error)}.") from error


def wanted(names: Sequence[str], *, code: bool = False) -> list[str]:
    """Of a repository's files those that are loaded: settings at its top, one kind of weights, with
    `code` its Python files.
    """
    weights = next(
        (found for kind in _WEIGHTS if (found := [name for name in names if kind.fullmatch(name)])),
        [],
    )
    weights += [name for name in names if _ADAPTER.fullmatch(name) and name not in weights]
    more = [name for name in names if _SETTINGS.fullmatch(name) or (code and name.endswith(".py"))]
    return more + weights


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _why(hub_id: str, revision: str | None, error: Exception) -> str:
    """What is wrong and what to do, by the kind of answer that the hub gave."""
    from huggingface_hub import errors

    if isinstance(error, errors.RevisionNotFoundError):
        return f"{hub_id} has no revision {revision}; check --revision"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{hub_id} is gated; ask for access on its page, then log in with `hf auth "
            "login` or HF_TOKEN"
        )
    answer = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RepositoryNotFoundError) or answer == 401:
        return (
            f"the hub has no {hub_id}, or keeps it private; check the name, or log in with "
            "`hf auth login` or HF_TOKEN"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"{hub_id} is not in the cache, and HF_HUB_OFFLINE forbids to look on the hub; "
            "unset it, or name a local folder"
        )
    if isinstance(error, OSError) and error.errno:
        return (
            f"{hub_id} cannot be written to the cache ({error.strerror}); make room, or set HF_HOME"
        )
    found = f"the hub answered {answer}" if answer else "the hub cannot be reached"
    return (
        f"{hub_id} is not wholly in the cache, and {found}; check the network, or name a "
        "local folder"
    )
