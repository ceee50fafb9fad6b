"""Memory and open files of a run do not grow with its inputs, but for what tells them apart.

INPUTS=100000 in the environment takes so many. The engine is a stand-in.
"""

import os
import tracemalloc
from pathlib import Path

import pytest

from tests.commands.test_cli import rows
from tests.support.stub_engine import call
from trimtok_cli.commands import run as run_command

# Bytes of an input: a hash of it and its six times, and in a run that is gone on with its key, the
# place of its line and its place in the order. A run's fixed costs are divided among these few.
FRESH, RESUMED = 400, 1200


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts handles as Linux does")
def test_a_long_run_holds_little_of_each_input_and_no_more_files(
    loaded, bare_model, inputs, monkeypatch
):
    many = int(os.environ.get("INPUTS", "2000"))
    arguments = ["caption", "-", "-m", bare_model, "-q"]
    handles: list[int] = []
    advance = run_command.Screen.advance

    def counted(self, *results):
        handles.append(len(os.listdir("/proc/self/fd")))
        advance(self, *results)

    monkeypatch.setattr(run_command.Screen, "advance", counted)
    (inputs / "p3.png").write_text("x")

    def peak(number: int, stdin: str, out: str) -> int:
        tracemalloc.start()
        done = call(*arguments, "-o", out, stdin=stdin)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert done.exit_code == 0 and len(rows(Path(out, "answers.jsonl"))) == number
        return found

    # Other names for one file, so that each is another input.
    names = [
        str(inputs) + "".join("/." + "/" * (each >> bit & 1) for bit in range(20)) + "/p3.png"
        for each in range(many)
    ]
    few = min(many // 4, 2000)
    text = "\n".join(names) + "\n"
    call(*arguments, "-o", "warm", stdin=names[0])
    # What standard input takes in these tests is no memory of the run.
    own = len(text) - len("\n".join(names[:few]))
    fresh = peak(many, text, "a") - peak(few, "\n".join(names[:few]), "b")
    print(f"{many} inputs: {(fresh - own) / (many - few):.0f} bytes of each")
    assert (fresh - own) / (many - few) < FRESH
    resumed = peak(many, text, "b") - peak(few, "\n".join(names[:few]), "b2")
    print(f"gone on with: {(resumed - own) / (many - few):.0f} bytes of each")
    assert (resumed - own) / (many - few) < RESUMED
    assert max(handles) - min(handles) <= 1
