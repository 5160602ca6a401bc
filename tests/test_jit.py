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
        jit.compile_all([jit.lookup(name, args, attrs) for name, args, attrs, _ in cases])
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


@pytest.mark.parametrize("shape", [(1, 1), (130, 10), (70, 64), (40, 70), (6, 3001)], ids=str)
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


def test_an_update_that_would_have_to_copy_declines():
    strided, plain = np.ones((4, 4), "f4").T[::2], np.ones((2, 4), "f4")
    attrs = STEPS["sgd"][1] | {"momentum": 0.0}
    step, lr = np.zeros(1), np.array(0.1)
    assert jit.lookup("sgd", [[strided], [], step, [plain], lr], attrs) is None
    assert jit.lookup("sgd", [[plain], [], step, [np.ones((4, 2), "f4").T], lr], attrs) is None
    assert jit.lookup("sgd", [[plain], [], step, [plain.copy()], lr], attrs) is not None


def test_any_number_of_threads_gives_the_same_bits():
    results = []
    cases = list(rows(np.dtype("float32"), 900, 129))
    try:
        for threads in (1, 3):
            compiler.set_threads(threads)
            results.append([jit.leaves(jit.lookup(name, args, attrs)(*args)) for name, args, attrs, _ in cases])
    finally:
        compiler.set_threads(compiler.threads())
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
