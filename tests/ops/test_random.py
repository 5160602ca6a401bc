"""Generators: bits against NumPy's Philox, reproducibility, distributions; dropout."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import DomainError, DTypeError
from gpugrad.ops import random
from gpugrad.ops.random import Generator, dropout
from gpugrad.testing import fake_cupy

KEYS = [(0, 0), (5, random.ROOT), (2**64 - 1, 2**63 + 1)]


def counter(value):
    return np.array([value], "uint64")


# --- words ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("start", [0, 7, 2**32 - 2, 2**64 - 3])
def test_the_array_version_gives_numpys_words(key, start):
    """Across the carries of the counter too."""
    want = np.random.Philox(key=np.array(key, "uint64"), counter=np.array([start, 0, 0, 0], "uint64")).random_raw(36)
    np.testing.assert_array_equal(random.philox(np, counter(start), key, 9).reshape(-1), want)
    np.testing.assert_array_equal(random.words(np, counter(start), key, 33), want[:33])
    there = random.words(fake_cupy, fake_cupy.asarray(counter(start)), key, 33)
    np.testing.assert_array_equal(there.get(), want[:33])
    np.testing.assert_array_equal(random.halves(np, counter(start), key, 7), want[:4].view("uint32")[:7])


@pytest.mark.parametrize("key", KEYS)
def test_another_array_module_draws_the_same_bits(key):
    """Every device draw on CuPy's double, which refuses what CuPy refuses."""
    at, there = counter(11), fake_cupy.asarray(counter(11))
    for dtype in ("float16", "float32", "float64"):
        for low, high in ((0.0, 1.0), (-3.0, 5.0)):
            a = {"key": key, "shape": (3, 7), "low": low, "high": high, "dtype": dtype}
            np.testing.assert_array_equal(
                random.draw_uniform(fake_cupy, there, **a).get(), random.draw_uniform(np, at, **a)
            )
    a = {"key": key, "shape": (40,), "low": -9, "high": 100}
    np.testing.assert_array_equal(random.draw_integers(fake_cupy, there, **a).get(), random.draw_integers(np, at, **a))
    for p in (0.0, 0.3, 1.0):
        a = {"key": key, "shape": (5, 5), "p": p}
        np.testing.assert_array_equal(
            random.draw_bernoulli(fake_cupy, there, **a).get(), random.draw_bernoulli(np, at, **a)
        )
    got = random.draw_permutation(fake_cupy, there, key=key, n=50).get()
    np.testing.assert_array_equal(got, random.draw_permutation(np, at, key=key, n=50))
    x = np.ones((6, 5), "float32")
    got = random.mask(fake_cupy, fake_cupy.asarray(x), there, key=key, p=0.4).get()
    np.testing.assert_array_equal(got, random.mask(np, x, at, key=key, p=0.4))


def test_high_product():
    rng = np.random.default_rng(0)
    b = np.concatenate([rng.integers(0, 2**64, 50, dtype="uint64"), np.array([0, 1, 2**64 - 1, 2**32], "uint64")])
    for a in (0, 1, 3, 2**32, 2**64 - 1, random.MULTIPLIERS[0]):
        assert random.high_product(a, b).tolist() == [a * int(v) >> 64 for v in b]


# --- generators -----------------------------------------------------------------------------------------------


def everything(seed):
    """A hash of one draw of each kind."""
    g = Generator(seed)
    draws = [
        g.uniform((3, 5)), g.normal(7), g.integers(100, shape=9), g.permutation(20), g.bernoulli(0.3, 11),
        g.uniform(3, dtype="float64"), g.fold_in(4).uniform(2), dropout(gg.ones((4, 4)), 0.5, generator=g),
    ]  # fmt: skip
    return hashlib.sha256(b"".join(d.numpy().tobytes() for d in draws)).hexdigest()


def test_same_seed_same_bits_in_another_process():
    program = "import tests.ops.test_random as t; print(t.everything(3))"
    for hash_seed in ("1", "2"):
        env = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": "."}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
        assert done.stdout.strip() == everything(3), done.stderr
    assert everything(4) != everything(3)
    assert everything(-1) == everything(2**64 - 1)


def test_draws_follow_each_other_without_overlap():
    """The counter moves by whole blocks of four words, and n numbers of 64 bits use n of them."""
    g, whole = Generator(9), Generator(9).uniform(12, dtype="float64").numpy()
    parts = [g.uniform(n, dtype="float64").numpy() for n in (4, 8)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert g.state_dict()["counter"] == 3
    a, b = g.normal(4).numpy(), g.normal(4).numpy()
    assert not np.intersect1d(a, b).size
    snapshot = g.take(5)
    assert snapshot.numpy().tolist() == [5]
    assert g.state_dict()["counter"] == 7


def test_state_is_plain_and_restores_the_sequence():
    g = Generator(2)
    g.normal(3)
    state = json.loads(json.dumps(g.state_dict()))
    address = g._counter.data
    first = g.uniform(5).numpy(), g.normal(5).numpy()
    g.load_state_dict(state)
    assert g._counter.data is address  # a captured step keeps its counter
    for a, b in zip(first, (g.uniform(5).numpy(), g.normal(5).numpy())):
        np.testing.assert_array_equal(a, b)
    other = Generator()
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.uniform(5).numpy(), first[0])
    assert other.seed == 2


def test_folded_streams_are_reproducible_and_distinct():
    g = Generator(1)
    streams = [g.fold_in(i).uniform(4).numpy().tolist() for i in (0, 1, -1, 2**64, 2**70)]
    assert len({tuple(s) for s in streams}) == 5
    assert streams[1] == Generator(1).fold_in(1).uniform(4).numpy().tolist()
    assert g.state_dict()["counter"] == 0
    assert g.fold_in(1).fold_in(2).uniform().item() != g.fold_in(2).fold_in(1).uniform().item()


@pytest.mark.parametrize("dtype, digits", [("float16", 11), ("float32", 24), ("float64", 53)])
def test_uniform(dtype, digits):
    u = Generator(0).uniform(100_000, dtype=dtype)
    assert u.dtype == dtype
    v = u.numpy().astype("float64")
    assert v.min() >= 0
    assert v.max() < 1
    assert (np.ldexp(v, digits) % 1 == 0).all()
    assert abs(v.mean() - 0.5) < 4 / np.sqrt(12 * v.size)
    assert np.abs(np.histogram(v, 20, (0, 1))[0] - 5000).max() < 5 * np.sqrt(5000)
    w = Generator(0).uniform((1000, 100), -2, 3, dtype).numpy()
    assert w.min() >= -2
    assert w.max() < 3
    np.testing.assert_allclose(w.reshape(-1), 5 * v - 2, atol=1e-2 if dtype == "float16" else 1e-6)


def test_the_upper_end_is_never_reached():
    """1 + u rounds to 2 for the largest u; every draw stays below."""
    assert Generator(0).uniform(100_000, 1.0, 2.0, "float16").numpy().max() < 2


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_normal(dtype):
    z = Generator(0).normal((100, 1000), 3.0, 2.0, dtype)
    assert z.dtype == dtype
    v = (z.numpy().astype("float64").reshape(-1) - 3) / 2
    assert abs(v.mean()) < 4 / np.sqrt(v.size)
    assert abs(v.var() - 1) < 4 * np.sqrt(2 / v.size)
    assert abs((np.abs(v) < 1).mean() - 0.6827) < 0.006
    assert Generator(0).normal().shape == ()


def test_integers_and_booleans():
    g = Generator(0)
    k = g.integers(-3, 4, 70_000)
    assert k.dtype == np.int64
    assert np.abs(np.bincount(k.numpy() + 3, minlength=7) - 10_000).max() < 500
    assert set(g.integers(2, shape=100).tolist()) == {0, 1}
    assert g.integers(-(2**63), 2**63 - 1, 10).numpy().std() > 0
    b = g.bernoulli(0.3, 100_000)
    assert b.dtype == np.bool_
    assert abs(b.numpy().mean() - 0.3) < 0.006
    assert g.bernoulli(1.0, 1000).numpy().all()
    assert not g.bernoulli(0.0, 1000).numpy().any()


def test_permutation():
    g = Generator(0)
    first = np.array([g.permutation(5).numpy() for _ in range(2000)])
    assert (np.sort(first, 1) == np.arange(5)).all()
    assert np.abs(np.bincount(first[:, 0], minlength=5) - 400).max() < 100
    assert g.permutation(0).shape == (0,)
    assert g.permutation(1).tolist() == [0]


def test_the_default_generator_restarts_with_its_seed():
    before = gg.random.default.state_dict()
    try:
        gg.random.seed(7)
        a = gg.random.default.uniform(3).numpy()
        b = gg.random.normal(3).numpy()
        gg.random.seed(7)
        np.testing.assert_array_equal(gg.random.uniform(3).numpy(), a)
        np.testing.assert_array_equal(gg.random.normal(3).numpy(), b)
        np.testing.assert_array_equal(Generator(7).uniform(3).numpy(), a)
    finally:
        gg.random.default.load_state_dict(before)


def test_arguments_out_of_their_domain():
    g = Generator(0)
    for call, kind in (
        (lambda: g.bernoulli(1.5), DomainError), (lambda: g.integers(3, 3), DomainError),
        (lambda: dropout(gg.ones(3), -0.1), DomainError), (lambda: dropout(gg.ones(3), float("nan")), DomainError),
        (lambda: g.uniform(3, dtype="int32"), DTypeError), (lambda: dropout(gg.tensor([1, 2])), DTypeError),
    ):  # fmt: skip
        with pytest.raises(kind):
            call()


# --- dropout --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dropout_drops_and_scales(dtype):
    x = gg.tensor(np.full((200, 500), 2.0, dtype))
    y = dropout(x, 0.3, generator=Generator(1))
    assert y.dtype == dtype
    values = y.numpy()
    assert abs((values == 0).mean() - 0.3) < 0.006
    np.testing.assert_allclose(values[values != 0], 2 / 0.7, rtol=1e-3 if dtype == "float16" else 1e-6)


def test_gradient_has_the_mask_of_the_forward_and_nothing_is_kept():
    g = Generator(1)
    x = gg.tensor(np.random.default_rng(0).normal(size=(40, 25)).astype("float32"), requires_grad=True)
    y = dropout(x, 0.4, generator=g)
    kept = [v for v in y.node.saved if v is not None]
    assert sum(v.nbytes for v in kept) == 8  # the counter; no mask
    g.uniform(1000)  # the generator moves on before the gradient is taken
    (y * 3.0).sum().backward()
    dropped = y.numpy() == 0
    assert 300 < dropped.sum() < 500
    np.testing.assert_array_equal(x.grad.numpy() == 0, dropped)
    np.testing.assert_allclose(x.grad.numpy()[~dropped], 5.0, rtol=1e-6)


def test_dropout_at_its_ends():
    x = gg.tensor(np.array([1.0, -2.0, 3.0]), requires_grad=True)
    assert dropout(x, 0.0) is x
    assert dropout(x, 0.7, training=False) is x
    y = dropout(x, 1.0)
    assert y.tolist() == [0, 0, 0]
    y.sum().backward()
    assert x.grad.tolist() == [0, 0, 0]


def test_calls_draw_new_masks_and_one_seed_gives_one_sequence():
    x = gg.ones(1000)
    g, h = Generator(5), Generator(5)
    first, second = (dropout(x, 0.5, generator=g).numpy() for _ in range(2))
    assert (first != second).any()
    np.testing.assert_array_equal(dropout(x, 0.5, generator=h).numpy(), first)
    np.testing.assert_array_equal(dropout(x, 0.5, generator=h).numpy(), second)


def test_the_mask_does_not_depend_on_the_memory_layout():
    x = np.random.default_rng(0).normal(size=(6, 7))
    straight = dropout(gg.tensor(x), 0.5, generator=Generator(2)).numpy()
    turned = gg.tensor(np.ascontiguousarray(x.T)).T
    np.testing.assert_array_equal(dropout(turned, 0.5, generator=Generator(2)).numpy(), straight)


def test_dropout_in_a_second_derivative():
    """sum(dropout(x)^3) has the Hessian diagonal 6 x s^3 where kept (s: the scale), else 0."""
    x = gg.tensor(np.array([0.5, -1.0, 2.0, 1.5, -0.3, 0.8]))

    def f(x):
        y = dropout(x, 0.5, generator=Generator(3))
        return (y * y * y).sum()

    mask = dropout(gg.ones(6, dtype="float64"), 0.5, generator=Generator(3)).numpy()
    assert 0 < (mask == 0).sum() < 6
    diagonal = gg.grad(lambda x: gg.grad(f)(x).sum())(x)
    np.testing.assert_allclose(diagonal.numpy(), 6 * x.numpy() * mask**3, rtol=1e-12)
