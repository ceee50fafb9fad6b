"""trimtok: caption images and answer questions about them with most visual tokens pruned away.

The public names load on first use, so that importing the package (and `trimtok --help`) stays fast.
`__init__.pyi` tells type checkers the same names.
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "Ask": "trimtok_cli.prepare.sample",
    "Result": "trimtok_cli.data",
    "Sample": "trimtok_cli.data",
    "TrimTokenator": "trimtok_cli.pruners.methods.trimtokenator",
    "TrimtokError": "trimtok_cli.errors",
    "answer": "trimtok_cli.engine.answer",
    "answer_all": "trimtok_cli.engine.stream",
    "build_pruner": "trimtok_cli.pruners.registry",
    "compare_all": "trimtok_cli.evaluation.compare",
    "load_model": "trimtok_cli.models.loading",
    "pruned": "trimtok_cli.engine.own_loop",
    "trimtokenator": "trimtok_cli.pruners.methods.trimtokenator",
}
__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
