"""The engine on one page: the smallest truths. Read this first."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg


def leaf(value):
    return gg.tensor(value, dtype=gg.float64, requires_grad=True)


def test_a_constant_is_not_recorded():
    assert (gg.tensor([1.0]) * 2).node is None


def test_product_rule():
    x, y = leaf(3.0), leaf(4.0)
    (x * y).backward()
    assert (x.grad.item(), y.grad.item()) == (4.0, 3.0)


def test_chain_rule():
    x = leaf(2.0)
    gg.exp(x * x).backward()
    assert x.grad.item() == pytest.approx(4 * np.exp(4), rel=1e-15)


def test_forks_add():
    x = leaf(3.0)
    (x * x + x).backward()
    assert x.grad.item() == 7.0


def test_broadcasting_is_summed_back():
    x, b = leaf(np.ones((3, 2))), leaf(np.zeros(2))
    (x + b).sum().backward()
    assert b.grad.tolist() == [3.0, 3.0]


def test_backward_adds_to_grad():
    x = leaf(1.0)
    (2 * x).backward()
    (3 * x).backward()
    assert x.grad.item() == 5.0


def test_a_graph_is_spent_after_backward():
    x = leaf(1.0)
    y = x * x
    y.backward()
    assert (y + 1).node is None
    with pytest.raises(gg.errors.GraphError):
        y.backward()


def test_nothing_is_recorded_under_no_grad():
    x = leaf(1.0)
    with gg.no_grad():
        assert (x * 2).node is None
    assert (x * 2).node is not None


def test_functional_gradient_of_any_order():
    f = lambda x: x**3
    assert gg.grad(f)(2.0).item() == 12.0
    assert gg.grad(gg.grad(f))(2.0).item() == 12.0
    assert gg.grad(gg.grad(gg.grad(f)))(2.0).item() == 6.0


def test_no_reference_cycles():
    x = leaf(1.0)
    y = x * 2
    z = y * 3
    assert z.node.parents[0] is y.node
    assert all(type(s) is not gg.Tensor for s in z.node.saved)
