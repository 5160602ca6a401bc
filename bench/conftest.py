"""Per-op benchmarks: every op of a family on arrays of some megabytes, `make bench` or

    python -m pytest bench/ops -o python_files='*.py' --benchmark-enable [--on cuda] [-k WORD]

Arguments come from bench/kernels.py where an op has a case there, at sizes between its small and its large ones;
otherwise from the op table's own samples (tests/ops/samples), elementwise ones repeated to a million elements. `gb_s`
of a result is the bytes of operands and results over the median time, each counted once. BLAS has one thread.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import kernels  # noqa: E402
from gpugrad import backends  # noqa: E402
from gpugrad.op import TABLE  # noqa: E402
from gpugrad.ops import optim as _optim  # noqa: E402, F401 - fills the table

MILLION = 1 << 20


def pytest_addoption(parser: Any) -> None:
    """The device."""
    parser.addoption("--on", default="cpu", help="Device of the per-op benchmarks: cpu or cuda.")


class Medium(kernels.Maker):
    """Arrays of a few megabytes: sizes half way between a case's two, on a logarithmic scale."""

    def __init__(self, backend: Any) -> None:
        super().__init__(backend, "float32", small=False)
        self.rows, self.columns = 1024, 1024

    def size(self, small: int, large: int) -> int:
        """A multiple of eight, so that heads, pairs and pooled halves come out even."""
        return max(8, round(math.sqrt(small * large) / 8) * 8)


def enlarged(name: str, family: str) -> tuple[list[Any], dict[str, Any]]:
    """The op's first sample, with a million elements where that is possible without knowing the op."""
    sample = importlib.import_module(f"tests.ops.samples.{family}").SAMPLES[name][0]
    args, attrs = list(sample.args), dict(sample.attrs)
    arrays = [a for a in args if a is not None]
    if TABLE[name].kind == "elementwise":
        args = [a if a is None or np.ndim(a) == 0 else np.resize(a, MILLION) for a in args]
    elif family in ("reduce", "softmax") and len(arrays) == 1 and np.size(arrays[0]):
        factor = max(1, round((MILLION / np.size(arrays[0])) ** (1 / max(1, np.ndim(arrays[0])))))
        args = [a if a is None else np.tile(a, (factor,) * np.ndim(a)) for a in args]
    elif family == "random" and "shape" in attrs:
        attrs["shape"] = (MILLION,)
    return args, attrs


def single(x: Any, backend: Any) -> Any:
    """Arguments on the device, floating arrays in float32; copies, because updates overwrite them."""
    if isinstance(x, (list, tuple)):
        return [single(v, backend) for v in x]
    if x is None or isinstance(x, backend.array_type):
        return x
    x = np.array(x)
    return backend.asarray(x.astype("float32") if x.dtype == np.float64 else x)


class Case:
    """An op with its arguments on a device."""

    def __init__(self, name: str, family: str, device: str) -> None:
        self.backend = backends.get(device)
        if name in kernels.CASES:
            self.args, self.attrs = kernels.CASES[name](Medium(self.backend))
        else:
            args, self.attrs = enlarged(name, family)
            self.args = single(args, self.backend)
        self.implementation = kernels.implementation(self.backend, name)

    def __call__(self) -> Any:
        """Run once, and wait."""
        out = self.implementation(*self.args, **self.attrs)
        self.backend.synchronize()
        return out


def pytest_generate_tests(metafunc: Any) -> None:
    """One benchmark for every op of the family that the file is named after."""
    family = metafunc.module.__name__.rpartition(".")[2]
    found = importlib.import_module(f"tests.ops.samples.{family}").SAMPLES
    metafunc.parametrize("name", sorted(n for n, samples in found.items() if n in TABLE and samples))


@pytest.fixture
def op(benchmark: Any, request: Any, name: str) -> Any:
    """Measures the op, and says what it moved."""

    def run() -> Any:
        case = Case(name, request.module.__name__.rpartition(".")[2], request.config.getoption("--on"))
        with np.errstate(all="ignore"):
            out = case()
            benchmark.pedantic(case, rounds=5, iterations=1, warmup_rounds=1)
        moved = sum(a.nbytes for a in kernels.arrays([*case.args, out]))
        if benchmark.stats is not None:
            benchmark.extra_info["gb_s"] = round(moved / benchmark.stats.stats.median / 1e9, 2)
        return out

    return run
