"""The public names of trimtok under the name that it is installed by: `import trimtok`.

The installed `trimtok.py` is a copy of this file. It is no package, so no module exists twice.
"""

from typing import Any

import trimtok_cli

__all__ = list(vars(trimtok_cli)["__all__"])


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'trimtok' has no attribute {name!r}")
    return getattr(trimtok_cli, name)


def __dir__() -> list[str]:
    return list(__all__)
