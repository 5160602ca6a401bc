"""Every file of examples/ runs by itself and passes its own assertions."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.testing.emulator import compiler
from gpugrad.tree import tree_leaves, tree_map

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "examples").rglob("*.py"))
PLAIN_NUMPY = [p for p in FILES if p.parent.name == "autograd_style"]  # their data are arrays of the CPU


def test_the_lectures_are_there():
    assert len(FILES) >= 15


ON_DEVICE = """
import runpy, sys
import gpugrad as gg
from gpugrad import backends
from gpugrad.backends.cuda import load
from gpugrad.testing import fake_cupy
if not gg.is_available("cuda"):
    backends.register(load(fake_cupy))  # CuPy's double: the whole CUDA backend, kernels on the emulator
gg.set_default_device("cuda")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("path", [p for p in FILES if p not in PLAIN_NUMPY], ids=lambda p: p.stem)
def test_example_on_the_gpu_or_its_double(path, tmp_path):
    """The same program with another default device passes the same assertions."""
    where = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", ON_DEVICE, str(path)], capture_output=True, text=True, cwd=tmp_path, env=where
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_example(path, tmp_path):
    text = path.read_text()
    assert text.startswith('"""')
    assert "assert " in text, "an example asserts its numbers"
    where = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)], capture_output=True, text=True, cwd=tmp_path, env=where
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "an example prints what it shows"


@pytest.mark.parametrize("path", PLAIN_NUMPY, ids=lambda p: p.stem)
def test_gradient_of_a_program_in_autograds_style(path):
    """Against central differences of the very same NumPy function, along a random direction."""
    program = runpy.run_path(str(path))
    start, rng = program["start"], np.random.default_rng(5)
    g = gg.grad(program["objective"])(*start)
    direction = tree_map(lambda a: rng.normal(size=a.shape), start[0])

    def moved(by):
        return program["objective"](tree_map(lambda a, d: a + by * d, start[0], direction), *start[1:])

    along = sum(np.sum(a * b) for a, b in zip(tree_leaves(g), tree_leaves(direction)))
    np.testing.assert_allclose(along.item(), (moved(1e-5) - moved(-1e-5)) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize("path", PLAIN_NUMPY, ids=lambda p: p.stem)
def test_only_the_import_lines_differ_from_a_program_for_autograd(path, tmp_path):
    """With the other import lines it runs on autograd: the same gradient, and the same line is printed."""
    autograd = pytest.importorskip("autograd", reason="autograd is not installed")
    text = path.read_text()
    for ours, theirs in (
        ("\nimport numpy as np\n", "\nimport autograd.numpy as np\n"),
        ("\nfrom gpugrad import grad\n", "\nfrom autograd import grad\n"),
    ):
        assert text.count(ours) == 1
        text = text.replace(ours, theirs)
    assert "gg." not in text
    other = tmp_path / path.name
    other.write_text(text)
    here, there = runpy.run_path(str(path)), runpy.run_path(str(other))
    want = autograd.grad(there["objective"])(*there["start"])
    got = gg.grad(here["objective"])(*here["start"])
    for g, w in zip(tree_leaves(got), tree_leaves(want), strict=True):
        np.testing.assert_allclose(g.numpy(), w, rtol=1e-8, atol=1e-8)
    where = {**os.environ, "PYTHONPATH": str(ROOT)}
    lines = [
        subprocess.run([sys.executable, str(p)], capture_output=True, text=True, cwd=tmp_path, env=where, check=True)
        for p in (path, other)
    ]
    assert lines[0].stdout == lines[1].stdout
    assert len(lines[0].stdout.splitlines()) == 1
