"""Out of memory reaches the code that makes batches smaller: no handler on the way swallows it."""

import ast
from pathlib import Path

import trimtok_cli

PACKAGE = Path(trimtok_cli.__file__).parent

# The folders whose code runs on the device.
ON_DEVICE = ("models", "pruners", "generation", "engine", "evaluation", "bench")

# torch's error for memory that ran out is a RuntimeError.
BROAD = {"Exception", "BaseException", "RuntimeError"}

ALLOWED = {
    ("models/fitting.py", "_trial_prompt"),  # renders a chat template: no tensor
    ("models/catalog.py", "locate"),  # asks whether a name is a path: no tensor
    ("cuda_graphs.py", "_try"),  # gives up a shape, or warns
    ("engine/encoder.py", "_begin"),  # keeps the error, which is raised when its samples are due
}


def names(node: ast.AST | None) -> set[str]:
    """Every name and attribute in a piece of code."""
    found = set() if node is None else set(ast.walk(node))
    return {each.id for each in found if isinstance(each, ast.Name)} | {
        each.attr for each in found if isinstance(each, ast.Attribute)
    }


def lets_through(handler: ast.ExceptHandler) -> bool:
    """Whether a handler raises, asks whether memory ran out, or hands the error itself on."""
    body = ast.Module(handler.body, [])
    if any(isinstance(node, ast.Raise) for node in ast.walk(body)) or "out_of_memory" in names(
        body
    ):
        return True
    handed_on = [
        node
        for node in ast.walk(body)
        if isinstance(node, (ast.Assign, ast.Return, ast.Yield)) and node.value is not None
    ]
    return any(handler.name in names(node.value) for node in handed_on)


def swallows(tree: ast.AST) -> set[str]:
    """The functions that swallow an out-of-memory error."""
    found = set()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or names(node.type) & BROAD
                if broad and not lets_through(node):
                    found.add(function.name)
            suppresses = isinstance(node, ast.Call) and "suppress" in names(node.func)
            if suppresses and any(names(argument) & BROAD for argument in node.args):
                found.add(function.name)
    return found


def test_no_code_on_the_device_swallows_out_of_memory():
    found = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for folder in ON_DEVICE
        for path in (PACKAGE / folder).rglob("*.py")
        for name in swallows(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found <= ALLOWED, found - ALLOWED


def test_what_swallows_is_found():
    swallowing = (
        "def a():\n with suppress(TypeError, RuntimeError): x()\n"
        "def b():\n try: x()\n except Exception as error: log(error)\n"
        "def c():\n try: x()\n except: pass\n"
        "def d():\n try: x()\n except RuntimeError as error: return y(error)\n"
        "def e():\n try: x()\n except Exception as error:\n  if out_of_memory(error): raise\n"
        "def f():\n try: x()\n except ValueError: pass\n"
    )
    assert swallows(ast.parse(swallowing)) == {"a", "b", "c"}
