"""What became of a process that is no child of the test's own."""

import os
import time
from pathlib import Path


def gone(pid: int) -> bool:
    """Whether a process ends within some seconds; the system may take time to reap it."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        stat = Path(f"/proc/{pid}/stat")
        if stat.is_file() and stat.read_text().split(")")[-1].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False
