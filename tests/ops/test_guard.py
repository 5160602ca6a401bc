"""Guards: what they let pass, what they say, and that nobody waits for them."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import DomainError


def test_finite_values_pass_unchanged_with_their_gradient():
    x = gg.tensor([1.0, -2.0], requires_grad=True)
    y = gg.assert_finite(x)
    assert y.data is x.data
    (y * y).sum().backward()
    assert x.grad.numpy().tolist() == [2, -4]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_offender_is_named(bad):
    x = np.ones((3, 4), "float32")
    x[1, 2:] = bad
    with pytest.raises(DomainError, match=rf"the loss is {bad} at \[1, 2\];(.|\n)*gg.assert_finite"):
        gg.assert_finite(gg.asarray(x), "the loss")


def test_integers_and_empty_arrays_are_finite():
    assert gg.assert_finite(gg.arange(3)).tolist() == [0, 1, 2]
    assert gg.assert_finite(gg.zeros((0, 2))).shape == (0, 2)
