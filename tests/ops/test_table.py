"""Checks generated from the op table: every op, every sample."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.ops.optim  # otherwise loaded with gpugrad.optim
from gpugrad.check import gradcheck, gradgradcheck
from gpugrad.op import TABLE, raw
from gpugrad.tensor import Tensor

from .samples import Sample, collect

SAMPLES = collect()
CASES = [pytest.param(n, s, id=f"{n}-{i}") for n, ss in sorted(SAMPLES.items()) for i, s in enumerate(ss) if n in TABLE]
SMOOTH = [p for p in CASES if TABLE[p.values[0]].differentiable]


def tensors(sample: Sample, dtype: str = "float64") -> list[Tensor | None]:
    def make(a):
        a = np.asarray(a)
        return Tensor(a.astype(dtype) if a.dtype == np.float64 else a.copy())

    return [None if a is None else make(a) for a in sample.args]


def varied(op, sample: Sample) -> list[int]:
    """Positions that the op differentiates and the sample gives in floating point."""

    def has_rule(i):
        return op.joint is not None or op.via is not None or (i < len(op.vjps) and op.vjps[i] is not None)

    return [i for i, a in enumerate(sample.args) if a is not None and np.asarray(a).dtype == np.float64 and has_rule(i)]


def as_function(op, sample: Sample):
    """The op of its differentiable inputs alone, first output (weighted sum of all, when there are several)."""
    fixed, where = tensors(sample), varied(op, sample)

    def f(*xs):
        args = list(fixed)
        for i, x in zip(where, xs):
            args[i] = x
        out = op.call(*args, **sample.attrs)
        if not isinstance(out, tuple):
            return out
        total = (out[0] * 1.0).sum()
        for k, o in enumerate(out[1:], 2):
            total = total + (o * o).sum() * k
        return total

    return f, [fixed[i] for i in where]


def test_every_op_has_samples():
    # update ops have no result; tests/optim/test_updates.py runs them all
    missing = sorted({n for n, op in TABLE.items() if op.kind != "update"} - set(SAMPLES))
    assert not missing, f"ops without a sample in tests/ops/samples/: {missing}"
    assert not sorted(n for n in set(SAMPLES) - set(TABLE)), "samples for ops that do not exist"


@pytest.mark.parametrize("name, sample", CASES)
def test_forward_keeps_inputs_and_dtype(name, sample):
    """Inputs are not modified; float32 in gives float32 out (or a non-float), close to float64."""
    op = TABLE[name]
    for dtype, tol in (("float64", 0.0), ("float32", 2e-4)):
        args = tensors(sample, dtype)
        before = [None if t is None else t.data.copy() for t in args]
        out = op.call(*args, **sample.attrs)
        for t, b in zip(args, before):
            assert t is None or np.array_equal(t.data, b, equal_nan=True)
        outs = out if isinstance(out, tuple) else (out,)
        want = op.call(*tensors(sample), **sample.attrs)
        for o, w in zip(outs, want if isinstance(want, tuple) else (want,)):
            assert type(o.data) is np.ndarray
            if o.dtype.kind == "f" and "dtype" not in sample.attrs and not np.iscomplexobj(sample.args[0]):
                assert o.dtype == dtype, f"{dtype} became {o.dtype}"
                scale = max(1.0, float(np.abs(w.data).max(initial=0)))
                np.testing.assert_allclose(o.data, w.data, rtol=tol, atol=tol * scale)


@pytest.mark.parametrize("name, sample", SMOOTH)
def test_vjp_matches_numeric(name, sample):
    f, xs = as_function(TABLE[name], sample)
    if not xs:
        pytest.fail("no differentiable float64 input in this sample")
    assert gradcheck(f, xs)


# an op with `via` is differentiated through that composition, whose ops are checked one by one
@pytest.mark.parametrize("name, sample", [p for p in SMOOTH if TABLE[p.values[0]].via is None])
def test_jvp_matches_numeric_and_adjoint(name, sample):
    """jvp against a numeric directional derivative, and <u, J v> = <J' u, v>."""
    op, where = TABLE[name], varied(TABLE[name], sample)
    args = [None if t is None else t.data for t in tensors(sample)]
    F = raw(next(a for a in args if a is not None))
    impl = op.impls[np.ndarray]
    result = impl(*args, **sample.attrs)
    out, aux = result if op.aux else (result, None)
    rng = np.random.default_rng(3)
    v = {i: rng.normal(size=args[i].shape) for i in where}
    push = op.jvp(F, tuple(v.get(i) for i in range(len(args))), out, *args, *([aux] if op.aux else []), **sample.attrs)

    def along(h):
        moved = [a + h * v[i] if i in v else a for i, a in enumerate(args)]
        r = impl(*moved, **sample.attrs)
        return r[0] if op.aux else r

    h = 1e-3
    outs = push if op.nout > 1 else (push,)
    sides = [along(k * h) if op.nout > 1 else (along(k * h),) for k in (1, -1, 2, -2)]
    for k, got in enumerate(outs):
        want = (8 * (sides[0][k] - sides[1][k]) - (sides[2][k] - sides[3][k])) / (12 * h)
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * max(1.0, np.abs(want).max(initial=0)) * 1e-1)
    leaves = [
        Tensor(a).requires_grad_() if i in where else None if a is None else Tensor(a) for i, a in enumerate(args)
    ]
    ys = op.call(*leaves, **sample.attrs)
    ys = ys if isinstance(ys, tuple) else (ys,)
    us = [rng.normal(size=y.shape) for y in ys]
    back = gg.gradients(list(ys), [leaves[i] for i in where], [Tensor(u) for u in us], unconnected="zero")
    left = sum(float(np.sum(u * p)) for u, p in zip(us, outs))
    right = sum(float(np.sum(g.data * v[i])) for i, g in zip(where, back))
    assert abs(left - right) <= 1e-9 * max(1.0, abs(left))


@pytest.mark.parametrize("name, sample", [p for p in SMOOTH if p.values[1].second])
def test_second_order_matches_numeric(name, sample):
    f, xs = as_function(TABLE[name], sample)
    assert gradgradcheck(f, xs)


@pytest.mark.parametrize("name, sample", SMOOTH)
def test_gradient_keeps_float32(name, sample):
    op, where = TABLE[name], varied(TABLE[name], sample)
    leaves = tensors(sample, "float32")
    for i in where:
        leaves[i].requires_grad_()
    if "dtype" in sample.attrs:
        return
    out = op.call(*leaves, **sample.attrs)
    out = out[0] if isinstance(out, tuple) else out
    out.backward(Tensor(np.ones(out.shape, "float32")))
    for i in where:
        assert leaves[i].grad is None or leaves[i].grad.dtype == np.float32
        assert leaves[i].grad is None or leaves[i].grad.shape == leaves[i].shape
