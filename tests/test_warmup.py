"""`gpugrad warmup`: what it compiled is not compiled again."""

from __future__ import annotations

import numpy as np
import pytest

from gpugrad import backends, compiler, jit, warmup
from gpugrad.backends import cuda
from gpugrad.errors import DTypeError
from gpugrad.op import TABLE
from gpugrad.testing import fake_cupy
from gpugrad.testing.emulator import compiler as emulates

pytestmark = pytest.mark.skipif(compiler.find() is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cache of our own, empty at first."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def fresh(monkeypatch, folder):
    """As in a new process."""
    monkeypatch.setenv("GPUGRAD_CACHE", str(folder))
    monkeypatch.setattr(compiler, "functions", {})


def test_row_kernels_are_on_disk_afterwards(fresh, monkeypatch):
    said = []
    assert warmup.warm("cpu", ["float32"], say=said.append) > 20
    assert said[0].startswith("rows: ")
    monkeypatch.setattr(compiler, "functions", {})
    monkeypatch.setattr(compiler.subprocess, "run", lambda *a, **k: pytest.fail("compiled again"))
    x = np.random.default_rng(0).normal(size=(4, 50)).astype("f4")
    np.testing.assert_allclose(jit.lookup("softmax", (x,), {"axis": 1})(x).sum(1), 1, rtol=1e-6)


def test_every_functor_of_an_optimiser_is_compiled():
    text = (warmup.find_kernels() / "optim.cu").read_text()
    assert f"// F: {', '.join(warmup.FUNCTORS)}\n" in text


def test_instances_of_one_type_are_compiled_as_a_launch_does(monkeypatch):
    if emulates() is None:
        pytest.skip("the emulator needs a C++ compiler")
    backend = cuda.load(fake_cupy)
    monkeypatch.setattr(backends, "get", lambda device: backend)
    asked, real = [], backend.xp.RawModule
    monkeypatch.setattr(backend.xp, "RawModule", lambda **given: asked.append(given) or real(**given))
    assert warmup.warm("cuda", ["float32"], only=["guard"]) == len(asked) == 1
    warmed = asked.pop()
    x = backend.asarray(np.ones(5, "f4"))
    TABLE["assert_finite"].impls.pop(backend.array_type, None)
    run = backend.implement(TABLE["assert_finite"].fwd, TABLE["assert_finite"].impls.special)
    run(x, what="x")
    assert asked[0] == warmed


def test_a_type_without_kernels_is_refused():
    with pytest.raises(DTypeError, match="no kernels of int8"):
        warmup.warm("cuda", ["int8"])


def test_without_a_compiler_it_says_so(monkeypatch):
    said = []
    monkeypatch.setenv("GPUGRAD_CPU_JIT", "0")
    assert warmup.warm("cpu", say=said.append) == 0
    assert "NumPy does the work" in said[0]


def test_the_command_reports_what_it_did(fresh):
    pytest.importorskip("click", reason="the command line needs click: pip install 'gpugrad[train]'")
    from click.testing import CliRunner

    from gpugrad.cli import main

    done = CliRunner().invoke(main, ["warmup", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "kernels ready after" in done.output
    refused = CliRunner().invoke(main, ["warmup", "--device", "cpu", "--dtypes", "float16"])
    assert refused.exit_code == 2
    assert "there are no kernels of float16" in refused.output
