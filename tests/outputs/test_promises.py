"""Every row of the tables of promises names tests that are there, are run, and read its settings."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PAGES = ("trimtok_cli/outputs/README.md",)


def promises() -> list[tuple[str, str]]:
    """(promise, what keeps it) for each row of the tables that a page has of promises."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for table in re.findall(r"^\| promise \|.*\n(?:\|.*\n)+", text, re.MULTILINE):
            found += [
                re.split(r" \| ", row.strip("| "), maxsplit=1) for row in table.split("\n")[2:]
            ]
    return [(row[0], row[1]) for row in found if len(row) == 2]


ROWS = promises()


def files_of(kept: str) -> list[Path]:
    """The files of tests that a row names; a name without a folder is in the folder before it."""
    files, folder = [], "outputs"
    for before, name in re.findall(r"`(?:tests/)?(?:(\w+)/)?(test_\w+)(?:\.py)?`", kept):
        folder = before or folder
        files.append(ROOT / "tests" / folder / f"{name}.py")
    return files


def is_skipped(test: ast.AST) -> bool:
    """Whether a mark skips a test whatever the machine; one for what is missing does not."""
    return any(
        re.search(r"mark\.(skip|xfail)\b(?!if)", ast.unparse(each))
        for each in getattr(test, "decorator_list", [])
    )


def test_the_pages_have_tables():
    assert len(ROWS) > 20


@pytest.mark.parametrize(("promise", "kept"), ROWS, ids=[row[0][:40] for row in ROWS])
def test_a_promise_names_tests_that_are_run(promise, kept):
    files = files_of(kept)
    assert promise and files, "no test is named"
    texts = [path.read_text(encoding="utf-8") for path in files]
    for text in texts:
        tests = [
            node
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        ]
        assert tests and not any(map(is_skipped, tests))
        assert not re.search(r"^pytestmark = .*(skip|gpu)", text, re.MULTILINE)
    for name in re.findall(r"\b([A-Z]{4,})(?:=\w+|`)", kept):
        assert any(f'"{name}"' in text for text in texts), f"{name} is read by none of them"
