"""The walls of the package, as tests: which folder may import which, and which stay light.

Other tests hold the sizes of files, the types, and the rule that no folder asks for another one's
names.
"""

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import trimtok_cli

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "trimtok_cli"
FILES = sorted(PACKAGE.rglob("*.py"))

# The folders that each folder may import. Every folder may import the shared words, which are the
# modules beside the folders.
MAY = {
    "readers": {"media"},
    "media": set(),
    "models": {"media"},
    "prepare": {"media", "models"},
    "pruners": set(),
    "generation": set(),
    "engine": {"generation", "models", "prepare", "pruners"},
    "evaluation": {"engine", "generation", "models", "prepare", "pruners", "readers"},
    "outputs": {"evaluation", "media"},
    "replicas": set(),
    "on_vllm": {"engine", "generation", "models", "pruners"},
    "on_ray": {"models", "replicas"},
    "bench": {"engine", "generation", "models", "outputs", "prepare", "pruners", "readers"},
    "serving": {"models", "on_vllm", "pruners"},
    "commands": {
        "bench",
        "engine",
        "evaluation",
        "generation",
        "media",
        "models",
        "on_vllm",
        "on_ray",
        "outputs",
        "prepare",
        "pruners",
        "readers",
        "replicas",
        "serving",
    },
}
# Folders whose modules may import torch and transformers at the top. The other folders and the
# other shared words answer without them.
HEAVY = (
    "models",
    "pruners",
    "generation",
    "engine",
    "prepare",
    "evaluation",
    "bench",
    "on_vllm",
    "serving",
)
HEAVY_WORDS = ("cuda_graphs", "device", "tokens")
LIGHT_IN_HEAVY = (
    "models.catalog",
    "models.checkpoint",
    "models.hub",
    "models.identity",
    "on_vllm.options",
    "on_vllm.plugin",
    "on_vllm.versions",
    "prepare.processes",
    "evaluation.answer_files",
    "evaluation.headline",
    "evaluation.joining",
    "evaluation.grid_scores",
    "evaluation.grid_spec",
    "evaluation.grid_table",
    "evaluation.proportion",
    "evaluation.statistics",
    "evaluation.summary",
    "evaluation.sweep",
    "evaluation.words",
    "bench.spec",
    "bench.roofline",
    "bench.derive",
    "bench.tables",
    "bench.document",
    "bench.expected",
    "serving.command_line",
    "serving.plugin",
    "serving.process",
)
LIGHT_FOLDERS = ("trimtok_cli.evaluation.metrics", "trimtok_cli.evaluation.datasets")


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in FILES}


def folder_of(name: str) -> str:
    """The folder of a module, or the module itself if it lies beside the folders."""
    return name.split(".")[1] if "." in name else ""


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside a function.

    `from package import module` counts as that module.
    """
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & NAMES.keys()
            found |= inner or {node.module}
    return found


def test_every_folder_has_its_walls():
    folders = {
        path.relative_to(PACKAGE).parts[0]
        for path in FILES
        if len(path.relative_to(PACKAGE).parts) > 1
    }
    assert folders == MAY.keys()


def test_the_figure_has_no_arrow_that_runs_back():
    order: list[str] = []
    while left := [folder for folder in MAY if folder not in order and MAY[folder] <= {*order}]:
        order += left
    assert sorted(order) == sorted(MAY)


@pytest.mark.parametrize("folder", MAY)
def test_a_folder_imports_only_what_it_may(folder):
    shared = {path.stem for path in PACKAGE.glob("*.py")} | {""}
    files = [path for path in FILES if path.is_relative_to(PACKAGE / folder)]
    assert files
    for path in files:
        for name in imports(path):
            if name.split(".")[0] == "trimtok_cli":
                assert folder_of(name) in MAY[folder] | {folder} | shared, (
                    f"{path.relative_to(ROOT)} imports {name}"
                )


def test_pruners_and_outputs_know_no_library_of_models():
    for folder, forbidden in (
        ("pruners", {"transformers"}),
        ("outputs", {"torch", "transformers"}),
    ):
        used = {
            name.split(".")[0]
            for path in (PACKAGE / folder).rglob("*.py")
            for name in imports(path)
        }
        assert "trimtok_cli" in used and not used & forbidden


def test_metrics_know_nothing_but_each_other():
    used = {
        name
        for path in (PACKAGE / "evaluation" / "metrics").glob("*.py")
        for name in imports(path)
        if name.split(".")[0] not in sys.stdlib_module_names
    }
    assert used and all(name.startswith("trimtok_cli.evaluation.metrics.") for name in used)


def test_shared_words_import_no_folder_and_nothing_goes_round():
    words = [
        path for path in PACKAGE.glob("*.py") if path.stem not in ("cli", "__main__", "__init__")
    ]
    used = {(path.name, name) for path in words for name in imports(path)}
    assert len(used) > 20 and not [pair for pair in used if folder_of(pair[1]) in MAY]
    edges = {
        name: {other for other in imports(path) if other in NAMES and other != name}
        for name, path in NAMES.items()
    }
    done: set[str] = set()
    while left := {name for name in edges if name not in done and edges[name] <= done}:
        done |= left
    assert done == edges.keys(), (
        f"these import each other in a circle, or from one: {sorted(edges.keys() - done)}"
    )


def test_light_modules_import_nothing_heavy():
    """One process imports all light modules; each is tried alone only if that loads torch."""
    light = [
        name
        for name in NAMES
        if folder_of(name) not in (*HEAVY, *HEAVY_WORDS) and not name.endswith("__main__")
    ]
    light += [f"trimtok_cli.{name}" for name in LIGHT_IN_HEAVY]
    light += [name for name in NAMES if name.startswith(LIGHT_FOLDERS)]
    assert len(light) > 50

    def heavy(names: list[str]) -> str:
        code = (
            f"import sys, {', '.join(names)}; print(*({{'torch', 'torchvision', "
            f"'transformers'}} & set(sys.modules)))"
        )
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
        ).stdout.strip()

    if heavy(light):
        assert not [name for name in light if heavy([name])]


def test_help_and_usage_errors_answer_without_torch():
    code = (
        "import sys\nfrom trimtok_cli.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules, "
        "file=sys.stderr)"
    )
    for args in (
        ["--help"],
        ["caption", "--help"],
        ["caption", "nowhere"],
        ["vqa", "nowhere.jsonl"],
        ["check", "--help"],
        ["check", "nowhere"],
        ["check", ".", "--model", "nowhere"],
        ["caption", ".", "--batch-size", "0"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=ROOT
        )
        assert done.stderr.strip().endswith("False"), (args, done.stderr)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_nothing_outside_asks_which_method_or_family_runs():
    """A branch on the name of a method or family outside its folder shows a wrong interface."""
    paths = [
        path for path in FILES if path.relative_to(PACKAGE).parts[0] not in ("pruners", "models")
    ]
    texts = [
        ast.unparse(node)
        for path in paths
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Compare)
    ]
    assert len(texts) > 100
    assert [
        text
        for text in texts
        if any(f"'{name}'" in text for name in ("trimtokenator", "dense", "llava"))
    ] == []


def test_type_checkers_are_told_the_public_names_where_they_are():
    told = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    places = {
        alias.asname: node.module
        for node in told.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert places == trimtok_cli._PUBLIC and {*places} < {*dir(trimtok_cli)}
    assert (PACKAGE / "py.typed").exists()


def test_lint():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "."], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--diff", "."],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout
    ours = (path.read_text(encoding="utf-8") for path in ROOT.glob("t*/**/*.py"))
    assert not any("# fmt:" + " " in text for text in ours), "one formatter, for every line"


@pytest.mark.skipif(not find_spec("mypy"), reason="mypy is not installed")
def test_types():
    """pyproject.toml says which folders mypy checks strictly, leniently, or not yet."""
    done = subprocess.run([sys.executable, "-m", "mypy"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_and_functions_stay_small():
    assert len(FILES) > 100
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 300, path
        tree = ast.parse(text)
        assert ast.get_docstring(tree), f"{path} does not say what it is"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"
