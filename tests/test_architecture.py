"""Imports point one way (docs/architecture.md), and the heavy ones stay where they belong."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "prunecli"
MODULES = sorted(PACKAGE.rglob("*.py"))

# part of the program -> the parts it may import from, besides itself
BASE = {"arrays", "types", "errors", "files", "float_keys", "lanes", "quantity", "registry", "_version"}
MODEL = BASE | {"model", "inputs", "operators", "storage"}
THEORY = MODEL | {"runtime", "data"}
WORK = THEORY | {"autodiff", "calibration", "evaluation", "masks", "options", "report", "verify"}
PRUNER = WORK | {
    "dependency",
    "inspection",
    "packing",
    "predicted",
    "quantization",
    "reconstruct",
    "shrinking",
    "training",
    "workers",
    "zeros",
    "structures",
}
ALLOWED = {
    "arrays": set(),
    "types": set(),
    "errors": set(),
    "files": {"errors"},
    "float_keys": {"arrays"},
    "_version": set(),
    "quantity": BASE,
    "inputs": BASE,
    "lanes": set(),
    "registry": BASE,
    "workers": BASE,
    "storage": BASE,
    "operators": {"arrays", "types", "errors"},
    "model": MODEL,
    "runtime": BASE | {"inputs", "model"},
    "data": BASE | {"inputs", "runtime"},
    "report": BASE,
    "options": BASE | {"data", "evaluation", "inputs", "model", "report", "runtime"},
    "recipe": BASE | {"options", "report"},
    "masks": BASE,
    "dependency": MODEL,
    "autodiff": MODEL | {"runtime"},
    "verify": MODEL | {"masks", "runtime"},
    "evaluation": THEORY | {"options", "report"},
    "inspection": MODEL | {"dependency", "options", "report"},
    "predicted": MODEL | {"dependency", "masks", "runtime"},
    "calibration": THEORY | {"autodiff", "evaluation", "masks"},
    "reconstruct": THEORY | {"calibration", "masks"},
    "packing": WORK,
    "shrinking": THEORY | {"dependency", "operators", "options", "report", "verify"},
    "training": WORK | {"packing", "shrinking"},
    "quantization": WORK | {"packing", "reconstruct"},
    "zeros": PRUNER - {"structures"},
    "structures": PRUNER,
    "search": PRUNER,
    "cli": BASE | {"data", "evaluation", "masks", "model", "options", "recipe", "report", "runtime"},
    "__init__": {
        "_version",
        "cli",
        "dependency",
        "errors",
        "evaluation",
        "inspection",
        "packing",
        "quantization",
        "search",
        "shrinking",
        "structures",
        "training",
        "zeros",
    },
    "__main__": {"cli"},
}
# third-party package -> the only parts that may import it
OWNERS = {
    "typer": {"cli"},
    "rich": {"cli", "report"},
    "onnxruntime": {"runtime"},
    "sklearn": {"evaluation"},
    "matplotlib": {"report"},
    "PIL": {"data"},
}
# modules that `prune --help` loads: nothing from outside the standard library but Typer at import time
LIGHT = ("cli/", "recipe/", "report/", "types.py", "errors.py", "files.py", "quantity.py", "__init__.py", "__main__.py")


def part(module: Path) -> str:
    """`prunecli/model/load.py` -> `model`; `prunecli/types.py` -> `types`."""
    return module.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(nodes: Iterable[ast.AST], module: Path) -> Iterator[str]:
    """Full names of the modules that these nodes import, relative imports resolved."""
    for child in nodes:
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            folder = module.relative_to(ROOT).parent.parts
            start = folder[: len(folder) - child.level + 1] if child.level else ()
            base = ".".join([*start, *([child.module] if child.module else [])])
            yield base
            if base == "prunecli":
                yield from (f"prunecli.{alias.name}" for alias in child.names)


@cache
def parse(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


@cache
def nodes_of(module: Path) -> tuple[ast.AST, ...]:
    """What a module consists of, as far as these tests ask."""
    kinds = ast.Import | ast.ImportFrom | ast.Call | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return tuple(node for node in ast.walk(parse(module)) if isinstance(node, kinds))


@cache
def imports_of(module: Path) -> frozenset[str]:
    """Full names of every module that this one imports, anywhere in it."""
    return frozenset(imports(nodes_of(module), module))


def inner_parts(module: Path) -> set[str]:
    names = (name.split(".") for name in imports_of(module))
    return {name[1] for name in names if name[0] == "prunecli" and len(name) > 1} - {part(module)}


def test_imports_point_one_way() -> None:
    assert {part(m) for m in MODULES} <= ALLOWED.keys(), "a new part of the program: say in ALLOWED what it may import"
    beyond = {str(m.relative_to(ROOT)): inner_parts(m) - ALLOWED[part(m)] for m in MODULES}
    assert {module: parts for module, parts in beyond.items() if parts} == {}


def imported_modules(module: Path) -> set[str]:
    """Modules of the package that this one imports, anywhere in it and for types alone, too."""
    known = {name_of(other) for other in MODULES}
    found = set()
    for node in nodes_of(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & known - {name_of(module), "prunecli"}


def name_of(module: Path) -> str:
    return ".".join(module.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_modules_import_each_other_in_a_circle() -> None:
    sorter = TopologicalSorter({name_of(module): imported_modules(module) for module in MODULES})
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_class_name_stands_twice() -> None:
    names = Counter(node.name for m in MODULES for node in nodes_of(m) if isinstance(node, ast.ClassDef))
    assert [name for name, times in names.items() if times > 1] == []


@pytest.mark.parametrize("package", OWNERS)
def test_each_package_has_its_owners(package: str) -> None:
    users = {part(m) for m in MODULES if any(n.split(".")[0] == package for n in imports_of(m))}
    assert users <= OWNERS[package]


def test_masks_need_numpy_only() -> None:
    import sys

    for module in MODULES:
        if part(module) == "masks":
            outside = {name.split(".")[0] for name in imports_of(module)} - {"prunecli"}
            assert outside - set(sys.stdlib_module_names) <= {"numpy", "ml_dtypes"}, module


def at_import_time(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported: not those in functions or under TYPE_CHECKING."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from at_import_time(statement.orelse)
            continue
        yield statement


def test_what_help_loads_is_light() -> None:
    import sys

    light = [m for m in MODULES if str(m.relative_to(PACKAGE)).startswith(LIGHT)]
    assert len(light) > 10
    for module in light:
        names = {n for s in at_import_time(parse(module).body) for n in imports(ast.walk(s), module)}
        outside = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
        assert outside <= {"prunecli", "typer"}, module


def test_the_checks_see_a_forbidden_import(tmp_path: Path) -> None:
    module = PACKAGE / "model" / "example.py"
    tree = ast.parse("def f():\n    from prunecli.cli import app\n    from .. import pipeline\n    import rich.table\n")
    assert set(imports(ast.walk(tree), module)) == {"prunecli.cli", "prunecli", "prunecli.pipeline", "rich.table"}


def long_functions(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Functions of more than 45 lines, their docstrings aside."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False) is not None
            body = node.body[1:] if docstring else node.body
            length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            if length > 45:
                yield f"line {node.lineno}: {node.name} has {length} lines"


def test_functions_stay_readable() -> None:
    found = {str(module.relative_to(ROOT)): list(long_functions(nodes_of(module))) for module in MODULES}
    assert {module: told for module, told in found.items() if told} == {}


def test_the_checks_see_a_long_function() -> None:
    body = "    x = 1\n"
    tree = ast.parse(f'def f():\n    """Told."""\n{body * 45}\ndef g():\n    """Told."""\n{body * 46}')
    assert list(long_functions(ast.walk(tree))) == ["line 49: g has 46 lines"]


def listed(module: Path) -> Iterator[str]:
    """Names of a module's constants that list operators: four or more texts, most of which are names of operators."""
    import onnx

    from prunecli.operators import OPERATORS

    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()} | {kind for _, kind in OPERATORS}
    for node in parse(module).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for each in ast.walk(node.value):
                items = each.keys if isinstance(each, ast.Dict) else getattr(each, "elts", [])
                texts = [one.value for one in items if isinstance(one, ast.Constant) and isinstance(one.value, str)]
                if len(texts) >= 4 and sum(text in known for text in texts) >= 0.8 * len(texts):
                    yield ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)


def test_lists_of_operators_are_named_where_a_new_operator_is_told_of() -> None:
    told = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    theories = ("operators/", "autodiff/", "dependency/rules/")
    modules = [m for m in MODULES if not m.relative_to(PACKAGE).as_posix().startswith(theories)]
    found = {(m.relative_to(PACKAGE).as_posix(), name) for m in modules for name in listed(m)}
    assert len(found) > 20
    assert [pair for pair in sorted(found) if f"`{pair[0]}`" not in told or f"`{pair[1]}`" not in told] == []


OUTSIDE = {"helper", "ir", "np", "onnx"}
NOT_OURS = {"__init__", "columns", "matmul", "reshape", "slice", "tie", "transpose"}
"""Methods of numpy or a base class with the name of one of the package; a callable that is an argument; and builders of
graphs, which take their operands by position: (value, axis, value, axis)."""


@cache
def own_names() -> frozenset[str]:
    """Functions, methods and classes of the package, except those that take any number of positional arguments."""
    nodes = [node for module in MODULES for node in nodes_of(module)]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    several = {node.name for node in functions if node.args.vararg is not None}
    classes = {node.name for node in nodes if isinstance(node, ast.ClassDef)}
    return frozenset(classes | {node.name for node in functions} - several - NOT_OURS)


def long_calls(nodes: Iterable[ast.AST], own: Collection[str]) -> Iterator[str]:
    """Calls of functions and classes named in `own` with more than three positional arguments, and functions of more
    than seven parameters."""
    for node in nodes:
        if isinstance(node, ast.Call) and len(node.args) > 3:
            name = ast.unparse(node.func)
            counted = [one for one in node.args if not isinstance(one, ast.Starred)]
            if len(counted) > 3 and name.split(".")[-1] in own and name.split(".")[0] not in OUTSIDE:
                yield f"line {node.lineno}: {name} is called with {len(node.args)} positional arguments"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            named = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            if len(named) - (named[:1] in (["self"], ["cls"])) > 7:
                yield f"line {node.lineno}: {node.name} has {len(named)} parameters"


def test_calls_stay_readable() -> None:
    found = {str(module.relative_to(ROOT)): list(long_calls(nodes_of(module), own_names())) for module in MODULES}
    assert {module: told for module, told in found.items() if told} == {}


def test_the_checks_see_a_long_call() -> None:
    tree = ast.parse("f(1, 2, 3, 4)\nx.f(1, 2, 3, 4)\nnp.f(1, 2, 3, 4)\nother(1, 2, 3, 4)\nf(1, 2, 3, d=4)\n"
                     "def g(self, a, b, c, d, e, f, g, h): ...\ndef h(a, b, c, d, e, f, g): ...\n")  # fmt: skip
    assert sorted(text.split(":")[0] for text in long_calls(ast.walk(tree), {"f"})) == ["line 1", "line 2", "line 6"]


SCRIPTS = sorted(path for folder in ("benchmarks", "campaigns", "docs") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_import_what_is_there(script: Path) -> None:
    for node in ast.walk(parse(script)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "prunecli":
            module = import_module(node.module or "")
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert [name for name in missing if find_spec(f"{node.module}.{name}") is None] == [], node.module
