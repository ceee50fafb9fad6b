"""The walls of the house, executed: what may import what, how fast help answers, and that nothing outside asks for names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "trimtok_cli"


@pytest.mark.parametrize(
    "module",
    ["cli", "commands.caption", "commands.bench", "config", "data", "readers", "writers.answers", "report.summary", "errors"]
    + [f"bench.{name}" for name in ("spec", "floor", "derive", "tables")],
)
def test_light_modules_import_nothing_heavy(module):
    code = f"import sys, trimtok_cli.{module}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_help_and_usage_errors_answer_without_torch():
    code = (
        "import sys\nfrom trimtok_cli.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules, file=sys.stderr)"
    )
    for args in (
        ["--help"],
        ["caption", "--help"],
        ["caption", "nowhere"],
        ["vqa", "nowhere.jsonl"],
        ["caption", ".", "--batch-size", "0"],
    ):
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=ROOT)
        assert done.stderr.strip().endswith("False"), (args, done.stderr)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("pruners", ("transformers", "trimtok_cli.models", "trimtok_cli.stages", "trimtok_cli.decoding", "trimtok_cli.engine")),
        ("models", ("trimtok_cli.pruners", "trimtok_cli.stages", "trimtok_cli.engine")),
        ("report", ("torch", "transformers", "trimtok_cli.models", "trimtok_cli.pruners", "trimtok_cli.engine")),
        ("writers", ("torch", "transformers", "trimtok_cli.models", "trimtok_cli.engine")),
        ("readers", ("torch", "transformers", "trimtok_cli.models", "trimtok_cli.engine")),
        ("media", ("torch", "transformers", "trimtok_cli.models", "trimtok_cli.engine")),
    ],
)
def test_walls(folder, forbidden):
    files = sorted((PACKAGE / folder).glob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            assert not any(name == wall or name.startswith(wall + ".") for wall in forbidden), f"{path.name} imports {name}"


def test_nothing_outside_asks_which_method_or_family_runs():
    """A branch on a name outside its folder means that the interface is wrong."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.parent.name not in ("pruners", "models")]
    texts = [ast.unparse(node) for path in paths for node in ast.walk(parsed(path)) if isinstance(node, ast.Compare)]
    assert len(texts) > 100
    assert [text for text in texts if any(f"'{name}'" in text for name in ("trimtokenator", "dense", "llava"))] == []


def test_lint():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_files_and_functions_stay_small():
    paths = [*PACKAGE.rglob("*.py")]
    assert len(paths) > 50
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 300, path
        tree = ast.parse(text)
        assert ast.get_docstring(tree), f"{path} does not say what it is"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"
