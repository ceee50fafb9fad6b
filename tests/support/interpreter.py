"""Code run in a process of its own, in which Triton's kernels are interpreted on the CPU."""

import os
import subprocess
import sys
from pathlib import Path


def interpreted(code: str) -> subprocess.CompletedProcess[str]:
    """Triton reads TRITON_INTERPRET when it is imported."""
    paths = {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **paths}
    )
