"""Every file of examples/ runs by itself and passes its own assertions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpugrad.testing.emulator import compiler

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "examples").rglob("*.py"))


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
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
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
