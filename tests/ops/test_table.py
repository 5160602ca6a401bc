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


def tensors(sample: Sample, dtype: str = "float64") -> list[Tensor | float | None]:
    def make(a):
        if a is None or type(a) in (int, float):
            return a
        a = np.asarray(a)
        return Tensor(a.astype(dtype) if a.dtype == np.float64 else a.copy())

    return [make(a) for a in sample.args]


def arrays(sample: Sample, dtype: str = "float64") -> list[np.ndarray | float | None]:
    return [t.data if isinstance(t, Tensor) else t for t in tensors(sample, dtype)]


def varied(op, sample: Sample) -> list[int]:
    """Positions that the op differentiates and the sample gives in floating point."""

    def has_rule(i):
        return op.joint is not None or op.via is not None or (i < len(op.vjps) and op.vjps[i] is not None)

    return [i for i, a in enumerate(sample.args) if getattr(a, "dtype", None) == np.float64 and has_rule(i)]


def as_function(op, sample: Sample):
    """The op of its differentiable inputs alone; several outputs each get a random cotangent that varies with them."""
    fixed, where = tensors(sample), varied(op, sample)

    def f(*xs):
        args = list(fixed)
        for i, x in zip(where, xs):
            args[i] = x
        out = op.call(*args, **sample.attrs)
        if not isinstance(out, tuple):
            return out
        rng, total = np.random.default_rng(11), 0.0
        for o in sample.chosen(out):
            total = total + (o * (o + Tensor(rng.normal(size=o.shape)))).sum()
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
        before = [t.data.copy() if isinstance(t, Tensor) else t for t in args]
        out = op.call(*args, **sample.attrs)
        for t, b in zip(args, before):
            assert t is b or np.array_equal(t.data, b, equal_nan=True)
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


def push(op, sample: Sample, tangents: dict[int, np.ndarray], dtype: str = "float64") -> tuple[np.ndarray, ...]:
    """The tangents of all outputs by the jvp rule."""
    args, tangents = arrays(sample, dtype), {i: t.astype(dtype) for i, t in tangents.items()}
    result = op.impls[np.ndarray](*args, **sample.attrs)
    out, aux = result if op.aux else (result, None)
    F, ts = raw(next(a for a in args if hasattr(a, "dtype"))), tuple(tangents.get(i) for i in range(len(args)))
    pushed = op.jvp(F, ts, out, *args, *([aux] if op.aux else []), **sample.attrs)
    return pushed if op.nout > 1 else (pushed,)


def pull(op, sample: Sample, inputs: list[int], cotangents: dict[int, np.ndarray]) -> list[np.ndarray]:
    """The gradients of some inputs by the vjp rules, for cotangents of some outputs."""
    args = tensors(sample)
    leaves = [args[i].requires_grad_() for i in inputs]
    out = op.call(*args, **sample.attrs)
    outs = out if isinstance(out, tuple) else (out,)
    found = gg.gradients(
        [outs[k] for k in cotangents], leaves, [Tensor(u) for u in cotangents.values()], unconnected="zero"
    )
    return [g.data for g in found]


def direction(op, sample: Sample) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """A random tangent of each differentiable input, a random cotangent of each output."""
    rng, args = np.random.default_rng(3), arrays(sample)
    result = op.impls[np.ndarray](*args, **sample.attrs)
    out = result[0] if op.aux else result
    tangents = {i: rng.normal(size=args[i].shape) for i in varied(op, sample)}
    outs = out if op.nout > 1 else (out,)
    return tangents, {k: rng.normal(size=np.shape(outs[k])) for k in sample.outputs or range(len(outs))}


# an op with `via` is differentiated through that composition, whose ops are checked one by one
PUSHED = [p for p in SMOOTH if TABLE[p.values[0]].via is None and p.values[1].outputs is None]


@pytest.mark.parametrize("name, sample", PUSHED)
def test_jvp_matches_numeric_and_adjoint(name, sample):
    """jvp against a numeric directional derivative, and <u, J v> = <J' u, v>."""
    op = TABLE[name]
    v, us = direction(op, sample)
    outs = push(op, sample, v)

    def along(h):
        moved = [a + h * v[i] if i in v else a for i, a in enumerate(arrays(sample))]
        r = op.impls[np.ndarray](*moved, **sample.attrs)
        r = r[0] if op.aux else r
        return r if op.nout > 1 else (r,)

    h = 1e-3
    sides = [along(k * h) for k in (1, -1, 2, -2)]
    for k, got in enumerate(outs):
        want = (8 * (sides[0][k] - sides[1][k]) - (sides[2][k] - sides[3][k])) / (12 * h)
        assert np.shape(got) == np.shape(want)
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * max(1.0, np.abs(want).max(initial=0)) * 1e-1)
    back = pull(op, sample, list(v), us)
    left = sum(float(np.sum(us[k] * p)) for k, p in enumerate(outs))
    right = sum(float(np.sum(g * v[i])) for i, g in zip(v, back))
    assert abs(left - right) <= 1e-9 * max(1.0, abs(left))


@pytest.mark.parametrize("name, sample", SMOOTH)
def test_parts_make_up_the_whole(name, sample):
    """Tangents pushed one at a time, cotangents pulled one at a time, and inputs differentiated one at a time."""
    op = TABLE[name]
    v, us = direction(op, sample)

    def agree(whole, *parts):
        for total, *each in zip(whole, *parts):
            assert all(np.shape(part) == np.shape(total) for part in each)
            np.testing.assert_allclose(sum(each), total, rtol=0, atol=1e-9 * max(1.0, np.abs(total).max(initial=0)))

    whole = pull(op, sample, list(v), us)
    agree(whole, [pull(op, sample, [i], us)[0] for i in v])
    if len(us) > 1:
        agree(whole, *(pull(op, sample, list(v), {k: u}) for k, u in us.items()))
    if len(v) > 1 and op.via is None and sample.outputs is None:
        agree(push(op, sample, v), *(push(op, sample, {i: t}) for i, t in v.items()))


@pytest.mark.parametrize("name, sample", [p for p in SMOOTH if p.values[1].second])
def test_second_order_matches_numeric(name, sample):
    f, xs = as_function(TABLE[name], sample)
    assert gradgradcheck(f, xs)


@pytest.mark.parametrize("name, sample", SMOOTH)
def test_gradient_keeps_float32_in_memory_of_its_own(name, sample):
    op, where = TABLE[name], varied(TABLE[name], sample)
    leaves = tensors(sample, "float32")
    for i in where:
        leaves[i].requires_grad_()
    if "dtype" in sample.attrs:
        return
    out = op.call(*leaves, **sample.attrs)
    out = sample.chosen(out)[0] if isinstance(out, tuple) else out
    seed = Tensor(np.ones(out.shape, "float32"))
    out.backward(seed)
    found = [leaves[i].grad.data for i in where if leaves[i].grad is not None]
    held = [t.data for t in (*leaves, seed) if isinstance(t, Tensor)]
    for n, g in enumerate(found):
        assert g.dtype == np.float32
        assert not any(np.shares_memory(g, other) for other in (*found[:n], *held)), "a gradient is its own memory"
    assert all(leaves[i].grad is None or leaves[i].grad.shape == leaves[i].shape for i in where)
    if op.via is None and sample.outputs is None:
        assert all(t.dtype == np.float32 for t in push(op, sample, direction(op, sample)[0], "float32"))
