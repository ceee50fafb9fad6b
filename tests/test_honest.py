"""Every test can fail: each way through a test asserts something, and nothing swallows a failure.

The checks read the source of the tests and know nothing of the package.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Functions of pytest that fail a test by themselves, as an assertion does.
WAITS = {
    "raises",
    "warns",
    "deprecated_call",
    "fail",
}
BROAD = {"AssertionError", "Exception", "BaseException"}
# Definitions: their bodies run elsewhere.
LEFT_ALONE = ast.FunctionDef | ast.Lambda | ast.ClassDef
KEEP_LENGTH = {"enumerate", "zip", "sorted", "reversed", "list", "tuple", "set", "chain"}


@cache
def module(name: str) -> dict[str, ast.AST]:
    """The functions and the values of constants in a module of tests, by name.

    Names that the module imports from other modules of tests count as well.
    """
    found: dict[str, ast.AST] = {}
    file = HERE.joinpath(*name.split("."))
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                found |= {target.id: node.value} if isinstance(target, ast.Name) else {}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests."):
            there = module(node.module.removeprefix("tests."))
            found |= {
                alias.asname or alias.name: there[alias.name]
                for alias in node.names
                if alias.name in there
            }
    return found


def inside(node: ast.AST, *kinds: type) -> list[ast.AST]:
    """The nodes of these kinds that run when `node` runs.

    The bodies of functions and classes that `node` defines are left out.
    """
    found = [node] if isinstance(node, kinds) else []
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, LEFT_ALONE):
            found += inside(child, *kinds)
    return found


class Reader:
    """Judges whether a test asserts something.

    The reader knows the names of the test's module, and the functions and values that the test
    defines itself.
    """

    def __init__(
        self, known: dict[str, ast.AST], test: ast.FunctionDef, callers: tuple[str, ...] = ()
    ) -> None:
        self.test, self.callers = test, (*callers, test.name)
        self.known = dict(known)
        for node in ast.walk(test):
            if isinstance(node, ast.FunctionDef) and node is not test:
                self.known[node.name] = node
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.known[node.targets[0].id] = node.value

    def asserts(self) -> bool:
        return self.block(self.test.body)

    def block(self, body: list[ast.stmt]) -> bool:
        """Whether every way through these statements asserts something."""
        for node in body:
            if self.statement(node):
                return True
            if self.leaves([node]):
                return False
        return False

    def leaves(
        self, body: list[ast.stmt], ways: tuple[type, ...] = (ast.Return, ast.Continue, ast.Break)
    ) -> bool:
        """Whether one of the `ways` out of these statements comes before their first assertion."""
        for node in body:
            if isinstance(node, ways):
                return True
            if self.statement(node):
                return False
            inner = (ast.Return,) if isinstance(node, ast.For | ast.While) else ways
            blocks = [getattr(node, name, []) for name in ("body", "orelse", "finalbody")]
            blocks += [handler.body for handler in getattr(node, "handlers", [])]
            if not isinstance(node, LEFT_ALONE) and any(
                self.leaves(block, inner) for block in blocks
            ):
                return True
        return False

    def statement(self, node: ast.stmt) -> bool:
        match node:
            case ast.Assert() | ast.Raise():
                return True
            case ast.If():
                return self.block(node.body) and self.block(node.orelse)
            case ast.For():
                return self.some(node.iter) and self.block(node.body)
            case ast.While():
                return ast.unparse(node.test) == "True" and self.block(node.body)
            case ast.With():
                return any(map(self.expression, node.items)) or self.block(node.body)
            case ast.Try():
                whole = self.block(node.body + node.orelse) and all(
                    self.block(each.body) for each in node.handlers
                )
                return whole or self.block(node.finalbody)
        return not isinstance(node, LEFT_ALONE) and self.expression(node)

    def expression(self, node: ast.AST) -> bool:
        """Whether the expression calls a function that asserts.

        Such a function is pytest.raises and its like, or a helper of the tests that asserts on
        every way through it.
        """
        for call in inside(node, ast.Call):
            if (
                isinstance(call.func, ast.Attribute)
                and call.func.attr in WAITS
                and ast.unparse(call.func.value) == "pytest"
            ):
                return True
            helper = self.known.get(call.func.id) if isinstance(call.func, ast.Name) else None
            known = isinstance(helper, ast.FunctionDef) and helper.name not in self.callers
            if known and Reader(self.known, helper, self.callers).asserts():
                return True
        return False

    def some(self, node: ast.AST, behind: tuple[str, ...] = ()) -> bool:
        """Whether a loop over `node` certainly runs at least once.

        `behind` holds the names that were looked up on the way to `node`.
        """
        match node:
            case ast.Tuple() | ast.List() | ast.Set():
                return any(
                    not isinstance(each, ast.Starred) or self.some(each.value, behind)
                    for each in node.elts
                )
            case ast.Dict():
                return bool(node.keys)
            case ast.Constant():
                return bool(node.value)
            case ast.Name():
                return node.id not in behind and self.some(
                    self.known.get(node.id), (*behind, node.id)
                )
            case ast.Subscript():
                return isinstance(node.slice, ast.Slice) and self.some(node.value, behind)
            case ast.BinOp():
                return self.some(node.left, behind) or self.some(node.right, behind)
            case ast.ListComp() | ast.SetComp() | ast.DictComp():
                return all(
                    self.some(each.iter, behind) and not each.ifs for each in node.generators
                )
            case ast.Call(func=ast.Attribute(attr="items" | "values" | "keys")):
                return self.some(node.func.value, behind)
            case ast.IfExp():
                return self.some(node.body, behind) and self.some(node.orelse, behind)
            case ast.Call(func=ast.Name(id="range"), args=[end]):
                return self.some(end, behind)
            case ast.Call(func=ast.Name(id="range")) if all(
                isinstance(each, ast.Constant) for each in node.args
            ):
                return bool(range(*[each.value for each in node.args]))
            case ast.Call(func=ast.Name(id="zip" | "product")) if "strict=True" not in ast.unparse(
                node
            ):
                return all(self.some(each, behind) for each in node.args)
            case ast.Call(func=ast.Name(id=name)) if name in KEEP_LENGTH:
                return any(self.some(each, behind) for each in node.args)
        return False


def broad(node: ast.AST | None) -> bool:
    return node is None or bool({ast.unparse(each) for each in inside(node, ast.Name)} & BROAD)


def swallows(test: ast.AST) -> list[str]:
    """Complaints about handlers that swallow a failed assertion or turn an error into a skip."""
    found = []
    for node in ast.walk(test):
        if isinstance(node, ast.Try):
            holds = any(inside(each, ast.Assert) for each in node.body)
            for each in node.handlers:
                if holds and broad(each.type) and not inside(each, ast.Raise):
                    found.append(f"line {each.lineno}: what is asserted above is swallowed here")
                if any(ast.unparse(call.func) == "pytest.skip" for call in inside(each, ast.Call)):
                    found.append(f"line {each.lineno}: skips whatever went wrong")
        if isinstance(node, ast.With) and any(inside(each, ast.Assert) for each in node.body):
            for call in (each for item in node.items for each in inside(item, ast.Call)):
                if ast.unparse(call.func).endswith("suppress") and any(map(broad, call.args)):
                    found.append(f"line {call.lineno}: what is asserted below is swallowed here")
    return found


def always_true(node: ast.expr) -> bool:
    """Whether an asserted expression holds whatever the code does.

    Constants do, and so does an expression compared with itself.
    """
    match node:
        case ast.Constant() | ast.JoinedStr() | ast.Lambda():
            return bool(getattr(node, "value", True))
        case ast.Tuple() | ast.List():
            return bool(node.elts)
        case ast.BoolOp(op=ast.Or()):
            return any(map(always_true, node.values))
        case ast.BoolOp():
            return all(map(always_true, node.values))
        case ast.Compare():
            sides = [ast.unparse(each) for each in (node.left, *node.comparators)]
            # Two equal calls may differ; tests of seeds compare them.
            return len(set(sides)) == 1 and not inside(node, ast.Call)
        case ast.Call(
            func=ast.Attribute(attr="equal" | "allclose" | "array_equal" | "assert_close")
        ):
            sides = [ast.unparse(each) for each in node.args[:2]]
            return (
                len(sides) == 2
                and len(set(sides)) == 1
                and not any(inside(each, ast.Call) for each in node.args)
            )
    return False


def faults(known: dict[str, ast.AST], test: ast.FunctionDef) -> list[str]:
    found = (
        [f"line {node.lineno}: returns early" for node in inside(test, ast.Return)]
        if test.name.startswith("test_")
        else []
    )
    if test.name.startswith("test_") and not Reader(known, test).asserts():
        found.append(f"line {test.lineno}: there is a way through it on which nothing is asserted")
    for node in ast.walk(test):
        if isinstance(node, ast.Assert) and always_true(node.test):
            found.append(f"line {node.lineno}: holds whatever happens: {ast.unparse(node)}")
    return found + swallows(test)


@pytest.mark.parametrize("path", sorted(HERE.rglob("*.py")), ids=lambda path: path.stem)
def test_every_way_through_every_test_asserts_something(path):
    known = module(".".join(path.relative_to(HERE).with_suffix("").parts))
    own = [
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    ]
    assert [
        f"{path.name}::{node.name}: {fault}" for node in own for fault in faults(known, node)
    ] == []


HOLLOW = {
    "returns early": "def test_a(x):\n    assert x\n    if x > 1:\n        return\n    assert x == 1",
    "asserts nothing": "def test_a(x):\n    print(x)",
    "asserts in a loop over what may be empty": "def test_a(xs):\n    for x in xs:\n        assert x",
    "asserts in a loop over what is empty": "def test_a():\n    for x in []:\n        assert x",
    "passes by": "def test_a():\n    for x in (1, 2):\n        if x:\n            continue\n        "
    "assert x",
    "asserts on one side alone": "def test_a(x):\n    if x:\n        assert x == 1",
    "asserts in a function that is never called": "def test_a():\n    def inner(x):\n        assert x",
    "calls what asserts on one side alone": "def look(x):\n    if x:\n        assert x\ndef test_a():\n    look(1)",
    "asserts where something went wrong alone": "def test_a():\n    try:\n        f()\n    except OSError as error:\n        assert error",
    "swallows": "def test_a():\n    try:\n        assert f()\n    except Exception:\n        pass",
    "swallows by name": "def test_a():\n    with suppress(AssertionError):\n        assert f()",
    "skips whatever went wrong": "def test_a():\n    try:\n        f()\n    except OSError:\n        pytest.skip()\n    "
    "assert g()",
    "compares a thing with itself": "def test_a(x):\n    assert x.y == x.y",
    "compares a tensor with itself": "def test_a(x):\n    assert torch.equal(x, x)",
    "is always true": "def test_a(x):\n    assert x == 1 or 'x is not 1'",
    "asserts a tuple": "def test_a(x):\n    assert (x == 1, 'x is not 1')",
}
SOUND = {
    "asserts": "def test_a(x):\n    assert x == 1",
    "expects an error": "def test_a():\n    with pytest.raises(ValueError):\n        f()",
    "calls what asserts": "def look(x):\n    assert x\n    return x\ndef test_a():\n    look(1)",
    "asserts in a loop over what is there": "XS = {'a': 1}\ndef test_a():\n    for x in XS.items():\n        assert x",
    "asserts on both sides": "def test_a(x):\n    if x:\n        assert x == 1\n    else:\n        assert f(x)",
    "asserts that something was seen": "def test_a(xs):\n    assert xs\n    for x in xs:\n        if x:\n            continue\n "
    "       assert f(x)",
    "asserts in the end": "def test_a():\n    try:\n        f()\n    finally:\n        assert g()",
    "compares two calls": "def test_a():\n    assert f() == f()",
}


def found_in(source: str) -> list[str]:
    known = {
        node.name if isinstance(node, ast.FunctionDef) else node.targets[0].id: node
        for node in ast.parse(source).body
    }
    known = {name: getattr(node, "value", node) for name, node in known.items()}
    return faults(known, known["test_a"])


@pytest.mark.parametrize("what", HOLLOW)
def test_a_test_that_cannot_fail_is_found(what):
    assert found_in(HOLLOW[what])


@pytest.mark.parametrize("what", SOUND)
def test_a_test_that_can_fail_is_left_alone(what):
    assert found_in(SOUND[what]) == []
