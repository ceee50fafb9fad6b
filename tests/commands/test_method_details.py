"""The description of each method repeats the facts of its class."""

import dataclasses

import pytest
from rich.cells import cell_len

from tests.commands.test_cli import run
from trimtok_cli.commands.method_details import method_details
from trimtok_cli.errors import UsageError
from trimtok_cli.models.catalog import CHECKPOINTS
from trimtok_cli.pruners.registry import METHODS


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)
def test_a_method_is_told_with_its_paper_docstrings_and_every_parameter(kind, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    text = method_details(kind.name)
    words = " ".join(text.split())
    assert kind.where in words and kind.paper in words and (kind.licence or "none") in words
    assert " ".join(kind.__doc__.split()) in words
    for field in dataclasses.fields(kind):
        assert field.name in words
    assert max(map(len, text.splitlines())) <= 90 and f"{kind.__name__}(keep" not in text


def test_a_parameter_is_told_with_what_it_takes_and_its_default():
    text = " ".join(method_details("trimtokenator").split())
    assert "--param align must be one of l2, sq_l2, cosine, mi; default l2" in text
    assert "0 < pool <= 1; default 0.8" in text
    assert "--budget-counts must be one of final, layer-mean; default final" in " ".join(
        method_details("fastv").split()
    )
    assert "no pruner at all" in method_details("dense")


def test_an_unknown_method_is_one_sentence_with_the_right_name():
    with pytest.raises(
        UsageError, match=r"divprun is not a method: .* \(did you mean divprune\?\)"
    ):
        method_details("divprun")


def test_the_command_says_it():
    done = run("methods", "trimtokenator")
    assert "pool" in done.stdout and "2509.00320" in done.stdout
    refused = run("methods", "trimtok", code=2)
    assert "trimtok is not a method" in refused.stderr and "trimtokenator?" in refused.stderr


@pytest.mark.parametrize("columns", [None, 200, 80, 60, 40])
@pytest.mark.parametrize(
    ("command", "typed"),
    [
        ("models", [each for c in CHECKPOINTS for each in (c.alias, c.hub_id)]),
        ("methods", [kind.name for kind in METHODS]),
    ],
)
def test_a_list_is_as_wide_as_the_terminal_and_cuts_no_name(command, typed, columns, monkeypatch):
    """None: no terminal limits it. A name that is longer than a line goes on in the next."""
    if columns:
        monkeypatch.setenv("COLUMNS", str(columns))
    said = run(command).stdout
    assert max(map(cell_len, said.splitlines())) <= (columns or 300)
    words = said.split() if columns != 40 else "".join(said.split())
    assert "…" not in said and [name for name in typed if name not in words] == []
