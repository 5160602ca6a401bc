"""Every op on the CUDA backend: on CuPy's double, where kernels run on the emulator, and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backends
from gpugrad.op import TABLE
from gpugrad.tensor import Tensor
from gpugrad.testing.emulator import compiler

from ..ops.samples import Sample, collect

pytestmark = [pytest.mark.skipif(compiler() is None, reason="no C++ compiler"), pytest.mark.usefixtures("gpu")]
CASES = [
    pytest.param(n, s, id=f"{n}-{i}")
    for n, ss in sorted(collect().items())
    for i, s in enumerate(ss)
    if n in TABLE and TABLE[n].kind != "update" and n != "to_device"  # which names a device itself
]


def arguments(sample: Sample, device: str, dtype: str) -> list[Tensor | None]:
    """The sample's arrays on a device, float64 ones as `dtype` and differentiable."""

    def make(a):
        a = np.asarray(a)
        a = a.astype(dtype) if a.dtype == np.float64 else a
        t = Tensor(backends.get(device).asarray(a.copy()))
        return t.requires_grad_() if a.dtype.kind == "f" else t

    return [None if a is None else make(a) for a in sample.args]


@pytest.mark.parametrize("name, sample", CASES)
def test_every_op_and_its_gradient_run_on_the_device(name, sample):
    """Same program, both devices: forward and gradients agree, and results stay on the device."""
    op, dtype = TABLE[name], "float32"
    results = []
    for device in ("cpu", "cuda"):
        args = arguments(sample, device, dtype)
        out = op.call(*args, **sample.attrs)
        outs = out if isinstance(out, tuple) else (out,)
        total = [o for o in sample.chosen(outs) if o.node is not None]
        grads = []
        if total:
            rng = np.random.default_rng(0)
            weights = [Tensor(backends.get(device).asarray(rng.normal(size=o.shape).astype(o.dtype))) for o in total]
            leaves = [t for t in args if t is not None and t.node is not None]
            grads = [g for g in gg.gradients(total, leaves, weights) if g is not None]
        if device == "cuda":
            assert all(type(t.data) is backends.get("cuda").array_type for t in (*outs, *grads))
        results.append([t.numpy() for t in (*outs, *grads)])
    assert len(results[0]) == len(results[1])
    for a, b in zip(*results):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(b, a, rtol=2e-5, atol=2e-5)
