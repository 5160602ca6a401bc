"""detect_nan: the line that a NaN comes from, forward and backward, and no false alarm."""

from __future__ import annotations

import inspect
import math
import threading

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import DomainError
from gpugrad.op import TABLE

from .cuda.conftest import double  # noqa: F401 - a fixture

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
HERE = __file__.rpartition("/")[2]


def leaf(*values):
    return gg.tensor(list(values), dtype=gg.float64, requires_grad=True)


def step(x):
    (x * 2).sum().backward()


# Programs in which the NaN (or the first infinity) is made on the line that ends in "# here", and seen elsewhere.


def a_loss_that_is_nan():
    """Its gradient is finite, so looking at gradients finds nothing."""
    x = leaf(1.0, -2.0)
    shifted = x * 1.0
    penalty = gg.log(shifted)  # here
    loss = (penalty * 0.0).sum() + (x * x).sum()
    loss.backward()


def nan_made_long_before_it_is_used():
    x = leaf(0.0, 1.0)
    ratio = x / x  # here
    hidden = gg.concat([x, ratio])
    for _ in range(5):
        hidden = gg.tanh(hidden @ gg.ones((4, 4), dtype=gg.float64))
    hidden.mean().backward()


def the_gradient_alone_is_nan():
    x = leaf(-800.0, 1.0)
    decay = gg.exp(-x)  # here
    y = 1.0 / (1.0 + decay)
    step(y)


def a_root_of_a_product():
    x = leaf(0.0, 4.0)
    root = gg.sqrt(x)
    area = gg.sum(root * root.detach())
    (gg.stack([area, area]) @ gg.ones((2, 2), dtype=gg.float64)).sum()
    scale = (gg.sqrt(x) @ gg.ones((2, 1), dtype=gg.float64)) * 0.0  # its gradient is zero, the root's slope is not
    (scale * math.inf).sum()  # here


def nan_in_the_data():
    x = gg.tensor([1.0, math.nan])
    w = leaf(1.0, 2.0)
    product = w * x  # here
    step(product)


def second_order():
    x = leaf(-800.0)

    def f(x):
        decay = gg.exp(-x)  # here
        return (1.0 / (1.0 + decay)).sum()

    gg.grad(lambda x: gg.grad(f)(x).sum())(x)


def own_function():
    class Bad(gg.Function):
        check = False

        @staticmethod
        def forward(ctx, x):
            return x * 2.0

        @staticmethod
        def backward(ctx, t):
            return gg.log(t * 0.0 - 1.0)  # here

    step(Bad.apply(leaf(1.0)))


def checkpointed():
    def f(x):
        return gg.log(x)  # here

    gg.checkpoint(f)(leaf(-1.0)).sum().backward()


PROGRAMS = [
    a_loss_that_is_nan, nan_made_long_before_it_is_used, the_gradient_alone_is_nan, a_root_of_a_product,
    nan_in_the_data, second_order, own_function, checkpointed,
]  # fmt: skip


def line_of(program):
    lines, first = inspect.getsourcelines(program)
    return first + next(i for i, text in enumerate(lines) if text.rstrip().endswith("# here"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_the_first_line_is_named(program):
    program()
    with gg.detect_nan(), pytest.raises(DomainError) as caught:
        program()
    assert f"{HERE}:{line_of(program)}:" in str(caught.value)
    assert "NaN" in str(caught.value)


def an_overflow():
    x = leaf(800.0, 1.0)
    grown = gg.exp(x)  # here
    gg.minimum(grown, 5.0).sum().backward()


def an_infinite_gradient():
    x = leaf(0.0, 1.0)
    root = gg.sqrt(x)  # here
    step(root)


@pytest.mark.parametrize("program", [an_overflow, an_infinite_gradient], ids=lambda f: f.__name__)
def test_infinities_are_named_if_asked_for(program):
    with gg.detect_nan():
        program()
    with gg.detect_nan(infinities=True), pytest.raises(DomainError, match="infinite at") as caught:
        program()
    assert f"{HERE}:{line_of(program)}:" in str(caught.value)


def test_the_messages():
    with gg.detect_nan(), pytest.raises(DomainError) as caught:
        gg.log(leaf(2.0, -3.0))
    assert str(caught.value).startswith("[log] the result is NaN at [1]; from float64[2] in [-3, 2]\n  at ")
    with gg.detect_nan(), pytest.raises(DomainError) as caught:
        step(gg.tensor([1.0, math.nan]) + leaf(1.0, 2.0))
    assert "from float64[2] in [1, 1], 1 NaN; float64[2] in [1, 2]" in str(caught.value).replace("float32", "float64")
    with gg.detect_nan(), pytest.raises(DomainError) as caught:
        the_gradient_alone_is_nan()
    assert str(caught.value).startswith("[exp backward] the gradient is NaN at [0]; from float64[2] in [-")


def fine():
    """Masked branches, missing data and infinite masks: nothing of it is a NaN that counts."""
    x = leaf(0.0, 2.0, 1e3)
    y = gg.where(x > 0, 1 / x, 0.0).sum() + gg.minimum(gg.exp(x), 10.0).sum() + gg.sqrt((x * 0 * x).sum())
    y = y + gg.softmax(gg.where(x > 1, -math.inf, x)).sum() + gg.norm(0 * x)
    y = y + gg.max(gg.nan_to_num(gg.tensor([math.nan])))
    y.backward()
    gg.optim.SGD([x], lr=0.1).step()
    return x.grad.numpy()


def test_no_false_alarm_and_nothing_stays_behind():
    fine()  # the optimisers' ops are in the table from now on
    before = {n: (op.vjps, op.joint, dict(op.impls)) for n, op in TABLE.items()}
    want = fine()
    with gg.detect_nan():
        got = fine()
        with gg.detect_nan():
            pass
    np.testing.assert_array_equal(got, want)
    assert np.isfinite(want).all()
    for n, op in TABLE.items():
        assert (op.vjps, op.joint) == before[n][:2]
        assert op.impls.items() >= before[n][2].items()
    assert np.isnan(gg.log(leaf(-1.0)).item())


def test_it_is_the_threads_alone():
    seen = []

    def other():
        seen.append(gg.log(leaf(-1.0)).item())
        x = leaf(-800.0)
        (1.0 / (1.0 + gg.exp(-x))).backward()
        seen.append(x.grad.item())

    with gg.detect_nan():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert np.isnan(seen).all()
    assert len(seen) == 2


def test_inside_a_profile_in_any_order_of_closing():
    """What a joint rule has to keep is read from its own parameters, however much stands around it."""
    before = {n: (op.vjps, op.joint) for n, op in TABLE.items()}
    TABLE["add_layer_norm"].union.clear()

    def step():
        x = gg.tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
        out, _ = gg.nn.functional.add_layer_norm(x, x, (3,))
        out[0].sum().backward()
        return x.grad.numpy()

    profile, watch = gg.profile(), gg.detect_nan()
    seen = profile.__enter__()
    watch.__enter__()
    got = step()
    profile.__exit__(None, None, None)
    with pytest.raises(DomainError):
        the_gradient_alone_is_nan()
    watch.__exit__(None, None, None)
    np.testing.assert_array_equal(got, step())
    assert {"backward", "forward"} <= {r.phase for r in seen.rows}
    assert {n: (op.vjps, op.joint) for n, op in TABLE.items()} == before


def test_jvp_and_vmap():
    with gg.detect_nan():
        gg.jvp(gg.exp, (leaf(1.0),), (gg.ones(1),))
        with pytest.raises(DomainError, match="NaN"):
            gg.vmap(gg.grad(lambda x: gg.log(x) * 1.0))(leaf(1.0, -1.0))
        with pytest.raises(DomainError, match="NaN"):
            gg.jvp(lambda x: gg.log(x) * x, (leaf(-1.0),), (gg.ones(1),))


def test_on_the_device(double):  # noqa: F811
    x = gg.tensor([1.0, -2.0], device="cuda")
    with gg.detect_nan(), pytest.raises(DomainError, match=r"\[log\] the result is NaN at \[1\]; from float32\[2\]"):
        gg.log(x)
