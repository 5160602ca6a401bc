"""Batches that are fetched ahead are the loader's batches, and so is their state; on a GPU: tests/cuda/test_streams."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import data
from gpugrad.errors import DomainError


def loader(**options):
    return data.ArrayLoader(np.arange(20.0), np.arange(20), batch_size=6, seed=3, **options)


def values(batches):
    return [tuple(t.tolist() for t in batch) for batch in batches]


@pytest.mark.parametrize("ahead", [1, 2, 3, 4, 50])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_same_batches_in_the_same_order(ahead, shuffle):
    mine, own = data.Prefetch(loader(shuffle=shuffle), "cpu", ahead), loader(shuffle=shuffle)
    assert len(mine) == len(own) == 4
    for _ in range(3):
        assert values(mine) == values(own)


@pytest.mark.parametrize("ahead", [1, 3, 50])
@pytest.mark.parametrize("stop", range(1, 9))
def test_its_state_is_that_of_the_batch_in_hand(ahead, stop):
    """Though the loader itself is further."""

    def given(batches, count):
        seen = []
        while len(seen) < count:
            for batch in batches:
                seen.append(values([batch])[0])
                if len(seen) == count:
                    break
        return seen

    whole = given(loader(), 12)
    first = data.Prefetch(loader(), "cpu", ahead)
    assert given(first, stop) == whole[:stop]
    second = data.Prefetch(loader(), "cpu", 2)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert given(second, 12 - stop) == whole[stop:]


def test_a_loader_without_a_state():
    batches = [(gg.ones(2) * i,) for i in range(3)]
    mine = data.Prefetch(batches, "cpu")
    assert values(mine) == values(batches)
    assert mine.state_dict() is None


def test_ahead_is_at_least_one():
    with pytest.raises(DomainError, match="ahead is 0"):
        data.Prefetch(loader(), "cpu", 0)
