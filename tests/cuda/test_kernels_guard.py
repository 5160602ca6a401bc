"""The mailbox: what kernels report, who is told, and that nobody waited for it."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backends
from gpugrad.errors import DomainError, RangeError
from gpugrad.nn import functional as F
from gpugrad.testing import fake_cupy


@pytest.fixture
def device(gpu):
    """Arrays on the device, and an empty letter box."""
    return lambda a: gg.asarray(a).to("cuda")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_element_that_is_not_finite_is_named(device, dtype, scheduled, bad):
    x = np.ones((5, 700), dtype)
    x[3, 600:], x[4] = bad, np.nan
    with scheduled:
        y = gg.assert_finite(device(x), "the {loss}")
        with pytest.raises(
            DomainError, match=rf"the {{loss}} is {bad} at \[3, 600\]; expected finite(.|\n)*y = gg.assert"
        ):
            gg.ones(1, device="cuda").numpy()
    assert np.array_equal(y.numpy(), x, equal_nan=True)


def test_what_is_finite_leaves_no_letter(device):
    for x in (np.full(4099, 3e38, "float32"), np.zeros((0, 3)), np.array(1e300)):
        assert gg.assert_finite(device(x)).shape == x.shape
    gg.ones(1, device="cuda").numpy()


def test_the_first_launch_with_an_offender_wins_and_the_lowest_row_in_it(device, scheduled):
    first, second = np.zeros((40, 3), "float32"), np.zeros((40, 3), "float32")
    with scheduled:
        F.cross_entropy(device(first), device(np.where(np.arange(40) < 25, 1, 7 + np.arange(40))))
        F.cross_entropy(device(second), device(np.full(40, -5)))
        with pytest.raises(RangeError, match="label 32 in row 25; expected 0 to 2"):
            backends.get("cuda").synchronize()
        backends.get("cuda").synchronize()  # said once


def test_training_goes_on_after_a_bad_label_and_the_error_names_the_users_line(device):
    w = gg.tensor(np.ones((4, 3), "float32"), device="cuda", requires_grad=True)
    x = device(np.ones((2, 4), "float32"))
    loss = F.cross_entropy(x @ w, device(np.array([0, 3])))
    with pytest.raises(
        RangeError, match=r"label 3 in row 1(.|\n)*test_kernels_guard\.py(.|\n)*loss = F\.cross_entropy"
    ):
        float(loss)
    good = F.cross_entropy(x @ w, device(np.array([0, 2])))
    good.backward()
    assert np.isfinite(float(good))
    assert np.isfinite(w.grad.numpy()).all()


def test_nobody_waits_for_a_guard(double):
    x = gg.tensor(np.full((2, 3), np.nan, "float32"), device="cuda", requires_grad=True)
    labels = gg.asarray(np.array([0, 9])).to("cuda")
    F.cross_entropy(x, labels)  # compiles
    with pytest.raises(RangeError):
        double.synchronize()
    fake_cupy.waited.clear()
    loss = F.cross_entropy(gg.assert_finite(x), labels)
    loss.backward()
    assert fake_cupy.waited == []
    with pytest.raises(DomainError, match="nan"):  # the first of the two launches
        loss.item()
    assert fake_cupy.waited == ["get", "Device.synchronize"]  # an error found: other streams may be reporting too


def test_a_captured_step_reports_at_each_launch(device):
    x, labels = device(np.zeros((3, 4), "float32")), device(np.array([0, 1, 2]))
    float(F.cross_entropy(x, labels))
    backend = backends.get("cuda")
    with backend.capture() as graph:
        loss = F.cross_entropy(x, labels)
    graph.launch()
    assert float(loss) == pytest.approx(np.log(4))
    for bad in (4, 9):
        labels.data[...] = backend.asarray(np.array([0, bad, 2]))
        graph.launch()
        with pytest.raises(RangeError, match=f"label {bad} in row 1"):
            float(loss)
    labels.data[...] = backend.asarray(np.array([0, 1, 2]))
    graph.launch()
    assert float(loss) == pytest.approx(np.log(4))
