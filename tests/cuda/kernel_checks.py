"""What the tests of kernels share: a kernel beside its NumPy twin, and the comparison of the two."""

from __future__ import annotations

import functools

import numpy as np

from gpugrad.op import TABLE

TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}
SIZES = [0, 1, 3, 4, 31, 32, 33, 255, 1025, 4099]


class Pair:
    """An op's kernel, with no twin to fall back to, and its twin on NumPy."""

    def __init__(self, backend, name):
        op = TABLE[name]
        self.backend, self.special = backend, op.impls.special
        self.kernel = backend.implement(op.fwd, op.impls.special)
        self.kernel.twin = None
        self.twin = getattr(np, op.fwd) if isinstance(op.fwd, str) else functools.partial(op.fwd, np)

    def device(self, *arrays):
        return [None if a is None else self.backend.asarray(a) for a in arrays]

    def run(self, *arrays, **attrs):
        out = self.kernel(*self.device(*arrays), **attrs)
        host = self.backend.to_numpy
        return tuple(map(host, out)) if isinstance(out, tuple) else host(out)


def wide(a):
    """In double precision, integers as they are."""
    return a if a is None or a.dtype.kind in "iu" else a.astype("float64")


def check(got, want, dtype):
    want = np.asarray(want, "float64")
    scale = max(1.0, np.abs(want[np.isfinite(want)]).max(initial=0))
    np.testing.assert_allclose(
        got.astype("float64"), want, rtol=TOLERANCE[dtype.name], atol=TOLERANCE[dtype.name] * scale
    )
