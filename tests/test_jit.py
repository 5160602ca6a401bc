"""Row kernels and optimiser steps compiled for the CPU: what the ops' NumPy code gives, and where they decline."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpugrad.optim  # noqa: F401  its ops are in the table
from gpugrad import compiler, jit
from gpugrad.backends import threads
from gpugrad.errors import RangeError
from gpugrad.op import TABLE

pytestmark = pytest.mark.skipif(compiler.find() is None, reason="needs a C++ compiler")
IMPL = {name: op.impls[np.ndarray] for name, op in TABLE.items()}
XENT = {"ignore_index": -100, "smoothing": 0.0}
NORM = {"axis": (1,), "eps": 1e-5, "centred": True}
ADAM = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.01, "decoupled": True}


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    """A cache of compiled code of our own; everything that these tests need is compiled at once."""
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setenv("GPUGRAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("GPUGRAD_CPU_JIT", raising=False)
        cases = [c for dtype in ("float32", "float64") for c in rows(np.dtype(dtype), 40, 70)]
        made = [jit.lookup(name, args, attrs) for name, args, attrs, _ in cases]
        for dtype in ("float32", "float64"):
            q, k, v, t = heads(dtype, 1, 1, 1, 1, 1, 1, 1)
            made += [jit.lookup("attention", (q, k, v, None), {}), jit.lookup("attention_bwd", (t, q, k, v), {})]
        jit.compile_all(made)
        yield


def rows(dtype, n, columns):
    """(op, arguments, attributes, arrays for the results) of every row kernel."""
    rng = np.random.default_rng(columns)

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    x, y, w, b = normal(n, columns), normal(n, columns), normal(columns), normal(columns)
    labels, t = rng.integers(0, columns, n), normal(n)
    if n > 1:
        labels[1] = -100
    out, row, lse = np.empty_like(x), np.empty(n, dtype), np.empty(n)
    known = IMPL["softmax_xent"](x, labels, None, **XENT)[1]
    yield "softmax_xent", (x, labels, None), XENT, (row, lse)
    yield "softmax_xent_bwd", (t, x, labels, None, known), XENT, out
    yield "softmax_xent_bwd", (np.broadcast_to(t[:1], n), x, labels, None, known), XENT, out
    yield "sum", (x,), {"axis": (0,), "keepdims": True}, np.empty((1, columns), dtype)
    yield "sum", (x.reshape(n, 1, columns),), {"axis": (0, 1), "keepdims": False}, np.empty(columns, dtype)
    for kind in ("relu", "gelu", "silu"):
        yield "bias_act", (x, b), {"kind": kind}, out
        yield "bias_act_bwd", (y, x, None if kind == "relu" else b), {"kind": kind}, (out, np.empty_like(b))
    if columns < jit.SHORT:
        return
    for name in ("softmax", "log_softmax"):
        yield name, (x,), {"axis": 1}, out
        yield f"{name}_bwd", (y, IMPL[name](x, axis=1)), {"axis": 1}, out
    for weights, centred in (((w, b), True), ((w, None), False), ((None, None), True)):
        attrs = NORM | {"centred": centred}
        mean, rstd = np.empty((n, 1), dtype) if centred else None, np.empty((n, 1), dtype)
        yield "layer_norm", (x, *weights), attrs, (out, (mean, rstd))
        statistics = IMPL["layer_norm"](x, *weights, **attrs)[1]
        sums = tuple(np.empty(0 if weights[0] is None else columns, dtype) for _ in range(2))
        yield "layer_norm_bwd", (y, x, weights[0], *statistics, y), attrs, (out, *sums)


def close(got, wanted, dtype, what):
    """To the precision of the type, of the size of the array's numbers."""
    for a, b in zip(jit.leaves(got), jit.leaves(wanted), strict=True):
        assert (a is None) == (b is None), what
        if a is not None:
            assert (a.shape, a.dtype) == (b.shape, b.dtype), what
            scale = np.abs(b[np.isfinite(b)]).max(initial=1e-30)
            np.testing.assert_allclose(
                a, b, rtol=0, atol=scale * (4e-6 if dtype == "float32" else 1e-13), err_msg=str(what)
            )


@pytest.mark.parametrize("shape", [(1, 1), (3, 10), (70, 64), (40, 70), (5, 3001), (700, 129)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_row_kernels_give_what_the_ops_give(dtype, shape):
    for name, args, attrs, out in rows(np.dtype(dtype), *shape):
        routine = jit.lookup(name, args, attrs)
        wanted = IMPL[name](*args, **attrs)
        before = copy.deepcopy(args)
        close(routine(*args), wanted, dtype, (name, attrs))
        for leaf in jit.leaves(out):
            if leaf is not None:
                leaf.fill(np.nan)
        for _ in range(2):  # bound, then again
            given = routine(*args, out=out)
            assert all(a is b for a, b in zip(jit.leaves(given), jit.leaves(out)))
            close(out, wanted, dtype, (name, attrs))
        for a, b in zip(jit.leaves(list(args)), jit.leaves(list(before))):
            assert a is None or np.array_equal(a, b)


@pytest.mark.parametrize("shape", [(1, 1), (6, 3), (3, 5), (67, 9), (130, 10), (70, 64), (40, 70), (6, 3001)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cross_entropy_forward_and_backward_in_one(dtype, shape):
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=shape).astype(dtype) * 5, rng.normal(size=shape[0]).astype(dtype)
    labels = rng.integers(0, shape[1], shape[0])
    labels[shape[0] // 2] = -100
    loss, lse = IMPL["softmax_xent"](x, labels, None, **XENT)
    grad = IMPL["softmax_xent_bwd"](t, x, labels, None, lse, **XENT)
    routine = jit.lookup(jit.BOTH, (t, x, labels, None), XENT)
    close(routine(t, x, labels, None), (loss, lse, grad), dtype, shape)
    over = x.copy()  # the gradient in the logits' memory
    out = (np.empty_like(loss), np.empty_like(lse), over)
    close(routine(t, over, labels, None, out=out), (loss, lse, grad), dtype, shape)


@pytest.mark.parametrize("columns", [10, 100])
def test_cross_entropy_of_what_is_not_finite(columns):
    x = np.random.default_rng(0).normal(size=(6, columns)).astype("f4")
    x[0, 1], x[1], x[2, 3], x[3, 2], x[4] = -np.inf, -np.inf, np.inf, np.nan, 1e30
    labels = np.array([1, 0, 3, 4, 5, 6])
    wanted = IMPL["softmax_xent"](x, labels, None, **XENT)
    got = jit.lookup("softmax_xent", (x, labels, None), XENT)(x, labels, None)
    for a, b in zip(got, wanted):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    t = np.ones(6, "f4")
    grad = jit.lookup("softmax_xent_bwd", (t, x, labels, None, wanted[1]), XENT)(t, x, labels, None, wanted[1])
    np.testing.assert_allclose(
        grad, IMPL["softmax_xent_bwd"](t, x, labels, None, wanted[1], **XENT), rtol=1e-5, atol=1e-7
    )
    rows = [0, 1, 3, 5]
    together = jit.lookup(jit.BOTH, (t, x, labels, None), XENT)(t, x, labels, None)
    for a, b in zip(together[:2], wanted):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(together[2][rows], grad[rows], rtol=1e-5, atol=1e-7)
    assert np.isnan(together[2][2, 3])
    np.testing.assert_allclose(together[2][4].sum(), 0, atol=1e-6)  # of logits whose differences are exact


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_keeps_the_digits_of_small_shares(dtype):
    """Down to where numbers have no digits any more."""
    x = np.linspace(-110 if dtype == "float32" else -750, 0, 4001).astype(dtype)[None]
    got = jit.lookup("softmax", (x,), {"axis": 1})(x)[0]
    e = np.exp(x[0].astype("longdouble"))
    wanted = e / e.sum()
    assert wanted[0] < np.finfo(dtype).smallest_subnormal
    places = np.abs(got - wanted) / np.spacing(np.maximum(wanted, np.finfo(dtype).tiny).astype(dtype))
    assert places.max() < 4


def test_softmax_of_what_is_not_finite():
    x = np.random.default_rng(0).normal(size=(4, 50)).astype("f4")
    x[0, 1], x[1], x[2, 3], x[3, 2] = -np.inf, -np.inf, np.inf, np.nan
    for name in ("softmax", "log_softmax"):
        wanted = IMPL[name](x, axis=1)
        np.testing.assert_allclose(jit.lookup(name, (x,), {"axis": 1})(x), wanted, rtol=1e-5, atol=1e-6)


def test_a_label_that_is_no_class_is_named():
    x, labels = np.zeros((5, 40), "f4"), np.array([0, 39, -100, 40, 2])
    routine = jit.lookup("softmax_xent", (x, labels, None), XENT)
    with pytest.raises(RangeError, match="label 40 in row 3"):
        routine(x, labels, None)
    own = XENT | {"ignore_index": 40}
    assert jit.lookup("softmax_xent", (x, labels[3:], None), own)(x[3:], labels[3:], None)[0][0] == 0
    own = XENT | {"ignore_index": 39}  # a class, ignored
    assert jit.lookup("softmax_xent", (x, labels[:2], None), own)(x[:2], labels[:2], None)[0][1] == 0


def test_what_no_row_kernel_computes_is_none():
    x, labels = np.zeros((5, 40), "f4"), np.zeros(5, "i8")
    for op, args, attrs in (
        ("softmax", (x,), {"axis": 0}), ("softmax", (x.astype("f2"),), {"axis": 1}), ("matmul", (x, x), {}),
        ("sum", (x,), {"axis": (1,), "keepdims": False}), ("sum", (x,), {"axis": (0, 1), "keepdims": False}),
        ("softmax_xent", (x, labels, np.ones(40, "f4")), XENT), ("softmax_xent", (x, x, None), XENT),
        ("softmax_xent", (x, labels, None), XENT | {"smoothing": 0.1}),
        ("softmax_xent", (x, labels.astype("i4"), None), XENT), ("layer_norm", (x, None, None), NORM | {"axis": (0,)}),
    ):  # fmt: skip
        assert jit.lookup(op, args, attrs) is None, (op, attrs)


def test_arrays_that_lie_otherwise_go_to_numpy():
    x = np.random.default_rng(0).normal(size=(50, 40)).astype("f4").T
    routine = jit.lookup("softmax", (x,), {"axis": 1})
    out = np.empty((40, 50), "f4")
    assert np.array_equal(routine(x, out=out), IMPL["softmax"](x, axis=1))
    assert np.array_equal(out, IMPL["softmax"](x, axis=1))
    y = np.ascontiguousarray(x)  # and back
    np.testing.assert_allclose(routine(y, out=out), IMPL["softmax"](y, axis=1), rtol=1e-5)


def test_elementwise_ops_are_chains_of_one_step():
    x, y = (np.random.default_rng(i).normal(size=(30, 20)).astype("f4") for i in (0, 1))
    for op, args, attrs in (
        ("gelu", (x,), {"approximate": "none"}), ("add", (x, y[0]), {}), ("multiply", (x, 0.5), {}),
        ("dropout", (x, np.array([3], "u8")), {"key": (1, 2), "p": 0.4}),
    ):  # fmt: skip
        routine, out = jit.lookup(op, args, attrs), np.empty_like(x)
        wanted = IMPL[op](*args, **attrs)
        np.testing.assert_allclose(routine(*args), wanted, rtol=1e-5, atol=1e-6)
        assert routine(*args, out=out) is out
        args[0][0, 0] += 1
        routine(*args, out=out)
        np.testing.assert_allclose(out, IMPL[op](*args, **attrs), rtol=1e-5, atol=1e-6)
    assert jit.lookup("asinh", (x,), {}) is None


# --- optimisers -------------------------------------------------------------------------------------------------------

SIZES = ((300, 170), (7,), (), (0, 3), (33, 2))
STEPS = {  # op: (number of state lists, attributes); nadam has products besides, sgd velocities only with a momentum
    "sgd": (1, {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01, "nesterov": False}),
    "adagrad": (1, {"lr_decay": 0.01, "eps": 1e-10, "weight_decay": 0.0}),
    "adadelta": (2, {"rho": 0.9, "eps": 1e-6, "weight_decay": 0.0}),
    "rmsprop": (3, {"alpha": 0.9, "eps": 1e-8, "momentum": 0.5, "weight_decay": 0.01}),
    "adam": (3, ADAM),
    "adamax": (2, {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0}),
    "nadam": (2, {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum_decay": 4e-3}),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_optimiser_steps(dtype):
    rng = np.random.default_rng(0)
    for op, (states, attrs) in STEPS.items():
        params = [np.asarray(rng.normal(size=s), dtype) for s in SIZES]
        grads = [np.asarray(rng.normal(size=s), dtype) for s in SIZES]
        grads[4] = None
        step, lr = np.zeros(len(SIZES)), np.array(0.01)
        lists = [[np.zeros_like(p) for p in params] for _ in range(states)]
        args = [params, *lists, step, *([np.ones(len(SIZES))] if op == "nadam" else []), grads, lr]
        twin = copy.deepcopy(args)
        routine = jit.lookup(op, args, attrs)
        for i in range(4):
            if i == 2:
                lr *= 0.5  # read anew each time
                twin[-1] *= 0.5
            routine(*args)
            IMPL[op](*twin, **attrs)
        for a, b in zip(jit.leaves(args), jit.leaves(twin)):
            if a is not None:
                scale = np.abs(b).max(initial=1e-30)
                assert np.abs(a - b).max(initial=0) <= scale * (1e-6 if dtype == "float32" else 1e-14), op
        assert (step == [4, 4, 4, 4, 0]).all()


def test_a_skipped_step_changes_nothing_and_new_arrays_are_seen():
    params, grads = [np.ones(5, "f4")], [np.ones(5, "f4")]
    state, skip = [[np.zeros(5, "f4")] for _ in range(2)], np.array(1, "i4")
    args = [params, *state, [], np.zeros(1), grads, np.array(0.1), skip]
    routine = jit.lookup("adam", args, ADAM)
    routine(*args)
    assert (params[0] == 1).all()
    skip[...] = 0
    routine(*args)
    moved = params[0].copy()
    assert (moved < 1).all()
    grads[0] = -np.ones(5, "f4")  # another array in the same list
    routine(*args)
    twin = moved.copy()
    twin_args = copy.deepcopy([[np.ones(5, "f4")], [np.zeros(5, "f4")], [np.zeros(5, "f4")], [], np.zeros(1)])
    for g in (1, -1):
        IMPL["adam"](*twin_args, [np.full(5, g, "f4")], np.array(0.1), **ADAM)
    np.testing.assert_allclose(params[0], twin_args[0][0], rtol=1e-6)
    assert not np.array_equal(params[0], twin)


def test_gradients_that_lie_otherwise_are_copied_before_every_step():
    rng = np.random.default_rng(0)
    params, state = (
        [np.ones(s, "f4") for s in ((2, 4), (3,), (5, 2))],
        [np.zeros(s, "f4") for s in ((2, 4), (3,), (5, 2))],
    )
    grads = [rng.normal(size=(4, 2)).astype("f4").T, None, rng.normal(size=(5, 2))]
    attrs = STEPS["sgd"][1] | {"momentum": 0.9}
    args = [params, state, np.zeros(3), grads, np.array(0.1)]
    twin = copy.deepcopy(args)
    routine = jit.lookup("sgd", args, attrs)
    for _ in range(3):
        routine(*args)
        IMPL["sgd"](*twin, **attrs)
        for g in (grads[0], grads[2], twin[3][0], twin[3][2]):
            g *= 0.5
    assert routine.struct is not None
    for a, b in zip(params, twin[0]):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_parameter_that_lies_otherwise_is_numpys():
    strided, plain = np.ones((4, 4), "f4").T[::2], np.ones((2, 4), "f4")
    attrs = STEPS["sgd"][1] | {"momentum": 0.0}
    assert jit.lookup("sgd", [[strided], [], np.zeros(1), [plain], np.array(0.1)], attrs) is None


def heads(dtype, batch, query_heads, key_heads, queries, keys, depth, width):
    """(q, k, v, t) of attention, as views of arrays in which the heads of a position lie side by side."""
    rng = np.random.default_rng(queries)

    def normal(n, length, size):
        return rng.normal(size=(batch, length, n, size)).astype(dtype).transpose(0, 2, 1, 3)

    return (
        normal(query_heads, queries, depth), normal(key_heads, keys, depth), normal(key_heads, keys, width),
        normal(query_heads, queries, width),
    )  # fmt: skip


ATTENDED = [  # batch, heads of queries and keys, queries, keys, depth, width, causal, mask
    (2, 3, 3, 40, 40, 16, 16, True, None), (1, 1, 1, 1, 1, 1, 1, False, None),
    (2, 4, 2, 37, 53, 20, 24, False, "float"), (1, 2, 1, 5, 7, 3, 6, True, "bool"),
    (2, 2, 2, 33, 17, 40, 8, True, "rows"), (1, 2, 2, 3, 70, 8, 33, False, "heads"),
]  # fmt: skip


@pytest.mark.parametrize("case", ATTENDED, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_attention(dtype, case):
    *sizes, causal, kind = case
    batch, h, _, tq, tk = sizes[:5]
    q, k, v, t = heads(dtype, *sizes)
    rng, mask = np.random.default_rng(1), None
    if kind == "float":
        mask = rng.normal(size=(batch, 1, 1, tk)).astype(dtype)
    elif kind is not None:
        mask = rng.random({"bool": (1, 1, tq, tk), "rows": (1, 1, tq, 1), "heads": (batch, h, tq, tk)}[kind]) < 0.6
        mask[0, 0, 0] = False  # a query that sees nothing
    attrs = {"causal": causal, "scale": 0.3}
    out, lse = wanted = IMPL["attention"](q, k, v, mask, **attrs)
    for name, args, want in (
        ("attention", (q, k, v, mask), wanted),
        ("attention_bwd", (t, q, k, v, mask, out, lse), IMPL["attention_bwd"](t, q, k, v, mask, out, lse, **attrs)),
    ):
        routine = jit.lookup(name, args, attrs)
        made = routine(*args)
        assert routine.struct is not None
        for a, b in zip(made, want):
            assert np.array_equal(a == -np.inf, b == -np.inf), name
            scale = np.abs(b[np.isfinite(b)]).max(initial=1e-1)
            np.testing.assert_allclose(a, b, rtol=0, atol=scale * (4e-6 if dtype == "float32" else 1e-13))
        again = tuple(np.full_like(a, np.nan) for a in made)
        assert routine(*args, out=again) is again
        assert all(a.tobytes() == b.tobytes() for a, b in zip(made, again))


def test_attention_that_numpy_does():
    q, k, v, _ = heads("f4", 1, 2, 2, 3, 4, 8, 8)
    attrs = {"causal": False, "scale": 1.0}
    for args in ((q, k[:, :, :0], v[:, :, :0], None), (q, k, v, np.ones((1, 1, 1, 4)))):
        routine = jit.lookup("attention", args, attrs)
        for a, b in zip(routine(*args), IMPL["attention"](*args, **attrs)):
            np.testing.assert_array_equal(a, b)
        assert routine.struct is None


def matrices(dtype, *sizes):
    """(x, y) of products m, k, n: as they are, transposed, with more axes."""
    rng = np.random.default_rng(0)
    for m, k, n in sizes:
        x, y = rng.normal(size=(m, k)).astype(dtype), rng.normal(size=(k, n)).astype(dtype)
        turned = [np.ascontiguousarray(a.T).T for a in (x, y)]
        yield from ((x, y), (x, turned[1]), (turned[0], y), (turned[0], turned[1]))
        if m % 3 == 0:
            yield x.reshape(3, m // 3, k), turned[1]


SIZES_OF_PRODUCTS = (
    (129, 70, 65),
    (9, 2000, 17),
    (300, 300, 10),
    (1, 600, 601),
    (777, 1, 340),
    (66, 257, 32),
    (3, 42_000, 10),
    (64, 300, 100),
)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products(dtype, monkeypatch):
    monkeypatch.setattr(compiler, "wide", lambda: True)  # on any processor
    for x, y in matrices(dtype, *SIZES_OF_PRODUCTS):
        routine = jit.lookup("matmul", (x, y), {})
        out = np.full((*x.shape[:-1], y.shape[1]), np.nan, dtype)
        for _ in range(2):
            assert routine(x, y, out=out) is out
        assert routine.struct is not None
        exact = x.astype("f8") @ y.astype("f8")
        scale = np.abs(x).astype("f8") @ np.abs(y).astype("f8")  # what rounding is relative to
        assert (np.abs(out - exact) <= scale * np.finfo(dtype).eps * 4).all()
        assert np.array_equal(routine(x, y), out)


def test_products_of_what_is_not_finite_and_products_that_numpy_does(monkeypatch):
    monkeypatch.setattr(compiler, "wide", lambda: True)
    x, y = (np.random.default_rng(0).normal(size=(80, 80)).astype("f4") for _ in range(2))
    x[3, 5], x[20, 79], y[7, 9] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        wanted = x @ y
    got = jit.lookup("matmul", (x, y), {})(x, y)
    assert np.array_equal(np.isnan(got), np.isnan(wanted))
    assert np.array_equal(np.isinf(got), np.isinf(wanted))
    assert jit.lookup("matmul", (x[:10], y), {}) is None  # small
    assert jit.lookup("matmul", (np.stack([x, x]), np.stack([y, y])), {}) is None  # a stack of products
    strided = np.ones((160, 160), "f4")[::2, ::2]
    routine = jit.lookup("matmul", (strided, y[:, :79]), {})
    assert np.array_equal(routine(strided, y[:, :79])[:, 0], strided @ y[:, 0])
    assert routine.struct is None
    monkeypatch.setattr(compiler, "wide", lambda: False)
    assert jit.lookup("matmul", (x, y), {}) is None


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr(compiler, "wide", lambda: True)
    results = []
    cases = list(rows(np.dtype("float32"), 900, 129))
    q, k, v, t = heads("f4", 3, 4, 2, 50, 50, 16, 16)
    attrs = {"causal": True, "scale": 0.2}
    cases += [("attention", (q, k, v, None), attrs, None)]
    cases += [("attention_bwd", (t, q, k, v, None, *IMPL["attention"](q, k, v, None, **attrs)), attrs, None)]
    cases += [("matmul", pair, {}, None) for pair in matrices("f4", (129, 70, 65))]
    try:
        for n in (1, 3):
            compiler.set_threads(n)
            results.append([jit.leaves(jit.lookup(name, args, attrs)(*args)) for name, args, attrs, _ in cases])
    finally:
        compiler.set_threads(threads.count())
    for one, other in zip(*results):
        assert all(a is None or a.tobytes() == b.tobytes() for a, b in zip(one, other))


def test_it_can_be_turned_off_and_fails_over_to_numpy(monkeypatch):
    x = np.random.default_rng(0).normal(size=(5, 40)).astype("f4")
    made = jit.lookup("softmax", (x,), {"axis": 1})
    monkeypatch.setattr(compiler, "host_functions", lambda texts: [None] * len(texts))
    assert np.array_equal(made(x), IMPL["softmax"](x, axis=1))
    monkeypatch.setenv("GPUGRAD_CPU_JIT", "0")
    assert jit.lookup("softmax", (x,), {"axis": 1}) is None


def test_the_benchmark_runs_every_way_that_is_installed():
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent.parent / "bench" / "jit.py"), "overhead", "--rounds", "1"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = done.stdout.splitlines()[-1].split("|")
    assert row[1].strip() == "overhead"
    assert float(row[4]) > 0
