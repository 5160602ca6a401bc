"""Views, aliases and in-place writes: the right gradient, or an error that names both lines."""

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import GraphError, RangeError, ShapeError

X = np.array([1.0, 2.0, 3.0])


def leaf():
    return gg.tensor(X, requires_grad=True)


def both_lines(error, written, used):
    """The message names the line of the write and the line of the op that saved the value."""
    text = str(error.value)
    assert "was overwritten by" in text
    assert written in text.partition("after it was used in")[0]
    assert used in text.partition("after it was used in")[2]
    assert text.count("test_writes.py:") >= 2


def test_writing_a_leaf_between_forward_and_backward():
    w = leaf()
    y = (w * w).sum()
    with gg.no_grad():
        w[...] = 0.0
    with pytest.raises(GraphError) as error:
        y.backward()
    both_lines(error, "w[...] = 0.0", "y = (w * w).sum()")
    assert "[multiply]" in str(error.value)


def test_writing_a_saved_constant():
    w, c = leaf(), gg.tensor(X)
    y = (w * c).sum()
    c[0] = 9.0
    with pytest.raises(GraphError) as error:
        y.backward()
    both_lines(error, "c[0] = 9.0", "y = (w * c).sum()")


def test_writing_through_a_view_of_a_saved_constant():
    w, c = leaf(), gg.tensor(X)
    y = (w * c).sum()
    view = c[1:].reshape(2, 1)
    view[0] = 9.0
    assert c.tolist() == [1.0, 9.0, 3.0]
    with pytest.raises(GraphError) as error:
        y.backward()
    both_lines(error, "view[0] = 9.0", "y = (w * c).sum()")


def test_writing_the_base_of_a_saved_view():
    w, base = leaf(), gg.tensor(np.arange(6.0))
    y = (w * base[::2]).sum()
    base[1] = 9.0  # not even an element of the view: the log knows memory blocks, not elements
    with pytest.raises(GraphError) as error:
        y.backward()
    both_lines(error, "base[1] = 9.0", "y = (w * base[::2]).sum()")


def test_writing_a_saved_output():
    w = leaf()
    y = gg.exp(w)
    out = y.detach()
    out[0] = 0.0
    with pytest.raises(GraphError) as error:
        y.sum().backward()
    both_lines(error, "out[0] = 0.0", "y = gg.exp(w)")


def test_an_in_place_update_op_is_caught_too():
    w = leaf()
    y = (w * w).sum()
    with gg.no_grad():
        w[:2] -= 0.5
    with pytest.raises(GraphError) as error:
        y.backward()
    both_lines(error, "w[:2] -= 0.5", "y = (w * w).sum()")


def test_an_optimiser_step_between_forward_and_backward():
    w = leaf()
    (w * w).sum().backward()
    optimizer = gg.optim.SGD([w], lr=0.1)
    y = (w * w).sum()
    optimizer.step()
    with pytest.raises(GraphError) as error:
        y.backward()
    both_lines(error, "optimizer.step()", "y = (w * w).sum()")
    (w * w).sum().backward()  # a graph made afterwards is fine


@pytest.mark.parametrize("case", ["not saved", "before use", "after backward", "other memory", "only shape"])
def test_harmless_writes_give_the_right_gradient(case):
    w, c = leaf(), gg.tensor(X)
    if case == "before use":
        c[0] = 5.0
    y = (w + c).sum() if case == "not saved" else w.sum() if case == "only shape" else (w * c).sum()
    if case == "not saved":
        c[0] = 5.0
    if case == "only shape":
        with gg.no_grad():
            w[0] = 5.0
    if case == "other memory":
        c.numpy(copy=True)[0] = 5.0
        gg.tensor(c)[0] = 5.0
    y.backward()
    if case == "after backward":
        c[0] = 5.0
    want = {"not saved": [1, 1, 1], "before use": [5, 2, 3], "only shape": [1, 1, 1]}.get(case, X.tolist())
    assert w.grad.tolist() == want


def test_a_step_that_updates_in_place_and_records_again():
    w = leaf()
    for _ in range(3):
        w.zero_grad()
        (w * w).sum().backward()
        with gg.no_grad():
            w[...] = w - 0.25 * w.grad
    np.testing.assert_allclose(w.numpy(), X / 8)


def test_freed_memory_does_not_haunt_new_arrays():
    """A write to memory that is gone must not be held against an array that gets the same address."""
    for _ in range(50):
        c = gg.tensor(X)
        c[0] = 2.0
        del c
        w = leaf()
        (w * gg.tensor(X)).sum().backward()
        assert w.grad.tolist() == X.tolist()


# --- recorded assignment --------------------------------------------------------------------------------------


def test_recorded_assignment_gives_the_gradient_of_both_sides():
    x, v = leaf(), gg.tensor(4.0, requires_grad=True)
    y = x * 2.0
    y[1] = v * 3.0
    assert y.tolist() == [2.0, 12.0, 6.0]
    (y * y).sum().backward()
    assert x.grad.tolist() == [8.0, 0.0, 24.0]
    assert v.grad.item() == 72.0


def test_recorded_assignment_keeps_values_that_were_used_before():
    x = leaf()
    y = x * 2.0
    same, kept, before = y, y * 1.0, (y * y).sum()
    y[0] = 0.0
    assert same is y
    assert kept.tolist() == [2.0, 4.0, 6.0]
    (before + y.sum()).backward()
    np.testing.assert_allclose(x.grad.numpy(), 8 * X + [0, 2, 2])


def test_augmented_assignment_to_elements():
    x = leaf()
    y = x * 1.0
    y[1:] += x[:2]
    y[[0, 2]] *= 2.0
    y.sum().backward()
    assert y.tolist() == [2.0, 3.0, 10.0]
    assert x.grad.tolist() == [3.0, 3.0, 2.0]


def test_augmented_assignment_of_a_name_rebinds():
    x = leaf()
    y = x
    y += 1.0
    y.sum().backward()
    assert x.tolist() == X.tolist()
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


def test_leaf_cannot_be_assigned_to():
    x = leaf()
    with pytest.raises(GraphError) as error:
        x[0] = 1.0
    assert "x.at[i].set(v)" in str(error.value)
    assert "test_writes.py:" in str(error.value)
    assert x.tolist() == X.tolist()


@pytest.mark.parametrize(
    "make",
    [
        lambda x: (gg.tensor(X)[1:], x[1:] * 1.0),
        lambda x: ((x * 1.0)[1:], 0.0),
        lambda x: ((x * 1.0).reshape(3, 1)[:2], 0.0),
    ],
)
def test_recorded_write_to_a_view_is_refused(make):
    """It would not reach the base, which NumPy users expect."""
    view, value = make(leaf())
    with pytest.raises(GraphError) as error:
        view[...] = value if isinstance(value, float) else value.reshape(view.shape)
    assert "view" in str(error.value)
    assert "test_writes.py:" in str(error.value)


def test_constant_assigned_a_tracked_value_becomes_part_of_the_graph():
    x, y = leaf(), gg.zeros(3, dtype=gg.float64)
    y[::2] = x[:2]
    y.backward(gg.tensor([1.0, 10.0, 100.0]))
    assert x.grad.tolist() == [1.0, 100.0, 0.0]


def test_plain_assignment_takes_every_kind_of_index_and_value():
    t = gg.zeros((3, 4))
    t[0] = 1
    t[gg.tensor([1, 2]), 1] = gg.tensor([5.0, 6.0])
    t[t > 4.0] = -1.0
    t[:, [2, 3]] = np.array([7.0, 8.0])
    assert t.tolist() == [[1, 1, 7, 8], [0, -1, 7, 8], [0, -1, 7, 8]]
    view = t[1]
    view[0] = 3.0
    assert t[1, 0].item() == 3.0


@pytest.mark.parametrize(
    "index, value, kind",
    [
        (5, 0.0, RangeError),
        ((slice(None), [0, 9]), 0.0, RangeError),
        (0, [1.0, 2.0], ShapeError),
        (0, np.ones(3), ShapeError),
    ],
)
def test_assignment_errors(index, value, kind):
    with pytest.raises(kind) as error:
        gg.zeros((3, 4))[index] = value
    assert "[setitem]" in str(error.value)
    assert "float32[3, 4]" in str(error.value)
    assert "test_writes.py:" in str(error.value)
