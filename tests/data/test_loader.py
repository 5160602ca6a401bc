"""The in-memory loader: coverage, order, resume, modes."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.data import ArrayLoader
from gpugrad.data.loader import permutation
from gpugrad.errors import DomainError, ShapeError

X = np.arange(20, dtype=np.float32).reshape(10, 2)
Y = np.arange(10)


def seen(batches):
    return [y.tolist() for _, y in batches]


def flat(lists):
    return [v for part in lists for v in part]


@pytest.mark.parametrize("size, sizes", [(None, [10]), (1, [1] * 10), (4, [4, 4, 2]), (5, [5, 5]), (99, [10])])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_sample_once_an_epoch(size, sizes, shuffle):
    loader = ArrayLoader(X, Y, batch_size=size, shuffle=shuffle)
    assert len(loader) == len(sizes)
    for epoch in range(3):
        assert loader.epoch == epoch
        batches = list(loader)
        assert [len(y.tolist()) for _, y in batches] == sizes
        assert sorted(flat(seen(batches))) == list(range(10))
        for x, y in batches:
            assert isinstance(x, gg.Tensor)
            assert not x.requires_grad
            assert (x.dtype, y.dtype) == (np.float32, np.int64)
            assert np.array_equal(x.numpy(), X[y.numpy()])


def test_drop_last():
    loader = ArrayLoader(X, Y, batch_size=4, drop_last=True)
    assert len(loader) == 2
    assert [len(b) for b in seen(loader)] == [4, 4]
    assert loader.epoch == 1
    assert len(ArrayLoader(X, batch_size=11, drop_last=True)) == 0


def test_order_is_a_function_of_seed_and_epoch():
    one, two = ArrayLoader(X, Y, batch_size=3, seed=5), ArrayLoader(X, Y, batch_size=3, seed=5)
    epochs = [seen(one) for _ in range(3)]
    assert epochs == [seen(two) for _ in range(3)]
    assert len({str(e) for e in epochs}) == 3
    assert seen(ArrayLoader(X, Y, batch_size=3, seed=6)) != epochs[0]
    assert flat(seen(ArrayLoader(X, Y, batch_size=7, seed=5))) == flat(epochs[0])


def philox_words(n, key):
    """Philox 4x64-10 (Salmon et al., 2011) on Python integers, counter from 1."""
    mask, words = 2**64 - 1, []
    for counter in range(1, n // 4 + 2):
        c, (k0, k1) = [counter, 0, 0, 0], key
        for _ in range(10):
            p, q = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
            c = [(q >> 64) ^ c[1] ^ k0, q & mask, (p >> 64) ^ c[3] ^ k1, p & mask]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
        words += c
    return words[:n]


@pytest.mark.parametrize("seed, epoch", [(0, 0), (1, 2), (-1, 7), (2**63, 1)])
def test_the_order_is_the_ranks_of_philox_words(seed, epoch):
    """So it is the same on every NumPy version and on every device."""
    words = philox_words(101, (seed % 2**64, epoch))
    assert permutation(101, seed, epoch).tolist() == sorted(range(101), key=words.__getitem__)


def test_permutations_are_even():
    """Each sample is equally likely in each place (chi-square over 5 x 5 cells, 16 degrees of freedom)."""
    n, epochs = 5, 4000
    counts = np.zeros((n, n))
    for e in range(epochs):
        counts[np.arange(n), permutation(n, 11, e)] += 1
    expected = epochs / n
    assert ((counts - expected) ** 2 / expected).sum() < 45  # p = 1e-4 would be 44.9


def test_without_shuffle_batches_are_views_in_order():
    loader = ArrayLoader(X, Y, batch_size=4, shuffle=False)
    assert seen(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for x, _ in loader:
        assert np.shares_memory(x.data, X)


@pytest.mark.parametrize("stop", range(1, 9))
@pytest.mark.parametrize("shuffle", [True, False])
def test_resume_in_the_middle_is_bit_equal(stop, shuffle):
    def make(seed):
        return ArrayLoader(X, Y, batch_size=4, shuffle=shuffle, seed=seed)

    def stream(loader, epochs):
        while loader.epoch < epochs:
            yield from loader

    whole = seen(stream(make(3), 3))
    loader, first = make(3), []
    batches = stream(loader, 3)
    for _ in range(stop):
        first += seen([next(batches)])
    saved = loader.state_dict()
    resumed = make(99)
    resumed.load_state_dict(saved)
    assert first + seen(stream(resumed, 3)) == whole


def test_a_pass_left_early_is_an_epoch():
    loader = ArrayLoader(X, Y, batch_size=4, seed=1)
    reference = ArrayLoader(X, Y, batch_size=4, seed=1)
    epochs = [seen(reference) for _ in range(2)]
    assert seen([next(iter(loader))]) == [epochs[0][0]]
    assert seen(loader) == epochs[1]
    assert loader.epoch == 2


def test_state_of_another_set_is_refused():
    with pytest.raises(DomainError, match="saved with 10 samples, expected 5"):
        ArrayLoader(X[:5]).load_state_dict(ArrayLoader(X).state_dict())


def test_refuses_bad_arguments():
    with pytest.raises(ShapeError, match=r"\[10, 2\], \[9\]"):
        ArrayLoader(X, Y[:9])
    with pytest.raises(ShapeError):
        ArrayLoader()
    with pytest.raises(ShapeError):
        ArrayLoader(np.float32(3))
    with pytest.raises(DomainError, match="batch_size is 0"):
        ArrayLoader(X, batch_size=0)


def test_empty_arrays_give_no_batches():
    loader = ArrayLoader(X[:0], batch_size=4)
    assert len(loader) == 0
    assert list(loader) == []
    assert len(ArrayLoader(X[:0])) == 0


def test_batches_hold_no_graph():
    w = gg.tensor(X, dtype="float32").requires_grad_()
    (x,) = next(iter(ArrayLoader(w, batch_size=4)))
    assert not x.requires_grad


@pytest.mark.parametrize("drop_last", [True, False])
def test_saved_in_the_last_batch_resumes_with_the_next_epoch(drop_last):
    def make():
        return ArrayLoader(X, Y, batch_size=4, seed=2, drop_last=drop_last)

    loader = make()
    for _ in loader:
        saved = loader.state_dict()
    assert (saved["epoch"], saved["position"]) == (1, 0)
    resumed = make()
    resumed.load_state_dict(saved)
    assert seen(resumed) == seen(loader)
