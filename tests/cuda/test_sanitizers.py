"""That the kernels of these tests run under watch: a fault put into them is an error with a line, through the double.

The tests of kernels (test_kernels*.py) run every kernel instrumented, see `_watched` in conftest.py and mode 'checked'
of `gpugrad.testing.emulator.Module`. Which faults are seen is in tests/emulator/test_seeded_bugs.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from gpugrad import kernel as kernels
from gpugrad.backends import cuda
from gpugrad.testing import EmulatorError, fake_cupy
from gpugrad.testing.emulator import compiler

from .kernel_checks import Pair

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setenv("GPUGRAD_EMULATOR", "checked")
    backend = cuda.load(fake_cupy)
    backend.checked = True
    return backend


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """Put a fault into a copy of the kernels."""

    def put(file, old, new):
        for path in kernels.find_kernels().glob("*.cu*"):
            (tmp_path / path.name).write_text(path.read_text())
        text = (tmp_path / file).read_text()
        assert old in text
        (tmp_path / file).write_text(text.replace(old, new, 1))
        monkeypatch.setattr(kernels, "find_kernels", lambda: tmp_path)

    return put


BARRIER = "__syncthreads(); // an earlier reduction may still be read"


@pytest.mark.parametrize(
    "rows, old, new, said",
    [
        (1, "i < n; i += team.size) out[i]", "i <= n; i += team.size) out[i]", r"out of bounds.*common\.cuh:\d+"),
        (3, "i < n; i += team.size) out[i]", "i <= n; i += team.size) out[i]", r"race.*block \(0.*common\.cuh:\d+"),
        (3, BARRIER, "", r"race.*common\.cuh:\d+.*common\.cuh:\d+"),
        (3, "(16 - start % 16) % 16 / sizeof(T)", "0", r"misaligned address.*common\.cuh:\d+ \(from loss\.cu:\d+\)"),
    ],
    ids=["bound", "neighbour", "barrier", "alignment"],
)
def test_fault_in_a_kernel_is_an_error_with_its_line(watched, broken, rows, old, new, said):
    broken("common.cuh", old, new)
    rng = np.random.default_rng(0)
    logits, y, t = rng.normal(size=(rows, 1031)).astype("f4"), np.array([0, 5, 9][:rows]), np.ones(rows, "f4")
    options = {"ignore_index": -100, "smoothing": 0.1}

    def run():
        _, lse = Pair(watched, "softmax_xent").run(logits, y, None, **options)
        return Pair(watched, "softmax_xent_bwd").run(t, logits, y, None, lse, **options)

    with pytest.raises(EmulatorError, match=said):
        run()


def test_kernels_without_a_fault_pass(watched, broken):
    broken("common.cuh", BARRIER, BARRIER)
    test = Pair(watched, "relu_bwd")
    t = np.arange(9, dtype="f4")
    assert np.array_equal(test.run(t, t - 4), np.where(t > 4, t, 0))
