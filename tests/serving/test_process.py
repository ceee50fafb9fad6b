"""The process of a server: a stand-in for vLLM that starts at once, has a child, and can be told.

The stand-in writes the ids of its processes into a file, and waits.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_walls import ROOT
from trimtok_cli.errors import TrimtokError
from trimtok_cli.serving.process import SERVER, run_server

# The server's own lines up to vLLM's import, and then the stand-in. deaf: it ignores SIGTERM.
STAND_IN = (
    SERVER.split("from vllm")[0]
    + """
import os, signal, subprocess, time
from pathlib import Path
if 'deaf' in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
ids = Path(sys.argv[1])
ids.with_suffix('.part').write_text(f'{os.getpid()} {child.pid}')
ids.with_suffix('.part').rename(ids)
time.sleep(600)
"""
)

COMMAND = f"""
import os, sys
import typer
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.interrupts import protected
from trimtok_cli.serving import process

process.PATIENCE = 0.5
STAND_IN = {STAND_IN!r}

@guarded
def serve() -> int:
    return process.run_server(words, os.environ, STAND_IN)

app = typer.Typer()
app.command()(serve)
words, sys.argv[1:] = sys.argv[1:], []
protected(app)
"""


def ended(number: int) -> bool:
    """Whether a process has ended; one that its parent has not waited for has."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def serving(tmp_path):
    """A function that starts the command: its process, and the ids of the server's two."""
    running = []

    def start(*arguments: str) -> tuple[subprocess.Popen, list[int]]:
        ids = tmp_path / "ids"
        command = [sys.executable, "-c", COMMAND, str(ids), *arguments]
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
        )
        running.append(process)
        while not ids.exists():
            assert process.poll() is None, process.stderr.read()
        return process, [int(number) for number in ids.read_text().split()]

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_server_that_ends_well_ends_the_command_well():
    assert run_server(["x"], os.environ, "sys.exit(0)") == 0
    assert run_server(["x"], os.environ, "assert sys.argv[2:] == ['x']") == 0


@pytest.mark.parametrize(
    ("code", "how"), [("sys.exit(3)", "exit code 3"), ("import os; os.abort()", "signal 6")]
)
def test_a_server_that_fails_is_one_sentence(code, how):
    with pytest.raises(TrimtokError, match=f"server ended \\({how}\\); its own messages"):
        run_server(["x"], os.environ, code)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("deaf", [(), ("deaf",)], ids=["", "deaf"])
def test_a_signal_ends_the_server_with_the_command(serving, number, deaf):
    process, ids = serving(*deaf)
    process.send_signal(number)
    _, told = process.communicate()
    assert process.returncode == 128 + number
    assert told == "error: interrupted\n"
    while not ended(ids[1]):  # its parent is gone, so the system waits for it
        pass
    assert ended(ids[0])


@pytest.mark.skipif(sys.platform != "linux", reason="a signal at the parent's death is Linux's")
def test_a_command_that_is_killed_leaves_no_server(serving):
    process, ids = serving()
    process.kill()
    process.wait()
    while not ended(ids[0]):
        pass
    os.kill(ids[1], signal.SIGKILL)  # vLLM ends its own children
    assert process.returncode == -signal.SIGKILL
