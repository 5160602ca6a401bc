"""Kernels of attention against the NumPy twin in float64: on the emulator under several schedules, and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from gpugrad.launch import attention as launch

from .kernel_checks import Pair, check, wide

F32 = np.dtype("float32")
PATHS = {"tiles": launch.WIDEST, "matrices": 0}


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Scores on chip in tiles, or written out by matrix products."""
    monkeypatch.setattr(launch, "WIDEST", PATHS[request.param])
    return request.param


def case(dtype, queries=33, keys=40, depth=24, width=None, heads=(2, 2), batch=1, mask=None, seed=0):
    """(t, q, k, v, mask) at random."""
    rng, width = np.random.default_rng(seed), depth if width is None else width

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    q, k = normal(batch, heads[0], queries, depth), normal(batch, heads[1], keys, depth)
    t, v = normal(batch, heads[0], queries, width), normal(batch, heads[1], keys, width)
    if mask is not None:
        kind, *shape = mask
        mask = rng.random(shape) < 0.7 if kind == "bool" else normal(*shape)
    return t, q, k, v, mask


def check_attention(backend, t, q, k, v, mask, causal=False, scale=None):
    """Forward and backward; returns what the kernels gave."""
    options = {"causal": causal, "scale": q.shape[-1] ** -0.5 if scale is None else scale}
    forward, backward = Pair(backend, "attention"), Pair(backend, "attention_bwd")
    out, lse = forward.run(q, k, v, mask, **options)
    exact = [wide(a) if a is None or a.dtype != bool else a for a in (q, k, v, mask)]
    want, want_lse = forward.twin(*exact, **options)
    assert out.dtype == q.dtype
    assert lse.dtype == (np.float64 if q.dtype == np.float64 else np.float32)
    check(out, want, q.dtype)
    check(np.nan_to_num(lse, neginf=-1e4), np.nan_to_num(want_lse, neginf=-1e4), np.dtype(lse.dtype))
    grads = backward.run(t, q, k, v, mask, out, lse, **options)
    for got, slope in zip(grads, backward.twin(wide(t), *exact, want, want_lse, **options)):
        assert got.dtype == q.dtype
        check(got, slope, q.dtype)
    return out, lse, *grads


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_dtypes(backend, path, dtype, causal):
    check_attention(backend, *case(dtype, 33, 70, 40, 64), causal=causal)


@pytest.mark.parametrize("depth, width", [(1, 1), (8, 8), (31, 32), (33, 20), (64, 65), (128, 100), (120, 128)])
def test_heads_of_every_width(backend, path, depth, width):
    check_attention(backend, *case(F32, 20, 35, depth, width), causal=True)


def test_wide_heads_take_matrix_products(backend):
    assert not launch.tiled(*(np.empty((1, 1, 1, n)) for n in (8, 129)))
    check_attention(backend, *case(F32, 9, 5, 130, 140))


@pytest.mark.parametrize("queries", [1, 31, 32, 33, 63, 64, 65, 100])
def test_sizes(backend, path, queries):
    for keys in (1, 31, 32, 33, 63, 64, 65, 130):
        for causal in (False, True):
            check_attention(backend, *case(F32, queries, keys, 8, heads=(1, 1)), causal=causal)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_broadcast(backend, path, kind):
    for shape in ((2, 4, 20, 70), (1, 4, 20, 1), (2, 1, 1, 70), (1, 1, 20, 70), (2, 4, 1, 1)):
        for causal in (False, True):
            t, q, k, v, mask = case(F32, 20, 70, 8, heads=(4, 2), batch=2, mask=(kind, *shape))
            if kind == "bool" and shape[2] > 1:
                mask[:, :, 7] = False
            out, lse, dq, _, _ = check_attention(backend, t, q, k, v, mask, causal=causal)
            if kind == "bool" and shape[2] > 1:
                assert not out[:, :, 7].any()
                assert (lse[:, :, 7] == -np.inf).all()
                assert not dq[:, :, 7].any()


def test_masks_in_half_precision(backend, dtype):
    check_attention(backend, *case(dtype, 33, 70, 8, mask=("float", 1, 1, 33, 70)))


@pytest.mark.parametrize("heads", [(4, 1), (6, 3), (3, 3)])
def test_shared_key_heads(backend, path, heads):
    for causal in (False, True):
        check_attention(backend, *case(F32, 40, 40, 8, 4, heads=heads, batch=2), causal=causal)


def test_large_scores(backend, path):
    """The largest score comes last, and differences overflow the exponential."""
    t, q, k, v, _ = case(F32, 5, 140, 4, heads=(1, 1))
    order = np.argsort((q @ k.swapaxes(2, 3))[0, 0, 0])
    check_attention(backend, t, q, k[:, :, order], v, None, scale=200.0)


def test_infinite_and_missing_numbers(backend, path):
    """As NumPy: NaN and +inf scores make a row NaN, and only that row; -inf hides a key."""
    t, q, k, v, _ = case(F32, 4, 70, 4, heads=(1, 1))
    mask = np.zeros((1, 1, 4, 70), "float32")
    mask[0, 0, 0, :] = -np.inf
    mask[0, 0, 1, :68] = -np.inf
    mask[0, 0, 2, 5] = np.inf
    mask[0, 0, 3, 69] = np.nan
    options = {"causal": False, "scale": 0.5}
    forward, backward = Pair(backend, "attention"), Pair(backend, "attention_bwd")
    out, lse = forward.run(q, k, v, mask, **options)
    want, want_lse = forward.twin(q, k, v, mask, **options)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse, want_lse, rtol=1e-5)
    assert np.isnan(out).any(3)[0, 0].tolist() == [False, False, True, True]
    (dq, *_), (slope, *_) = (
        run(t, q, k, v, mask, out, lse, **options) for run in (backward.run, backward.twin)
    )
    np.testing.assert_allclose(dq, slope, rtol=1e-4, atol=1e-5)


def test_every_schedule_gives_the_same_bits(backend, path, scheduled):
    arrays = case(F32, 70, 70, 8, heads=(4, 2), mask=("float", 1, 4, 70, 1))
    plain = check_attention(backend, *arrays, causal=True)
    with scheduled:
        for a, b in zip(plain, check_attention(backend, *arrays, causal=True)):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("depth", [8, 128])
def test_misaligned_views(backend, depth):
    def shifted(a):
        memory = backend.xp.empty(a.size + 1, a.dtype)
        memory[1:] = backend.asarray(a.reshape(-1))
        return memory[1:].reshape(a.shape)

    t, q, k, v, _ = case(F32, 20, 35, depth)
    options = {"causal": False, "scale": 0.3}
    forward, backward = Pair(backend, "attention"), Pair(backend, "attention_bwd")
    host = backend.to_numpy
    out, lse = forward.kernel(*map(shifted, (q, k, v)), None, **options)
    want, want_lse = forward.twin(*map(wide, (q, k, v)), None, **options)
    check(host(out), want, F32)
    grads = backward.kernel(*map(shifted, (t, q, k, v)), None, shifted(host(out)), lse, **options)
    for got, slope in zip(grads, backward.twin(*map(wide, (t, q, k, v)), None, want, want_lse, **options)):
        check(host(got), slope, F32)


def test_empty_operands_have_no_kernel(backend):
    pair = Pair(backend, "attention")
    for queries, keys, depth in ((0, 3, 4), (3, 0, 4), (3, 2, 0)):
        arrays = [np.empty((1, 1, n, depth), "float32") for n in (queries, keys, keys)]
        assert pair.kernel.call(pair.kernel, *pair.device(*arrays), None, causal=False, scale=1.0) is NotImplemented


def test_geometry_fits_every_gpu():
    """At most 64 KB of shared memory a block, all that compute capability 7.5 has."""
    for name in ("attention", "attention_bwd"):
        for d in (32, 64, 128):
            for itemsize in (4, 8):
                assert launch.geometry(name, d, itemsize, 100, 3)[2] <= 64 * 1024
