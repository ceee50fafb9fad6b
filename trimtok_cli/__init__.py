"""trimtok: caption images and answer questions about them with most visual tokens pruned away.

The public names load on first use, so that importing the package (and `trimtok --help`) stays fast.
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "Sample": "trimtok_cli.data", "Result": "trimtok_cli.data", "TrimtokError": "trimtok_cli.errors",
    "load_model": "trimtok_cli.models", "build_pruner": "trimtok_cli.pruners", "answer_all": "trimtok_cli.engine",
    "Ask": "trimtok_cli.prepare", "answer": "trimtok_cli.engine", "trimtokenator": "trimtok_cli.pruners.trimtokenator",
}  # fmt: skip
__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
