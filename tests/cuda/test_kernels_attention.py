"""Kernels of attention against the NumPy twin in float64: on the emulator under several schedules, and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.launch import attention as launch
from gpugrad.testing import fake_cupy

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
    """The largest score comes last, and differences overflow the exponential; whole numbers give exact scores."""
    t, q, k, v, _ = case(F32, 5, 140, 4, heads=(1, 1))
    q, k = np.rint(3 * q), np.rint(3 * k)
    k = k[:, :, np.argsort((q @ k.swapaxes(2, 3))[0, 0, 0])]
    options = {"causal": False, "scale": 16.0}
    forward, backward = Pair(backend, "attention"), Pair(backend, "attention_bwd")
    out, lse = forward.run(q, k, v, None, **options)
    want, want_lse = forward.twin(*map(wide, (q, k, v)), None, **options)
    assert np.ptp(want_lse) > 100
    check(out, want, F32)
    check(lse, want_lse, F32)
    grads = backward.run(t, q, k, v, None, out, lse, **options)
    slope = backward.twin(*map(wide, (t, q, k, v)), None, want, want_lse, **options)[2]
    assert all(np.isfinite(g).all() for g in grads)
    np.testing.assert_allclose(grads[2], slope, atol=4 * np.spacing(np.float32(want_lse.max())))  # lse is rounded


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
    (dq, *_), (slope, *_) = (run(t, q, k, v, mask, out, lse, **options) for run in (backward.run, backward.twin))
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


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary(backend, dtype, interleaved):
    rng, pair = np.random.default_rng(0), Pair(backend, "rotary")
    for shape in ((1, 2), (3, 5, 6), (2, 3, 33, 64), (2, 300, 16)):
        x = rng.normal(size=shape).astype(dtype)
        cos, sin = (rng.uniform(-1, 1, (shape[-2], shape[-1] // 2)).astype(dtype) for _ in range(2))
        got = pair.run(x, cos, sin, interleaved=interleaved)
        assert got.dtype == dtype
        check(got, pair.twin(*map(wide, (x, cos, sin)), interleaved=interleaved), dtype)


def test_misaligned_rotary(backend):
    rng, pair = np.random.default_rng(0), Pair(backend, "rotary")
    memory, cos, sin = (rng.normal(size=n).astype("float32") for n in (161, 40, 40))
    x = backend.asarray(memory)[1:].reshape(2, 10, 8)
    angles = [a.reshape(10, 4) for a in (cos, sin)]
    got = pair.kernel(x, *pair.device(*angles), interleaved=False)
    check(backend.to_numpy(got), pair.twin(*map(wide, (memory[1:].reshape(2, 10, 8), *angles)), interleaved=False), F32)


def test_a_gpt_on_the_device_has_the_numbers_of_the_cpu(double):
    """Loss and gradients; forward and backward go through the kernels."""
    ids = np.random.default_rng(0).integers(0, 11, (2, 20))
    host, there = (nn.GPT(11, 20, 16, 2, 2, generator=gg.random.Generator(0)).to(device=d) for d in ("cpu", "cuda:0"))
    losses = []
    for model, device in ((host, "cpu"), (there, "cuda:0")):
        del fake_cupy.launched[:]
        logits = model(gg.tensor(ids, device=device))
        loss = nn.functional.cross_entropy(logits.reshape((40, 11)), gg.tensor(np.roll(ids, -1).ravel(), device=device))
        loss.backward()
        losses.append(loss.numpy())
    np.testing.assert_allclose(*losses, rtol=1e-6)
    for a, b in zip(host.parameters(), there.parameters()):
        np.testing.assert_allclose(b.grad.numpy(), a.grad.numpy(), rtol=1e-4, atol=1e-6)
    for name in ("attention<float, 32>", "attention_dq<float, 32>", "attention_dkv<float, 32>", "rotary<float>"):
        assert any(name == str(kernel) for kernel in fake_cupy.launched), name
    start, source = gg.tensor(ids[:, :3], device="cuda:0"), gg.random.Generator(1)
    assert there.generate(start, 3, generator=source).shape == (2, 6)
