"""The parts of other libraries that trimtok relies on exist, and are listed in one table."""

import ast
import importlib
from pathlib import Path

import pytest

from trimtok_cli.models.leaned_on import LEANED_ON

PACKAGE = Path(__file__).parents[2] / "trimtok_cli"


@pytest.mark.parametrize("leaned", LEANED_ON, ids=lambda leaned: leaned.name)
def test_every_part_that_is_leaned_on_exists(leaned):
    module, _, path = leaned.name.partition(":")
    found = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name, None)
    assert found is not None, leaned.why


def test_imports_from_inside_transformers_stand_in_the_table():
    """`from transformers import X` is public; a module below it may move with any release."""
    known, found = {leaned.name.partition(".forward")[0] for leaned in LEANED_ON}, set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers."):
                found |= {f"{node.module}:{alias.name}" for alias in node.names}
    assert found and all(any(name.startswith(each) for name in known) for each in found), found


def test_private_members_of_a_model_stand_in_the_table():
    """Private members may go with any release: `self.model._something(...)`."""
    known = {leaned.name.rpartition(".")[2] for leaned in LEANED_ON}
    called = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
            ):
                owner = ast.unparse(node.value)
                if owner.split(".")[-1] in (
                    "model",
                    "processor",
                    "tokenizer",
                    "image_processor",
                    "core",
                    "decoder",
                ):
                    called.add(node.attr)
    assert called and called <= known, called - known


def test_the_cache_goes_by_the_name_that_the_model_says(adapter):
    """The model takes its cache under either name; a third name would need one change."""

    class Old:
        def forward(self, past_key_values=None): ...

    class New:
        def forward(self, cache=None): ...

    from trimtok_cli.models.leaned_on import cache_argument

    assert [cache_argument(Old().forward), cache_argument(New().forward)] == [
        "past_key_values",
        "cache",
    ]
    assert cache_argument(adapter.model.get_decoder().forward) in ("past_key_values", "cache")
