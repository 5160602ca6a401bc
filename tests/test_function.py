"""Custom ops: Function with ctx, and custom_op."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.check import GradientError
from gpugrad.errors import DTypeError, GraphError, ShapeError


class Cube(gg.Function):
    """x cubed."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx, t):
        (x,) = ctx.saved_tensors
        return 3.0 * x * x * t

    @staticmethod
    def jvp(ctx, t):
        (x,) = ctx.saved_tensors
        return 3.0 * x * x * t


class Exp(gg.Function):
    """e to the x, saving its output."""

    @staticmethod
    def forward(ctx, x):
        out = gg.exp(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, t):
        return ctx.saved_tensors[0] * t


def leaf(values):
    return gg.tensor(values, dtype="float64", requires_grad=True)


def test_first_order_and_plain_call():
    x = leaf([1.0, -2.0])
    y = Cube.apply(x)
    assert y.tolist() == [1.0, -8.0]
    y.sum().backward()
    assert x.grad.tolist() == [3.0, 12.0]
    assert not Cube.apply(x.detach()).requires_grad
    with gg.no_grad():
        assert not Cube.apply(x).requires_grad
    assert Cube.apply(gg.tensor([2.0], requires_grad=True)).dtype == np.float32


@pytest.mark.parametrize("op", [Cube, Exp])
def test_second_and_third_order(op):
    """Saved inputs and outputs are tied to the graph again when the rule is itself differentiated."""
    f = op.apply
    assert gg.gradcheck(f, [leaf([0.3, -1.2])])
    assert gg.gradgradcheck(f, [leaf([0.3, -1.2])])
    third = gg.grad(gg.grad(gg.grad(lambda x: f(x).sum())))(leaf(2.0))
    assert third.item() == pytest.approx(6.0 if op is Cube else np.exp(2.0), rel=1e-14)


def test_arguments_of_every_kind():
    x_needs = [True]

    class Scaled(gg.Function):
        @staticmethod
        def forward(ctx, x, power, mask, *, scale=1.0):
            assert ctx.needs_input_grad == (x_needs[-1], False, False)
            ctx.power, ctx.scale = power, scale
            ctx.save_for_backward(x, mask, None)
            return x**power * mask * scale

        @staticmethod
        def backward(ctx, t):
            x, mask, nothing = ctx.saved_tensors
            assert nothing is None
            return t * ctx.power * x ** (ctx.power - 1) * mask * ctx.scale, None, None

    x, mask = leaf([2.0, 3.0]), gg.tensor(np.array([1, 0]))
    Scaled.apply(x, 3, mask, scale=5.0).sum().backward()
    assert x.grad.tolist() == [60.0, 0.0]
    with pytest.raises(GraphError, match=r"\[Scaled\] scale requires gradients; pass it by position"):
        Scaled.apply(x, 3, mask, scale=leaf(1.0))
    with gg.no_grad():
        x_needs.append(False)
        assert Scaled.apply(x, 3, mask).tolist() == [8.0, 0.0]


def test_only_what_is_saved_is_kept():
    class Double(gg.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2.0

        @staticmethod
        def backward(ctx, t):
            return t * 2.0

    y = Double.apply(leaf([1.0]))
    assert y.node.saved == (None, None)


class SinCos(gg.Function):
    """Both at once: each output is what the other's derivative needs."""

    @staticmethod
    def forward(ctx, x):
        s, c = gg.sin(x), gg.cos(x)
        ctx.save_for_backward(s, c)
        return s, c

    @staticmethod
    def backward(ctx, ts, tc):
        s, c = ctx.saved_tensors
        return ts * c - tc * s


@pytest.mark.parametrize("pick", [lambda s, c: s, lambda s, c: c, lambda s, c: s * s * c])
def test_several_outputs(pick):
    """An output without a path to the loss gives a zero cotangent; higher orders go through both."""
    f = lambda x: pick(*SinCos.apply(x))
    assert gg.gradcheck(f, [leaf([0.3, 1.1])])
    assert gg.gradgradcheck(f, [leaf([0.3, 1.1])])


def test_non_differentiable_outputs():
    class Biggest(gg.Function):
        @staticmethod
        def forward(ctx, x):
            index = gg.argmax(x)
            rounded = gg.round(x)
            ctx.save_for_backward(index)
            ctx.n = x.shape[0]
            ctx.mark_non_differentiable(rounded)
            return gg.max(x), index, rounded

        @staticmethod
        def backward(ctx, t, no_index, no_rounded):
            assert no_index is None
            assert no_rounded is None
            (index,) = ctx.saved_tensors
            return t * (gg.arange(ctx.n) == index).astype(t.dtype)

    x = leaf([1.0, 7.0, 3.0])
    value, index, rounded = Biggest.apply(x)
    assert value.requires_grad
    assert not index.requires_grad
    assert not rounded.requires_grad
    (gx,) = gg.gradients(value * value, [x], create_graph=True)
    assert gx.tolist() == [0.0, 14.0, 0.0]
    assert gg.gradients(gx.sum(), x).tolist() == [0.0, 2.0, 0.0]


def test_an_intermediate_works_at_first_order_and_refuses_second():
    class Hidden(gg.Function):
        @staticmethod
        def forward(ctx, x):
            square = x * x
            ctx.save_for_backward(square)
            return square * x

        @staticmethod
        def backward(ctx, t):
            return 3.0 * ctx.saved_tensors[0] * t

    class Attribute(Hidden):
        @staticmethod
        def forward(ctx, x):
            ctx.square = x * x
            return ctx.square * x

        @staticmethod
        def backward(ctx, t):
            return 3.0 * ctx.square * t

    for op in (Hidden, Attribute):
        x = leaf([2.0])
        y = op.apply(x)
        y.backward(retain_graph=True)
        assert x.grad.tolist() == [12.0]
        with pytest.raises(GraphError, match="second derivatives would take for a constant"):
            y.backward(create_graph=True)


def test_numpy_attribute_is_a_constant_at_every_order():
    table = np.array([2.0, 5.0])

    class Weighted(gg.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.table = table
            ctx.save_for_backward(x)
            return x * x * table

        @staticmethod
        def backward(ctx, t):
            return 2.0 * ctx.saved_tensors[0] * t * ctx.table

    assert gg.gradgradcheck(Weighted.apply, [leaf([1.0, 2.0])])


def test_wrong_rule_is_caught_at_the_first_call():
    class WrongCube(Cube):
        @staticmethod
        def backward(ctx, t):
            return 2.0 * ctx.saved_tensors[0] * ctx.saved_tensors[0] * t

    x = leaf([1.0, 2.0])
    with pytest.raises(
        GradientError, match=r"\[WrongCube\] backward is wrong for input 0: .* gives .*, expected "
    ) as info:
        WrongCube.apply(x)
    words = str(info.value).split()
    got, want = float(words[words.index("gives") + 1].rstrip(",")), float(words[words.index("expected") + 1])
    assert got / want == pytest.approx(2 / 3, rel=1e-4)
    assert f"{__file__}:" in str(info.value)
    WrongCube.check = False
    WrongCube.apply(x).sum().backward()
    assert x.grad.tolist() == [2.0, 8.0]


def test_wrong_jvp_and_missing_gradient_are_caught():
    class WrongPush(Cube):
        @staticmethod
        def jvp(ctx, t):
            return t

    with pytest.raises(GradientError, match="jvp is wrong for input 0"):
        WrongPush.apply(leaf([1.0, 2.0]))

    class Forgotten(gg.Function):
        @staticmethod
        def forward(ctx, x, y):
            ctx.save_for_backward(y)
            return x * y

        @staticmethod
        def backward(ctx, t):
            return t * ctx.saved_tensors[0], None

    Forgotten.apply(leaf([1.0]), gg.tensor([2.0]))
    with pytest.raises(GradientError, match=r"wrong for input 1: .* gives 0, expected"):
        Forgotten.apply(leaf([1.0]), leaf([2.0]))


def test_check_runs_once_and_copes_with_kinks_and_edges():
    calls = []

    class Ramp(gg.Function):
        @staticmethod
        def forward(ctx, x):
            calls.append(x.dtype)
            ctx.save_for_backward(x)
            return gg.maximum(x, 0.0)

        @staticmethod
        def backward(ctx, t):
            return t * (ctx.saved_tensors[0] > 0.0).astype(t.dtype)

    class Root(gg.Function):
        @staticmethod
        def forward(ctx, x):
            out = gg.sqrt(x)
            ctx.save_for_backward(out)
            return out

        @staticmethod
        def backward(ctx, t):
            return t * 0.5 / ctx.saved_tensors[0]

    rng = np.random.default_rng(0)
    x = gg.tensor(
        np.maximum(rng.normal(size=5000), 0), dtype="float32", requires_grad=True
    )  # half the inputs on the kink
    Ramp.apply(x)
    assert np.float64 in calls
    del calls[:]
    Ramp.apply(x)
    assert calls == [np.float32]
    with np.errstate(all="ignore"):
        Root.apply(leaf(np.abs(rng.normal(size=50)) * (rng.random(50) > 0.5)))  # half the inputs at the edge


def test_malformed_backward():
    def op(result):
        class Bad(gg.Function):
            check = False

            @staticmethod
            def forward(ctx, x, y):
                return x + y

            @staticmethod
            def backward(ctx, t):
                return result(t)

        return Bad.apply(leaf([1.0, 2.0]), leaf([3.0, 4.0])).sum()

    with pytest.raises(ShapeError, match=r"\[Bad backward\] backward returned 1 gradients, expected 2") as info:
        op(lambda t: t).backward()
    assert f"{__file__}:" in str(info.value)
    with pytest.raises(ShapeError, match=r"the rule for input 1 gave shape \(3,\), expected \(2,\)"):
        op(lambda t: (t, gg.zeros(3))).backward()
    with pytest.raises(DTypeError, match=r"backward returned 1\.0 for input 0, expected a Tensor or None"):
        op(lambda t: (1.0, t)).backward()


def test_malformed_backward_is_named_by_the_check_too():
    class Short(gg.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1.0

        @staticmethod
        def backward(ctx, t):
            return t[:1]

    with pytest.raises(ShapeError, match=r"\[Short backward\] the rule for input 0 gave shape \(1,\), expected \(2,\)"):
        Short.apply(leaf([1.0, 2.0]))


def test_malformed_forward():
    class Raw(gg.Function):
        @staticmethod
        def forward(ctx, x):
            return x.numpy()

    with pytest.raises(DTypeError, match=r"\[Raw\] forward returned float64\[1\]; expected a Tensor"):
        Raw.apply(leaf([1.0]))


def test_broadcast_gradients_are_summed_as_for_any_op():
    class Shift(gg.Function):
        @staticmethod
        def forward(ctx, x, b):
            return x + b

        @staticmethod
        def backward(ctx, t):
            return t, t

    x, b = leaf(np.ones((3, 2))), leaf([1.0, 2.0])
    Shift.apply(x, b).sum().backward()
    assert b.grad.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("op", [Exp.apply, lambda x: SinCos.apply(x)[0]])
def test_no_reference_cycle(op):
    x = leaf([1.0])
    op(x)
    gc.collect()
    gc.disable()
    try:
        for use in (lambda y: None, lambda y: y.backward(), lambda y: y.backward(create_graph=True)):
            y = op(x)
            ref = weakref.ref(y.node)
            use(y)
            x.zero_grad()
            del y
            assert ref() is None
    finally:
        gc.enable()


def test_spent_and_overwritten():
    x = leaf([1.0])
    y = Cube.apply(x * 1.0)
    y.backward()
    with pytest.raises(GraphError, match="already differentiated"):
        y.backward()
    b = gg.tensor([3.0], dtype="float64")
    z = Times.apply(x, b)
    b[0] = 4.0
    with pytest.raises(GraphError, match="overwritten"):
        z.backward()


class Times(gg.Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx, t):
        x, y = ctx.saved_tensors
        return t * y, t * x


def test_custom_op():
    def vjp(t, out, x, n):
        return t * n * x ** (n - 1), None

    power = gg.custom_op(lambda x, n: x**n, vjp, lambda ts, out, x, n: ts[0] * n * x ** (n - 1), name="power")
    assert gg.gradcheck(lambda x: power(x, 3), [leaf([1.0, 2.0])])
    assert gg.gradgradcheck(lambda x: power(x, 3), [leaf([1.0, 2.0])])
    assert power(gg.tensor([2.0]), 3).tolist() == [8.0]
    wrong = gg.custom_op(lambda x: x * x, lambda t, out, x: t * x, name="square")
    with pytest.raises(GradientError, match=r"\[square\] backward is wrong"):
        wrong(leaf([1.0]))
    straight_through = gg.custom_op(gg.round, lambda t, out, x: t, check=False)
    x = leaf([0.4, 1.6])
    straight_through(x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


def test_gradients_that_share_memory_do_not_meet_in_the_leaves():
    class Both(gg.Function):
        @staticmethod
        def forward(ctx, x, y):
            return x + y

        @staticmethod
        def backward(ctx, g):
            twice = g * 1.0
            return twice, twice

    x, y = (gg.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    for _ in range(2):
        Both.apply(x, y).sum().backward()
    assert x.grad.tolist() == y.grad.tolist() == [2.0, 2.0]
