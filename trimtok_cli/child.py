"""The command line of a child Python that can import what this one can. Knows nothing of what the child does."""

import json
import sys

# Of the parent's __main__ the child knows nothing: a plain script may start children without being run again by each of them.
_PATHS = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "


def command(code: str, *arguments: str) -> list[str]:
    """Runs `code`, whose arguments begin at sys.argv[2]."""
    paths = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
    return [sys.executable, "-P", "-c", _PATHS + code, paths, *arguments]
