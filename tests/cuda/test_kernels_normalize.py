"""Kernels of normalisations against the NumPy twin in float64: on the emulator in several schedules, and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.nn import functional as nnf

from .kernel_checks import Pair, check, wide

rng = np.random.default_rng()


@pytest.fixture(autouse=True)
def _seed():
    """The same numbers for a test in whatever order tests run."""
    global rng
    rng = np.random.default_rng(7)


F32 = np.dtype("float32")
MODES = {"layer": {"eps": 0.1, "centred": True}, "rms": {"eps": 1e-3, "centred": False}}  # 0.1: two equal ones


def normal(shape, dtype, offset=0.0):
    return (rng.normal(size=shape) + offset).astype(dtype)


def statistics_like(x, axis, eps, centred):
    """What the forward keeps, of the very numbers in x."""
    v = x.astype("float64")
    m = v.mean(axis, keepdims=True) if centred else None
    var = np.square(v - (m if centred else 0)).mean(axis, keepdims=True)
    acc = "float64" if x.dtype == np.float64 else "float32"
    rstd = 1 / np.sqrt(var + eps)
    return (None if m is None else m.astype(acc)), rstd.astype(acc)


def compare(got, want, dtype):
    for g, w in zip(got, want, strict=True):
        assert g.shape == np.shape(w)
        check(g, w, dtype)


def check_rows(backend, x, w, b, mode):
    """Forward and backward over the last axis, with and without a residual."""
    a, dtype = {"axis": (x.ndim - 1,), **MODES[mode]}, x.dtype
    plain, added, back = (Pair(backend, n) for n in ("layer_norm", "add_layer_norm", "layer_norm_bwd"))
    r, t, more = (normal(x.shape, dtype) for _ in range(3))
    y, kept = plain.kernel(*plain.device(x, w, b), **a)
    y, *kept = (None if k is None else backend.to_numpy(k) for k in (y, *kept))
    wy, wkept = plain.twin(*map(wide, (x, w, b)), **a)
    assert y.dtype == dtype
    check(y, wy, dtype)
    assert (kept[0] is None) == (mode == "rms")
    compare(
        [k for k in kept if k is not None], [k for k in wkept if k is not None], F32 if dtype.itemsize < 8 else dtype
    )
    (ay, total), _ = added.kernel(*added.device(x, r, w, b), **a)
    ay, total = map(backend.to_numpy, (ay, total))
    assert np.array_equal(total, x + r)
    check(ay, plain.twin(*map(wide, (total, w, b)), **a)[0], dtype)
    args = (t, x, w, *statistics_like(x, **a))
    for last in (None, more):
        got = back.run(*args, last, **a)
        compare(got, back.twin(*map(wide, (t, x, w)), None, None, wide(last), **a), dtype)
        assert {g.dtype for g in got} == {dtype}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("given", ["", "w", "wb"])
def test_options(backend, dtype, mode, given):
    for shape in ((5, 24), (2, 3, 17), (3, 600), (20, 509)):
        w, b = (normal(shape[-1], dtype, 1) if c in given else None for c in "wb")
        check_rows(backend, normal(shape, dtype, 0.5), w, b, mode)


@pytest.mark.parametrize("cols", [1, 2, 31, 32, 33, 127, 128, 1023, 1024, 1025, 4096])
def test_sizes(backend, scheduled, cols):
    with scheduled:
        for rows in (1, 9):
            check_rows(backend, normal((rows, cols), F32, 3), normal(cols, F32), normal(cols, F32), "layer")


@pytest.mark.parametrize("cols", [8192, 9001, 20000])
def test_rows_that_no_block_holds(backend, cols):
    check_rows(backend, normal((3, cols), F32), normal(cols, F32), normal(cols, F32), "layer")


def test_a_row_of_two_hundred_thousand(backend):
    check_rows(backend, normal((1, 200_000), np.dtype("float16")), normal(200_000, np.dtype("float16")), None, "rms")


def test_many_rows_are_summed_by_several_blocks_in_one_order(backend, dtype, scheduled):
    """The same bits in every order of threads and blocks."""
    x, t, w = normal((300, 40), dtype), normal((300, 40), dtype), normal(40, dtype)
    back, a = Pair(backend, "layer_norm_bwd"), {"axis": (1,), **MODES["layer"]}
    args = (t, x, w, *statistics_like(x, **a))
    first = back.run(*args, **a)
    with scheduled:
        again = back.run(*args, **a)
    assert all(np.array_equal(g, h) for g, h in zip(first, again))
    compare(first[1:], back.twin(*map(wide, (t, x, w)), None, None, **a)[1:], dtype)


@pytest.mark.parametrize("offset", [1, 3])
def test_misaligned_views(backend, dtype, offset):
    a = {"axis": (1,), **MODES["layer"]}
    pair = Pair(backend, "layer_norm")
    x, w = normal(6 * 64 + offset, dtype), normal(64 + offset, dtype)
    dx, dw = pair.device(x, w)
    y, _ = pair.kernel(dx[offset:].reshape(6, 64), dw[offset:], None, **a)
    check(backend.to_numpy(y), pair.twin(wide(x[offset:].reshape(6, 64)), wide(w[offset:]), None, **a)[0], dtype)


def test_a_mean_far_from_zero_costs_no_digits(backend):
    a = {"axis": (1,), "eps": 1e-12, "centred": True}
    pair = Pair(backend, "layer_norm")
    x = (1e4 + rng.normal(size=(4, 700))).astype("float32")
    y, _ = pair.kernel(*pair.device(x, None, None), **a)
    np.testing.assert_allclose(backend.to_numpy(y), pair.twin(wide(x), None, None, **a)[0], atol=2e-3)
    x = x.reshape(4, 7, 100)
    batch = Pair(backend, "batch_norm")
    (y, _, var), _ = batch.kernel(*batch.device(x, None, None), axis=(0, 2), eps=1e-12)
    (want, _, wvar), _ = batch.twin(wide(x), None, None, axis=(0, 2), eps=1e-12)
    np.testing.assert_allclose(backend.to_numpy(var), wvar, rtol=1e-4)
    np.testing.assert_allclose(backend.to_numpy(y), want, atol=2e-3)


def test_nan_and_infinity_stay_in_their_row(backend):
    x = normal((4, 50), F32)
    x[1, 3], x[2, 5] = np.nan, np.inf
    pair = Pair(backend, "layer_norm")
    y, _ = pair.kernel(*pair.device(x, None, None), axis=(1,), eps=1e-5, centred=True)
    assert np.isnan(backend.to_numpy(y)).all(1).tolist() == [False, True, True, False]


def test_nothing_to_normalise_is_left_to_the_twin(backend):
    pair = Pair(backend, "layer_norm")
    for x in (np.empty((0, 4), "float32"), np.empty((3, 0), "float32")):
        with pytest.raises(TypeError):
            pair.run(x, None, None, axis=(1,), eps=1e-5, centred=True)


# --- batches and groups ---------------------------------------------------------------------------------------------


def check_batch(backend, x, w, b):
    axis, dtype = (0, *range(2, x.ndim)), x.dtype
    a = {"axis": axis, "eps": 1e-5}
    w, b = (p if p is None else p.reshape(-1, *(1,) * (x.ndim - 2)) for p in (w, b))
    forward, back, t = Pair(backend, "batch_norm"), Pair(backend, "group_norm_bwd"), normal(x.shape, dtype)
    outs, kept = forward.kernel(*forward.device(x, w, b), **a)
    want, _ = forward.twin(*map(wide, (x, w, b)), **a)
    outs = [backend.to_numpy(o) for o in outs]
    assert {o.dtype for o in outs} == {dtype}
    compare(outs, want, dtype)
    kept = [backend.to_numpy(k) for k in kept]
    got = back.run(t, x, w, *kept, centred=True, **a)
    compare(got, back.twin(*map(wide, (t, x, w)), None, None, centred=True, **a), dtype)


@pytest.mark.parametrize("shape", [(5, 3), (70, 40), (4, 3, 6), (3, 5, 4, 8), (2, 2, 33, 40), (1, 3, 3), (6, 4, 1, 1)])
def test_batch_norm(backend, dtype, shape):
    w, b = normal(shape[1], dtype, 1), normal(shape[1], dtype)
    check_batch(backend, normal(shape, dtype, 0.5), w, b)


@pytest.mark.parametrize("given", ["", "w"])
def test_batch_norm_options_and_schedules(backend, scheduled, given):
    with scheduled:
        check_batch(backend, normal((9, 4, 50), F32), normal(4, F32) if given else None, None)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 6), (2, 2, 33, 40)])
@pytest.mark.parametrize("given", ["", "wb"])
def test_batch_norm_in_evaluation(backend, dtype, shape, given):
    pair, spread = Pair(backend, "batch_norm_eval"), (shape[1], *(1 for _ in shape[2:]))
    w, b = (normal(spread, dtype) if given else None for _ in range(2))
    x, m, v = normal(shape, dtype), normal(spread, dtype), (rng.random(spread) + 0.5).astype(dtype)
    check(pair.run(x, w, b, m, v, eps=1e-3), pair.twin(*map(wide, (x, w, b, m, v)), eps=1e-3), dtype)


@pytest.mark.parametrize("shape", [(2, 3, 2, 5), (3, 2, 1, 70), (2, 2, 4, 3, 8), (1, 3, 3, 1100)])
def test_group_norm(backend, dtype, shape):
    a = {"axis": tuple(range(2, len(shape))), **MODES["layer"]}
    spread = (*shape[1:3], *(1 for _ in shape[3:]))
    x, t, w, b = normal(shape, dtype, 2), normal(shape, dtype), normal(spread, dtype, 1), normal(spread, dtype)
    forward, back = Pair(backend, "group_norm"), Pair(backend, "group_norm_bwd")
    y, kept = forward.kernel(*forward.device(x, w, b), **a)
    check(backend.to_numpy(y), forward.twin(*map(wide, (x, w, b)), **a)[0], dtype)
    kept = [backend.to_numpy(k) for k in kept]
    compare(back.run(t, x, w, *kept, **a), back.twin(*map(wide, (t, x, w)), None, None, **a), dtype)


# --- as programs ------------------------------------------------------------------------------------------------------


def block(x, r, w, b):
    y, total = nnf.add_layer_norm(x, r, 24, w, b)
    z, last = nnf.add_rms_norm(y * y, total, 24, w)
    return (z * last).sum()


def images(x, r, w, b):
    x = gg.reshape(x, (3, 4, 2, 6)) + gg.reshape(r, (3, 4, 2, 6))
    w, b = w[:4], b[:4]
    y = nnf.batch_norm(x, None, None, w, b, training=True)
    z = nnf.group_norm(y * y, 2, w, b)
    return (z * nnf.batch_norm(z, b * b, w * w + 1, w, b)).sum()


@pytest.mark.parametrize("program", [block, images])
def test_gradients_of_programs_are_those_of_the_cpu(gpu, program):
    arrays = [normal((6, 24), F32), normal((6, 24), F32), normal(24, F32, 1), normal(24, F32)]
    found = []
    for device in ("cpu", "cuda"):
        leaves = [gg.tensor(a, device=device, requires_grad=True) for a in arrays]
        program(*leaves).backward()
        found.append([leaf.grad.numpy() for leaf in leaves])
    for got, want in zip(found[1], found[0]):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4 * np.abs(want).max())
