"""Views share memory and writes are noticed: mutate before backward, get the right gradient or a named error."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg


def leaf(value):
    return gg.tensor(value, dtype=gg.float64, requires_grad=True)


def constant(value):
    return gg.tensor(value, dtype=gg.float64)


def refused(loss, *said):
    with pytest.raises(gg.errors.GraphError) as caught:
        loss.backward()
    for piece in said:
        assert piece in str(caught.value)


def test_writing_a_constant_that_a_rule_saved():
    x, c = leaf([1.0, 2.0]), constant([3.0, 4.0])
    loss = (x * c).sum()  # saved here
    c[0] = 100.0  # written here
    refused(loss, "saved here", "written here", "[multiply]")


def test_writing_through_a_view_of_what_was_saved():
    x, c = leaf([1.0, 2.0]), constant([3.0, 4.0])
    loss = (x * c).sum()
    part = c[1:]
    part[0] = 100.0  # written here
    refused(loss, "written here")


def test_writing_the_base_of_a_saved_view():
    x, c = leaf([1.0]), constant([3.0, 4.0])
    loss = (x * c[1:]).sum()
    c[0] = 7.0  # the same memory, as far as can be told
    refused(loss, "the same memory")


def test_writing_what_no_rule_saved_is_harmless():
    x, c = leaf([1.0, 2.0]), constant([3.0, 4.0])
    loss = (x + c).sum()
    c[0] = 100.0
    loss.backward()
    assert x.grad.tolist() == [1.0, 1.0]


def test_writing_before_the_use_is_harmless():
    x, c = leaf([1.0, 2.0]), constant([3.0, 4.0])
    c[0] = 5.0
    (x * c).sum().backward()
    assert x.grad.tolist() == [5.0, 4.0]


def test_writing_a_copy_is_harmless():
    x, c = leaf([1.0, 2.0]), constant([3.0, 4.0])
    loss = (x * c).sum()
    d = gg.tensor(c)
    d[0] = 100.0
    loss.backward()
    assert x.grad.tolist() == [3.0, 4.0]


def test_writing_a_parameter_between_forward_and_backward():
    w = leaf([1.0, 2.0])
    loss = (w * w).sum()
    with gg.no_grad():
        w[...] = w * 0.5  # an update too early
    refused(loss, "an update too early")


def test_an_optimiser_step_between_forward_and_backward():
    w = leaf([1.0, 2.0])
    (w * w).sum().backward()
    optimizer = gg.optim.SGD([w], lr=0.1)
    loss = (w * w).sum()
    optimizer.step()
    refused(loss, "optimizer.step()")
    (w * w).sum().backward()  # a graph made afterwards is fine


def test_a_leaf_that_requires_gradients_is_not_assigned_to():
    w = leaf([1.0, 2.0])
    with pytest.raises(gg.errors.GraphError, match=r"\.at\[i\]\.set"):
        w[0] = 3.0
    assert w.tolist() == [1.0, 2.0]


def test_recorded_assignment_rebinds_and_earlier_values_stay():
    x = leaf([1.0, 2.0])
    y = x * 2
    before = y
    kept = y * 1.0
    y[0] = x[1] * 10
    assert before is y
    assert y.tolist() == [20.0, 4.0]
    assert kept.tolist() == [2.0, 4.0]
    (y * kept).sum().backward()
    assert x.grad.tolist() == [20.0 * 2, 10 * 2.0 + 4.0 * 2 * 2]


def test_recorded_assignment_through_a_view_is_refused():
    base = constant([1.0, 2.0, 3.0])
    view = base[1:]
    with pytest.raises(gg.errors.GraphError, match="view"):
        view[0] = leaf(5.0)
    assert base.tolist() == [1.0, 2.0, 3.0]


def test_numpy_views_are_read_only():
    x = constant([1.0, 2.0])
    with pytest.raises(ValueError, match="read-only"):
        x.numpy()[0] = 5.0
    copy = x.numpy(copy=True)
    copy[0] = 5.0
    assert x.tolist() == [1.0, 2.0]


def test_operators_with_equals_make_new_tensors():
    x = leaf([1.0, 2.0])
    y = x * 3
    z = y
    y += 1
    assert z.tolist() == [3.0, 6.0]
    y.sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]


def test_assignment_of_wrong_shape_names_both():
    x = constant([1.0, 2.0])
    with pytest.raises(gg.errors.ShapeError, match=r"float64\[2\]"):
        x[:] = np.ones(3)
