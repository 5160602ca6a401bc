"""The laws of the architecture that can be read off the source text."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gpugrad"
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports at run time, wherever the statement stands."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found.update(f"{node.module}.{a.name}" for a in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def touches(path: Path, *modules: str) -> list[str]:
    return sorted(i for i in imports(path) for m in modules if i == m or i.startswith(m + "."))


def under(*folders: str) -> list[Path]:
    return [p for p in FILES if name_of(p).split("/")[0] in folders]


def test_cupy_is_imported_in_one_place():
    assert [name_of(p) for p in FILES if touches(p, "cupy", "cupyx", "cuda")] == ["backends/cuda.py"]
    tree = ast.parse((PACKAGE / "backends" / "cuda.py").read_text())
    top = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert not any("cupy" in ast.unparse(n) for n in top), "CuPy must be imported lazily"


@pytest.mark.parametrize("path", under("backends"), ids=name_of)
def test_backends_see_raw_arrays_only(path):
    assert not touches(path, "gpugrad.tensor", "gpugrad.op", "gpugrad.ops", "gpugrad.tape", "gpugrad.nn")


def test_tape_knows_no_op_no_backend_no_array_library():
    assert not touches(PACKAGE / "tape.py", "gpugrad.ops", "gpugrad.backends", "numpy", "cupy")


STATIC = ("replay", "recorded", "tracing", "frozen", "program", "fuse", "epilogues", "execute", "graph")


@pytest.mark.parametrize("module", STATIC)
def test_programs_and_replay_do_not_know_the_tape(module):
    assert not touches(PACKAGE / f"{module}.py", "gpugrad.tape", "gpugrad.transforms", "gpugrad.nn", "gpugrad.optim")


@pytest.mark.parametrize("path", under("ops"), ids=name_of)
def test_ops_know_neither_tape_nor_what_is_built_on_them(path):
    above = ("tape", "transforms", "nn", "optim", "data", "train", "losses", "check", "function")
    assert not touches(path, *(f"gpugrad.{m}" for m in above))


CORE = ("op", "tape", "rules", "operands", "define", "methods", "kernel")


@pytest.mark.parametrize("path", [*under("nn", "optim", "data", "train"), PACKAGE / "losses.py"], ids=name_of)
def test_what_users_could_have_written_uses_public_names(path):
    assert not touches(path, *(f"gpugrad.{m}" for m in CORE))


@pytest.mark.parametrize(
    "path",
    [*under("ops", "optim", "launch"), PACKAGE / "tape.py", PACKAGE / "op.py", PACKAGE / "rules.py"],
    ids=name_of,
)
def test_no_host_read_in_ops_tape_and_optimisers(path):
    """No `.item()` and no `float(...)` of a tensor's or array's data: a GPU would have to be waited for."""
    reads = []
    tree = ast.parse(path.read_text())
    for scope in ast.walk(tree):  # these two are host functions and say so: bits from the host, a checkpoint
        if isinstance(scope, ast.FunctionDef) and (path.stem, scope.name) in {
            ("random", "normal"),
            ("random", "state_dict"),
        }:
            scope.body = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        item = isinstance(called, ast.Attribute) and called.attr == "item"
        number = isinstance(called, ast.Name) and called.id in ("float", "bool", "int")
        of_data = any(isinstance(n, ast.Attribute) and n.attr == "data" for a in node.args for n in ast.walk(a))
        if item or (number and of_data):
            reads.append(ast.unparse(node))
    assert not reads


def test_kernels_have_the_stem_of_their_op_family():
    """A family that outgrows one file goes on in another, as `normalize_batch.cu` beside `normalize.cu`."""
    families = {p.stem for p in (PACKAGE / "ops").glob("*.py")}
    kernels = {p.stem.partition("_")[0] for p in (ROOT / "kernels").glob("*.cu")}
    assert kernels
    assert kernels <= families
    assert kernels <= {p.stem for p in (PACKAGE / "launch").glob("*.py")} <= families


def test_every_kernel_file_is_short_and_opens_with_a_comment():
    for path in (ROOT / "kernels").glob("*.cu"):
        text = path.read_text()
        assert text.startswith("//"), f"{path.name} must open with what it computes"
        assert text.count("\n") <= 120, f"{path.name} is longer than 120 lines"


def test_every_public_function_has_a_docstring():
    bare = []
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                bare.append(f"{name_of(path)}: {node.name}")
    assert not bare
