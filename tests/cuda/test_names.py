"""Every name that forwards and backend ask of the array module exists in the real CuPy, which imports without a GPU."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

import gpugrad
from gpugrad.op import TABLE
from gpugrad.testing import fake_cupy

from . import signatures

cupy = pytest.importorskip("cupy", reason="CuPy is not installed: pip install cupy-cuda12x")
PACKAGE = Path(gpugrad.__file__).parent
FILES = [*sorted((PACKAGE / "ops").glob("*.py")), PACKAGE / "backends" / "cuda.py"]


def chain(node: ast.AST) -> list[str]:
    """['xp', 'linalg', 'inv'] of xp.linalg.inv; [] for anything but names and dots."""
    if isinstance(node, ast.Name):
        return [node.id]
    inner = chain(node.value) if isinstance(node, ast.Attribute) else []
    return [*inner, node.attr] if inner else []


def is_numpy_branch(test: ast.AST) -> bool:
    return ast.unparse(test) == "xp is np"


def asked(tree: ast.Module) -> set[tuple[str, ...]]:
    """Attribute chains of the array module, but for code that only NumPy runs: `cpu=` functions, `if xp is np`."""
    keywords = [k for n in ast.walk(tree) if isinstance(n, ast.Call) for k in n.keywords]
    host_only = {k.value.id for k in keywords if k.arg == "cpu" and isinstance(k.value, ast.Name)}
    found: set[tuple[str, ...]] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef) and node.name in host_only:
            return
        if isinstance(node, ast.keyword) and node.arg == "cpu":
            return
        if isinstance(node, (ast.If, ast.IfExp)) and is_numpy_branch(node.test):
            for n in node.orelse if isinstance(node.orelse, list) else [node.orelse]:
                visit(n)
            return
        if isinstance(node, ast.Attribute):
            names = chain(node)
            if "xp" in names[:2] and len(names) > names.index("xp") + 1:
                found.add(tuple(names[names.index("xp") + 1 :]))
                return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def missing(names: tuple[str, ...]) -> bool:
    try:
        functools.reduce(getattr, names, cupy)
    except AttributeError:
        return True
    return False


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_names_exist_in_cupy(path):
    names = asked(ast.parse(path.read_text())) - {("cublaslt",)}  # of a double: CuPy has no binding of it
    assert not [".".join(n) for n in sorted(names) if missing(n)]
    assert not [".".join(n) for n in names - {("__version__",)} if any(part.startswith("_") for part in n)]


def test_forwards_by_name_exist_in_cupy():
    runs = {name: op.impls.special.get("cuda", op.impls.fwd) for name, op in TABLE.items()}
    assert not sorted(f"{name}: {run}" for name, run in runs.items() if isinstance(run, str) and missing((run,)))


def test_the_search_finds_what_it_should():
    source = """
def only_numpy(xp, x): return xp.nope(x)
def f(xp, x): return xp.linalg.inv(x) if xp is not np else 0
def g(xp, x): return xp.never(x) if xp is np else xp.exp(x)
op("f", f, cpu=only_numpy)
class A:
    def run(self): return self.xp.cuda.Device(0)
"""
    assert asked(ast.parse(source)) == {("linalg", "inv"), ("exp",), ("cuda", "Device")}


def test_the_double_insists_on_the_signatures_of_this_cupy():
    """The table that the double checks every call against; tests/cuda/signatures.py writes it."""
    assert signatures.table(cupy) == fake_cupy.SIGNATURES


def test_a_module_takes_what_the_backend_gives():
    module = cupy.RawModule(code="__global__ void k() {}", options=("-std=c++17",), name_expressions=["k"])
    assert callable(module.get_function)  # compiled at first use: no device needed up to here
    assert {"kernel", "max_dynamic_shared_size_bytes"} <= set(dir(cupy.RawKernel))
    assert "ptr" in dir(cupy.cuda.Function)
