"""The hub: a checkpoint is downloaded to the hub's local cache. Reads and runs none of its files.

The first request is short and is not repeated: without a network, a run begins at once with the
files in the cache, or ends with a sentence.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from trimtok_cli.errors import ModelError

log = logging.getLogger("trimtok")

FIRST_REQUEST = 10  # seconds

_SETTINGS = re.compile(r"[^/]+\.(json|jinja|model|txt|tiktoken)")

# The ways of naming weights, the preferred one first.
_WEIGHTS = (
    re.compile(r"model(-\d+-of-\d+)?\.safetensors"),
    re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin"),
    re.compile(r"(?!consolidated)[^/]+\.safetensors"),
)

_ADAPTER = re.compile(r"adapter_model\.(safetensors|bin)")


def fetch(hub_id: str, named_by: str, *, revision: str | None = None, code: bool = False) -> Path:
    """The folder of a checkpoint in the cache, after a download of the files that are missing.

    named_by: the option that named the checkpoint, for sentences. code: also download its Python
    files. Raises ModelError where neither the hub nor the cache has the checkpoint.
    """
    from huggingface_hub import HfApi, snapshot_download
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
        folder = cached(hub_id, revision)
        if folder is not None and not isinstance(error, RevisionNotFoundError):
            return folder
        raise ModelError(
            f"{named_by} cannot be loaded: {_reason(hub_id, revision, error)}."
        ) from error


def cached(hub_id: str, revision: str | None = None) -> Path | None:
    """The folder of a checkpoint in the cache, complete or not, or None. Asks no server."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "adapter_config.json"):
        path = try_to_load_from_cache(hub_id, name, revision=revision)
        if isinstance(path, str):
            return Path(path).parent
    return None


def wanted(names: Sequence[str], *, code: bool = False) -> list[str]:
    """The files of a repository that are loaded: settings and one set of weights.

    code: its Python files as well.
    """
    small = [name for name in names if _SETTINGS.fullmatch(name) or (code and name.endswith(".py"))]
    candidates = ([name for name in names if naming.fullmatch(name)] for naming in _WEIGHTS)
    weights = next(filter(None, candidates), [])
    adapters = [name for name in names if _ADAPTER.fullmatch(name) and name not in weights]
    return small + weights + adapters


def _literal(name: str) -> str:
    """A pattern that matches this name alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _reason(hub_id: str, revision: str | None, error: Exception) -> str:
    """Why a checkpoint cannot be downloaded, and what to do, by the hub's answer."""
    from huggingface_hub import errors

    if isinstance(error, errors.RevisionNotFoundError):
        return f"{hub_id} has no revision {revision}; check --revision"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{hub_id} is gated; ask for access on its page, then log in with `hf auth "
            "login` or HF_TOKEN"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
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
    cause = f"the hub answered {status}" if status else "the hub cannot be reached"
    return (
        f"{hub_id} is not wholly in the cache, and {cause}; check the network, or name a "
        "local folder"
    )
