"""Forward mode: every op's tangent through Dual, levels, and what jvp promises about memory and composition."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.op import TABLE

from .cuda.conftest import cuda, fake_cupy, registered
from .ops.test_table import SMOOTH, tensors, varied


def t64(value):
    return gg.tensor(value, dtype=gg.float64)


def outputs(op, sample, args):
    out = op.call(*args, **sample.attrs)
    return out if isinstance(out, tuple) else (out,)


def filled(args, where, xs):
    args = list(args)
    for i, x in zip(where, xs):
        args[i] = x
    return args


@pytest.mark.parametrize("name, sample", [p for p in SMOOTH if p.values[1].outputs is None])
def test_every_op_through_dual_matches_numeric(name, sample):
    """Backward ops with `via` included; the value is the plain one, shape and dtype those of the value."""
    op = TABLE[name]
    where, fixed = varied(op, sample), tensors(sample)
    rng = np.random.default_rng(5)
    xs = [fixed[i] for i in where]
    vs = [t64(rng.normal(size=x.shape)) for x in xs]

    def f(*moved):
        return outputs(op, sample, filled(fixed, where, moved))

    value, got = gg.jvp(f, xs, vs)
    h = 1e-3
    ends = [f(*[x + k * h * v for x, v in zip(xs, vs)]) for k in (1, -1, 2, -2)]
    for i, (y, g) in enumerate(zip(value, got)):
        assert g.shape == y.shape
        assert g.dtype == y.dtype
        a, b, c, d = (e[i].numpy() for e in ends)
        want = (8 * (a - b) - (c - d)) / (12 * h)
        np.testing.assert_allclose(g.numpy(), want, rtol=1e-6, atol=1e-7 * max(1.0, np.abs(want).max(initial=0)))
    for y, w in zip(value, f(*xs)):
        np.testing.assert_allclose(y.numpy(), w.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name, sample", [p for p in SMOOTH if p.values[1].second])
def test_every_op_forward_over_reverse_is_reverse_over_reverse(name, sample):
    """The gradient of a Dual is a Dual whose tangent is the Hessian times the direction."""
    op = TABLE[name]
    where, fixed = varied(op, sample), tensors(sample)
    rng = np.random.default_rng(6)
    xs = [fixed[i] for i in where]
    vs = [t64(rng.normal(size=x.shape)) for x in xs]
    us = [t64(rng.normal(size=y.shape)) for y in outputs(op, sample, fixed)]

    def f(*moved):
        return sum((u * y).sum() for u, y in zip(us, outputs(op, sample, filled(fixed, where, moved))))

    places = tuple(range(len(xs)))
    first = gg.grad(f, places)
    _, got = gg.jvp(first, xs, vs)
    mixed = gg.grad(lambda *moved: sum((g * v).sum() for g, v in zip(gg.grad(f, places)(*moved), vs)), places)(*xs)
    crossed = gg.grad(lambda *moved: gg.jvp(f, moved, vs)[1], places)(*xs)
    for a, b, c in zip(got, mixed, crossed):
        scale = 1e-9 * max(1.0, np.abs(b.numpy()).max(initial=0))
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-9, atol=scale)
        np.testing.assert_allclose(c.numpy(), b.numpy(), rtol=1e-9, atol=scale)


@pytest.fixture
def second():
    """CuPy's double as device 'cuda'."""
    with registered(cuda.load(fake_cupy)) as backend:
        yield backend


@pytest.mark.parametrize("name", ["sin", "matmul", "softmax", "sum", "where", "softmax_xent", "layer_norm", "conv2d"])
def test_duals_on_the_second_device(second, name):
    """The double of CuPy runs the same duals: values and tangents as on the CPU, of its own array type."""
    op, sample = TABLE[name], next(p.values[1] for p in SMOOTH if p.values[0] == name)
    where, fixed = varied(op, sample), tensors(sample)
    xs = [fixed[i] for i in where]
    vs = [t64(np.random.default_rng(5).normal(size=x.shape)) for x in xs]
    there = [None if x is None else x.to("cuda") for x in fixed]

    def on(args):
        return lambda *moved: outputs(op, sample, filled(args, where, moved))[0]

    value, push = gg.jvp(on(fixed), xs, vs)
    other, moved = gg.jvp(on(there), [x.to("cuda") for x in xs], [v.to("cuda") for v in vs])
    assert other.device == moved.device == "cuda:0"
    np.testing.assert_allclose(other.numpy(), value.numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moved.numpy(), push.numpy(), rtol=1e-12, atol=1e-12)


def test_perturbations_of_nested_derivatives_are_not_confused():
    """d/dx [x d/dy (x + y)] is 1, in every combination of modes."""
    forward = lambda f: lambda x: gg.jvp(f, (x,), (1.0,))[1]
    for outer in (forward, gg.grad):
        for inner in (forward, gg.grad):
            found = outer(lambda x, inner=inner: x * inner(lambda y: x + y)(1.0))(t64(1.0))
            assert found.item() == 1.0
            found = outer(lambda x, inner=inner: x * inner(lambda y: x * y * y)(t64(3.0)))(t64(2.0))
            assert found.item() == 24.0


def test_derivatives_of_any_order_and_mode():
    """The fourth derivative of x^6 is 360 x^2, by all sixteen orders of forward and reverse."""
    forward = lambda f: lambda x: gg.jvp(f, (x,), (1.0,))[1]
    for pattern in range(16):
        f = lambda x: x**6
        for k in range(4):
            f = (forward if pattern >> k & 1 else gg.grad)(f)
        assert f(t64(1.5)).item() == pytest.approx(360 * 1.5**2, rel=1e-13)


def live_bytes(f):
    gc.collect()
    tracemalloc.start()
    f()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_thousand_layers_stream_in_constant_memory():
    x = t64(np.linspace(-1, 1, 40_000))

    def chain(depth):
        def f(x):
            for _ in range(depth):
                x = gg.sin(x) * 1.01
            return x

        return lambda: gg.jvp(f, (x,), (x,))

    chain(2)()
    short, long = live_bytes(chain(10)), live_bytes(chain(1000))
    assert long <= short + x.nbytes  # the interpreter's own free lists grow a little
    assert long <= 12 * x.nbytes


def test_captured_tensors_have_gradients_through_tangents():
    w = t64([2.0, 3.0]).requires_grad_()
    x, v = t64([0.1, 0.2]), t64([1.0, -1.0])
    _, push = gg.jvp(lambda x: (gg.tanh(w * x)).sum(), (x,), (v,))
    (push * push).backward()
    want = gg.grad(lambda w: (gg.sum(v * w * (1 - gg.tanh(w * x) ** 2))) ** 2)(t64([2.0, 3.0]))
    np.testing.assert_allclose(w.grad.numpy(), want.numpy(), rtol=1e-13)


def test_what_stops_a_tangent():
    x = t64([1.0, 2.0])
    one = (t64([1.0, 1.0]),)
    assert gg.jvp(lambda x: x * gg.stop_gradient(x), (x,), one)[1].tolist() == [1.0, 2.0]
    assert gg.jvp(lambda x: x * x.detach(), (x,), one)[1].tolist() == [1.0, 2.0]
    assert gg.jvp(lambda x: x * gg.tensor(x), (x,), one)[1].tolist() == [1.0, 2.0]
    assert gg.grad(lambda x: (x * gg.stop_gradient(x)).sum())(x).tolist() == [1.0, 2.0]
    assert gg.jvp(lambda x: gg.argmax(x) + gg.zeros(3), (x,), one)[1].tolist() == [0.0, 0.0, 0.0]
    assert gg.jvp(lambda x: 5.0, (x,), one)[1].item() == 0.0


def test_control_flow_conversions_and_assignment_see_the_primal():
    def f(x):
        buffer = gg.zeros(3, dtype=gg.float64)
        buffer[1] = x * x
        buffer[2] = x if float(x) > 1 else -x
        return buffer * gg.astype(gg.astype(x, gg.float32), gg.float64)

    value, push = gg.jvp(f, (t64(2.0),), (1.0,))
    assert value.tolist() == [0.0, 8.0, 4.0]
    assert push.tolist() == [0.0, 12.0, 4.0]


@pytest.mark.parametrize("name", ["maximum", "minimum", "fmax", "fmin"])
def test_both_operands_of_an_extremum_move(name):
    """Which operands are constants, that win ties, is known in forward mode too, at every level."""
    f = getattr(gg, name)
    x, y, u, v = (t64(a) for a in ([1.0, 5.0, 2.0], [3.0, 4.0, 2.0], [1.0, 10.0, 100.0], [2.0, 20.0, 200.0]))
    first = np.array([2.0, 10.0, 150.0]) if name.endswith("max") or name == "maximum" else np.array([1.0, 20.0, 150.0])
    np.testing.assert_array_equal(gg.jvp(f, (x, y), (u, v))[1].data, first)
    np.testing.assert_array_equal(gg.jvp(lambda x: f(x, y), (x,), (u,))[1].data, np.where(first == u.data, u.data, 0))
    both = gg.vmap(lambda x, y, u, v: gg.jvp(f, (x, y), (u, v))[1])(x, y, u, v)
    np.testing.assert_array_equal(both.data, first)
    within = gg.jvp(gg.vmap(f), (x, y), (u, v))[1]
    np.testing.assert_array_equal(within.data, first)
    low = t64([0.0, 4.5, 2.0])
    clipped = gg.jvp(lambda x, low: gg.clip(x, low), (x, low), (u, v))[1]
    np.testing.assert_array_equal(clipped.data, [1.0, 10.0, 150.0])


def test_in_place_updates_and_running_statistics():
    mean, var = gg.zeros(3, dtype=gg.float64), gg.ones(3, dtype=gg.float64)
    x = t64(np.random.default_rng(0).normal(size=(8, 3)))
    norm = lambda x: gg.nn.functional.batch_norm(x, mean, var, training=True)
    _, push = gg.jvp(norm, (x,), (x,))
    assert np.abs(mean.numpy()).min() > 0
    assert np.abs(push.numpy()).max() < 1e-4  # the output does not depend on the scale, but for eps

    def step(x):
        gg.optim.SGD([x.requires_grad_()], lr=0.1).step()
        return x

    def update(x):
        x = x * 1.0
        x.requires_grad_()
        (x * x).sum().backward()
        return step(x)

    with pytest.raises(gg.errors.GraphError, match="in-place"):
        gg.jvp(update, (x,), (x,))


def test_random_numbers_are_constants():
    gg.random.seed(1)
    x = gg.ones(100)
    value, push = gg.jvp(lambda x: gg.random.dropout(x * 2, 0.5), (x,), (x,))
    assert value.tolist() == push.tolist()


def test_float32_and_structures():
    x = gg.tensor([1.0, 2.0])
    value, push = gg.jvp(
        lambda p: {"y": p["a"] * p["b"][0], "c": (p["a"],)}, ({"a": x, "b": [x]},), ({"a": np.ones(2), "b": None},)
    )
    assert push["y"].dtype == gg.float32
    assert push["y"].tolist() == [1.0, 2.0]
    assert push["c"][0].tolist() == [1.0, 1.0]
    assert value["y"].tolist() == [1.0, 4.0]
    assert gg.jvp(lambda x, k: (x * k, "aux"), (x, 3), (x, None), has_aux=True)[2] == "aux"


def test_functions_of_ones_own_follow_their_rule():
    ste = gg.custom_op(gg.round, lambda t, out, x: t, check=False)
    assert gg.jvp(lambda x: ste(x) * x, (t64([1.2]),), (t64([1.0]),))[1].item() == pytest.approx(1.0 + 1.2)
    cube = gg.custom_op(lambda x: x**3, lambda t, out, x: t * 3 * x**2, jvp=lambda ts, out, x: ts[0] * 3 * x**2)
    x, v = t64([1.0, 2.0]), t64([1.0, -1.0])
    assert gg.jvp(cube, (x,), (v,))[1].tolist() == [3.0, -12.0]
    f = lambda x: (cube(x) * x).sum()
    for order in ("forward-over-reverse", "reverse-over-forward"):
        np.testing.assert_allclose(gg.hvp(f, (x,), (v,), order)[0].numpy(), [12.0, -48.0], rtol=1e-13)

    class Opaque(gg.Function):
        check = False

        @staticmethod
        def forward(ctx, x):
            return gg.tensor(x.numpy() * 2)

        @staticmethod
        def backward(ctx, t):
            return gg.tensor(t.numpy() * 2)

    with pytest.raises(gg.errors.GraphError, match="no forward-mode rule"):
        gg.jvp(Opaque.apply, (x,), (v,))


CUBE = """
template <class T> __global__ void cube(const T* x, T* y, long long n) {
  for (long long i = 0; i < n; i++) y[i] = x[i] * x[i] * x[i];
}
template <class T> __global__ void cube_bwd(const T* t, const T* x, T* dx, long long n) {
  for (long long i = 0; i < n; i++) dx[i] = 3 * t[i] * x[i] * x[i];
}
"""


def test_kernels_of_ones_own_follow_their_composition():
    x, v = t64([1.0, 2.0]), t64([1.0, -1.0])
    cube = gg.cuda_op(CUBE, name="cube", cpu=lambda x: x**3, via=lambda t, x: t * 3 * x * x, check=False)
    push = lambda f: lambda x: gg.jvp(f, (x,), (v,))[1]
    assert push(cube)(x).tolist() == [3.0, -12.0]
    assert push(push(push(cube)))(x).tolist() == [6.0, -6.0]
    bare = gg.cuda_op(CUBE, name="cube", cpu=lambda x: x**3, check=False)
    with pytest.raises(gg.errors.GraphError, match="via="):
        push(bare)(x)
    with pytest.raises(gg.errors.GraphError, match="batch as one more axis"):
        gg.vmap(cube)(x)


def test_bad_calls_say_what_is_wrong():
    x = t64([1.0, 2.0])
    with pytest.raises(gg.errors.ShapeError, match=r"\[jvp\] the tangent"):
        gg.jvp(gg.sin, (x,), (t64([1.0]),))
    with pytest.raises(gg.errors.ShapeError, match="1 primals and 2 tangents"):
        gg.jvp(gg.sin, (x,), (x, x))
    with pytest.raises(gg.errors.DTypeError, match="are tuples"):
        gg.jvp(gg.sin, x, x)
    with pytest.raises(gg.errors.DTypeError, match="floating-point"):
        gg.jvp(gg.abs, (gg.tensor([1, 2]),), (gg.tensor([1, 2]),))
    with pytest.raises(gg.errors.ShapeError, match=r"\[tree\]"):
        gg.jvp(lambda p: p["a"], ({"a": x},), ({"b": x},))


@pytest.mark.parametrize("name, sample", [p for p in SMOOTH if p.values[1].outputs is not None])
def test_outputs_without_a_forward_rule_refuse_clearly(name, sample):
    op = TABLE[name]
    where, fixed = varied(op, sample), tensors(sample)
    xs = tuple(fixed[i] for i in where)
    with pytest.raises(gg.errors.GraphError, match="factors is not defined"):
        gg.jvp(lambda *moved: outputs(op, sample, filled(fixed, where, moved)), xs, xs)
