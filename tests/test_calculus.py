"""vjp, linearize, jacobian, hessian, hvp, stop_gradient, checkpoint: right, composable, within their memory."""

from __future__ import annotations

import dataclasses
import functools
import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import GraphError, ShapeError
from gpugrad.op import TABLE

from .ops.test_table import SMOOTH, tensors, varied


def t64(value):
    return gg.tensor(value, dtype=gg.float64)


RNG = np.random.default_rng(0)
A = t64(RNG.normal(size=(3, 4)))
X = t64(RNG.normal(size=4))
V = t64(RNG.normal(size=4))


def vector(x):
    """Four numbers to three."""
    return gg.tanh(A @ x) * x[0] ** 2


def scalar(x):
    """Four numbers to one, every second derivative nonzero."""
    return gg.sum(gg.tanh(A @ x) ** 2) * gg.exp(x[1]) + gg.sum(x**3)


def close(got, want, rtol=1e-10):
    assert tuple(got.shape) == tuple(want.shape)
    want = want.numpy() if isinstance(want, gg.Tensor) else want
    np.testing.assert_allclose(got.numpy(), want, rtol=rtol, atol=1e-12)


def numeric_jacobian(f, x, h=1e-3):
    columns = []
    for i in range(x.size):
        e = np.zeros(x.size)
        e[i] = h
        a, b, c, d = (f(x + k * t64(e)).numpy() for k in (1, -1, 2, -2))
        columns.append((8 * (a - b) - (c - d)) / (12 * h))
    return np.stack(columns, -1)


# --- vjp and linearize --------------------------------------------------------------------------------------


def test_vjp_pulls_back_any_number_of_cotangents():
    calls = []

    def counted(x):
        calls.append(1)
        return vector(x)

    out, pullback = gg.vjp(counted, X)
    jac = numeric_jacobian(vector, X)
    close(out, vector(X))
    assert not out.requires_grad
    for seed in range(3):
        u = np.random.default_rng(seed).normal(size=3)
        (g,) = pullback(t64(u))
        close(g, u @ jac, 1e-8)
    assert len(calls) == 1


def test_vjp_of_structures_aux_and_absent_parts():
    f = lambda p, k: ({"y": p["a"] * k, "z": [p["b"] ** 2]}, "aux")
    p = {"a": t64([1.0, 2.0]), "b": t64(3.0)}
    out, pullback, aux = gg.vjp(f, p, 2, has_aux=True)
    assert aux == "aux"
    assert out["y"].tolist() == [2.0, 4.0]
    g, k = pullback({"y": t64([1.0, 10.0]), "z": None})
    assert g["a"].tolist() == [2.0, 20.0]
    assert (g["b"].item(), k.item()) == (0.0, 21.0)
    with pytest.raises(ShapeError, match=r"\[vjp\] the cotangent"):
        pullback({"y": t64([1.0]), "z": None})


def test_the_pullback_is_differentiable_in_its_cotangent_and_its_point():
    u = t64([1.0, -2.0, 0.5])
    pushed = gg.jvp(lambda u: gg.vjp(vector, X)[1](u)[0], (u,), (u,))[1]
    close(pushed, gg.vjp(vector, X)[1](u)[0])
    twice = gg.grad(lambda x: (gg.vjp(vector, x)[1](u)[0] * V).sum())(X)
    close(twice, gg.grad(lambda x: (gg.jvp(vector, (x,), (V,))[1] * u).sum())(X))


def test_linearize_agrees_with_jvp_at_every_direction_and_runs_f_once():
    calls = []

    def f(x):
        calls.append(1)
        return {"a": vector(x), "b": scalar(x)}

    out, push = gg.linearize(f, X)
    close(out["a"], vector(X))
    for seed in range(3):
        v = t64(np.random.default_rng(seed).normal(size=4))
        got = push(v)
        close(got["a"], gg.jvp(vector, (X,), (v,))[1])
        close(got["b"], gg.jvp(scalar, (X,), (v,))[1])
    assert len(calls) == 1
    with pytest.raises(ShapeError, match="2 tangents for 1 primals"):
        push(V, V)


@pytest.mark.parametrize("name, sample", [p for p in SMOOTH if p.values[1].second])
def test_the_transpose_of_every_linearized_op_is_its_pullback(name, sample):
    """linearize pushes tangents forward; pulled back through that, cotangents are what vjp makes of them."""
    op, fixed = TABLE[name], tensors(sample)
    where = varied(op, sample)
    xs = [fixed[i] for i in where]

    def f(*moved):
        args = list(fixed)
        for i, x in zip(where, moved):
            args[i] = x
        out = op.call(*args, **sample.attrs)
        return sample.chosen(out if isinstance(out, tuple) else (out,))

    out, pullback = gg.vjp(f, *xs)
    rng = np.random.default_rng(4)
    u = tuple(t64(rng.normal(size=y.shape)) for y in out)
    push = gg.linearize(f, *xs)[1]
    _, transpose = gg.vjp(push, *[gg.zeros_like(x) for x in xs])
    for got, want in zip(transpose(u), pullback(u)):
        scale = max(1.0, float(np.abs(want.numpy()).max(initial=0)))
        np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-9, atol=1e-9 * scale)


# --- jacobian and hessian -----------------------------------------------------------------------------------


def test_jacobians_of_both_modes_equal_each_other_and_numeric_ones():
    want = numeric_jacobian(vector, X)
    for mode in ("auto", "forward", "reverse"):
        close(gg.jacobian(vector, mode=mode)(X), want, 1e-8)
    with pytest.raises(ValueError, match="sideways"):
        gg.jacobian(vector, mode="sideways")


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_jacobian_shapes_structures_argnums_aux(mode):
    f = lambda p, w: ({"m": gg.outer(p["x"], w), "s": w.sum()}, "aux")
    p, w = {"x": t64([1.0, 2.0])}, t64([3.0, 4.0, 5.0])
    jac, aux = gg.jacobian(f, (0, 1), mode, has_aux=True)(p, w)
    assert aux == "aux"
    by_x, by_w = jac["m"]
    assert by_x["x"].shape == (2, 3, 2)
    assert by_w.shape == (2, 3, 3)
    close(by_x["x"], np.einsum("ik,j->ijk", np.eye(2), w.numpy()))
    close(by_w, np.einsum("i,jk->ijk", p["x"].numpy(), np.eye(3)))
    assert jac["s"][0]["x"].tolist() == [0.0, 0.0]
    assert jac["s"][1].tolist() == [1.0, 1.0, 1.0]
    assert gg.jacobian(lambda x: x[:0], mode=mode)(w).shape == (0, 3)
    assert gg.jacobian(gg.square, mode=mode)(2).item() == 4.0


def test_jacobians_longer_than_a_piece_and_of_data_dependent_loops():
    n = 150
    x = t64(np.linspace(0.5, 1.0, n))
    for mode in ("forward", "reverse"):
        jac = gg.jacobian(lambda x: gg.cumsum(x * x), mode=mode)(x).numpy()
        np.testing.assert_allclose(jac, np.tril(np.ones((n, n))) * 2 * x.numpy(), rtol=1e-12)


def test_hessian_is_symmetric_and_numeric():
    h = gg.hessian(scalar)(X)
    np.testing.assert_allclose(h.numpy(), h.numpy().T, rtol=1e-12, atol=1e-12)
    close(h, numeric_jacobian(gg.grad(scalar), X), 1e-8)
    close(gg.jacobian(gg.grad(scalar), mode="reverse")(X), h)


def test_hessian_blocks():
    f = lambda a, b: gg.sum(a["u"] ** 2) * b
    by_a, by_b = gg.hessian(f, (0, 1))({"u": t64([1.0, 2.0])}, t64(3.0))
    close(by_a["u"][0]["u"], 6.0 * np.eye(2))
    assert by_a["u"][1].tolist() == [2.0, 4.0]
    assert by_b[0]["u"].tolist() == [2.0, 4.0]
    assert by_b[1].item() == 0.0


def test_the_diagonal_of_a_hessian_without_the_hessian():
    close(gg.hessian(scalar, diagonal=True)(X), np.diag(gg.hessian(scalar)(X).numpy()))
    f = lambda a, b: (gg.sum(a["u"] ** 3 * b) + gg.sum(b**4), "aux")
    a, b = {"u": t64([[1.0], [2.0]])}, t64([3.0, 4.0])
    (by_a, by_b), aux = gg.hessian(f, (0, -1), has_aux=True, diagonal=True)(a, b)
    assert (aux, by_a["u"].shape) == ("aux", (2, 1))
    assert by_a["u"].tolist() == [[6.0 * 7.0], [12.0 * 7.0]]
    assert by_b.tolist() == [108.0, 192.0]
    assert gg.hessian(lambda x: x**3, diagonal=True)(2.0).item() == 12.0
    assert gg.hessian(lambda x: x.sum(), diagonal=True)(gg.zeros((0, 2))).shape == (0, 2)
    n = 1000
    x = t64(np.linspace(0.5, 1.0, n))
    long = lambda x: gg.sum(x**4) + gg.sum(x[1:] * x[:-1])
    close(gg.hessian(long, diagonal=True)(x), 12 * x.numpy() ** 2)
    assert peak(lambda: gg.hessian(long, diagonal=True)(x)) < 0.9 * n * n * 8


def test_third_derivative_by_jacobian_of_hessian():
    third = gg.jacobian(gg.hessian(lambda x: gg.sum(x**4)))(t64([1.0, 2.0])).numpy()
    want = np.zeros((2, 2, 2))
    want[0, 0, 0], want[1, 1, 1] = 24.0, 48.0
    np.testing.assert_allclose(third, want, atol=1e-12)


# --- Hessian-vector products --------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["forward-over-reverse", "reverse-over-forward"])
def test_hvp_equals_the_dense_product(order):
    (got,) = gg.hvp(scalar, (X,), (V,), order)
    close(got, gg.hessian(scalar)(X).numpy() @ V.numpy())
    g, h = gg.hvp(lambda a, b: (a * b).sum(), (X, V), (V, None), order)
    close(g, np.zeros(4))
    close(h, V)
    with pytest.raises(ValueError, match="expected 'forward-over-reverse'"):
        gg.hvp(scalar, (X,), (V,), "sideways")


def peak(f):
    f()
    gc.collect()
    tracemalloc.start()
    f()
    bytes_ = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return bytes_


def test_hvp_takes_at_most_two_and_a_half_times_the_memory_of_a_gradient():
    x = t64(np.linspace(-1.0, 1.0, 50_000))

    def f(x):
        for _ in range(20):
            x = gg.sin(x) * gg.tanh(x)
        return x.sum()

    gradient = peak(lambda: gg.grad(f)(x))
    assert peak(lambda: gg.hvp(f, (x,), (x,))) <= 2.5 * gradient
    assert peak(lambda: gg.hvp(f, (x,), (x,), "reverse-over-forward")) <= 2.5 * gradient


# --- arguments of every structure ---------------------------------------------------------------------------


@dataclasses.dataclass
class Params:
    w: Any
    layers: list
    name: str = dataclasses.field(default="model", init=False)


def test_dataclasses_and_none_in_arguments():
    p = Params(t64([1.0, 2.0]), [{"b": t64(3.0)}, None])
    f = lambda p: (p.w * p.layers[0]["b"]).sum()
    value, g = gg.value_and_grad(f)(p)
    assert value.item() == 9.0
    assert isinstance(g, Params)
    assert g.w.tolist() == [3.0, 3.0]
    assert g.layers[0]["b"].item() == 3.0
    assert g.layers[1] is None
    assert gg.jvp(f, (p,), (g,))[1].item() == 6.0 * 3.0 + 3.0 * 3.0
    assert gg.vjp(f, p)[1](1.0)[0].layers[0]["b"].item() == 3.0


# --- stop_gradient ------------------------------------------------------------------------------------------


def test_stop_gradient_in_every_mode_and_structure():
    f = lambda x: (x * gg.stop_gradient({"x": x, "k": 2})["x"]).sum()
    close(gg.grad(f)(X), X)
    close(gg.hvp(f, (X,), (V,))[0], np.zeros(4))
    close(gg.vmap(gg.grad(f))(gg.stack([X, V])), np.stack([X.numpy(), V.numpy()]))


# --- checkpoint ---------------------------------------------------------------------------------------------

W = t64(RNG.normal(size=4) * 0.5)


def block(x, w):
    for _ in range(3):
        x = gg.random.dropout(gg.sin(x * w) + x, 0.1)
    return x


def stack_of(block):
    def f(x, w):
        for _ in range(4):
            x = block(x, w)
        return x.sum()

    return f


TRANSFORMS = {
    "gradient": lambda f: gg.grad(f)(X, W),
    "second order": lambda f: gg.grad(lambda x: (gg.grad(f)(x, W) * V).sum())(X),
    "forward": lambda f: gg.jvp(lambda x: f(x, W), (X,), (V,))[1],
    "forward over reverse": lambda f: gg.hvp(lambda x: f(x, W), (X,), (V,))[0],
    "reverse over forward": lambda f: gg.hvp(lambda x: f(x, W), (X,), (V,), "reverse-over-forward")[0],
    "batched": lambda f: gg.vmap(gg.grad(f), (0, None))(gg.stack([X, V]), W),
    "hessian": lambda f: gg.hessian(lambda x: f(x, W))(X),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_checkpoint_changes_no_bit_in_any_transformation(name):
    found = []
    for f in (stack_of(block), stack_of(gg.checkpoint(block))):
        gg.random.seed(7)
        found.append(TRANSFORMS[name](f).numpy())
        assert np.abs(found[0]).max() > 0
    if name == "gradient":
        assert np.array_equal(*found)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12, atol=1e-14)


def test_checkpoint_finds_captured_parameters_and_keeps_structures():
    w, b = t64(W.numpy()).requires_grad_(), t64(V.numpy()).requires_grad_()

    def run(wrap):
        w.grad = b.grad = None
        c = b * 2.0  # an intermediate and the leaf behind it, both read inside
        f = wrap(lambda p, k: {"y": [gg.sin(p["x"] * w) * c + b * k], "n": 3})
        x = X.detach().requires_grad_()
        out = f({"x": x * 1.0}, k=2.0)
        assert out["n"] == 3
        (out["y"][0] * out["y"][0]).sum().backward()
        return [t.grad.numpy() for t in (x, w, b)]

    for got, want in zip(run(gg.checkpoint), run(lambda f: f)):
        np.testing.assert_allclose(got, want, rtol=1e-13)


def test_nested_checkpoints_repeat_their_draws():
    inner = gg.checkpoint(block)
    outer = gg.checkpoint(lambda x, w: inner(gg.random.dropout(x, 0.1), w) + gg.random.uniform((4,)))
    plain = lambda x, w: block(gg.random.dropout(x, 0.1), w) + gg.random.uniform((4,))
    found = []
    for f in (plain, outer):
        gg.random.seed(3)
        found.append(gg.grad(stack_of(f))(X, W).numpy())
        found.append(gg.random.uniform((3,)).numpy())  # the generator went on as if nothing had been run twice
    assert np.array_equal(found[0], found[2])
    assert np.array_equal(found[1], found[3])


def test_in_place_updates_happen_once():
    layer = gg.nn.BatchNorm1d(4)
    x = gg.tensor(RNG.normal(size=(8, 4)).astype("float32"), requires_grad=True)
    means = []
    for f in (layer, gg.checkpoint(layer)):
        layer.running_mean.data[:] = 0
        f(x).sum().backward()
        means.append(layer.running_mean.numpy(copy=True))
    assert np.abs(means[0]).max() > 0
    assert np.array_equal(*means)


def test_a_hundred_layers_in_segments_hold_the_square_root():
    x = t64(np.linspace(-1.0, 1.0, 50_000)).requires_grad_()

    def segment(x):
        for _ in range(10):
            x = gg.sin(x)
        return x

    def run(segment):
        x.grad = None
        y = x
        for _ in range(10):
            y = segment(y)
        y.sum().backward()

    assert peak(lambda: run(segment)) > 99 * x.data.nbytes
    want = x.grad.numpy(copy=True)
    assert peak(lambda: run(gg.checkpoint(segment))) < 25 * x.data.nbytes
    assert np.array_equal(x.grad.numpy(), want)


def test_checkpoint_of_constants_and_without_recording():
    f = gg.checkpoint(lambda x: x * 2.0)
    assert not f(X).requires_grad
    with gg.no_grad():
        assert not f(X.detach().requires_grad_()).requires_grad
    y = f(X.detach().requires_grad_())
    total = y.sum()
    total.backward()
    with pytest.raises(GraphError, match="already differentiated"):
        total.backward()


def test_checkpoint_of_what_has_no_gradient():
    x = X.detach().requires_grad_()
    assert gg.checkpoint(lambda x: 3)(x) == 3
    assert gg.checkpoint(lambda x: {"at": gg.argmax(x), "of": x.detach()})(x)["at"].item() == X.numpy().argmax()
    assert not gg.checkpoint(lambda x: x.detach() * 2.0)(x).requires_grad


def test_retained_graphs_run_a_segment_again_each_time():
    x = X.detach().requires_grad_()
    gg.random.seed(5)
    y = gg.checkpoint(block)(x, W).sum()
    y.backward(retain_graph=True)
    first = x.grad.numpy(copy=True)
    y.backward()
    assert np.array_equal(x.grad.numpy(), 2 * first)


# --- everything composes ------------------------------------------------------------------------------------

FORMS = {
    "grad of jvp": lambda f: gg.grad(lambda x: gg.jvp(f, (x,), (V,))[1])(X),
    "jvp of grad": lambda f: gg.jvp(gg.grad(f), (X,), (V,))[1],
    "grad of vjp": lambda f: gg.grad(lambda x: (gg.vjp(f, x)[1](1.0)[0] * V).sum())(X),
    "grad of linearize": lambda f: gg.grad(lambda x: gg.linearize(f, x)[1](V))(X),
    "jvp of linearize": lambda f: gg.jvp(lambda x: gg.linearize(f, x)[1](V), (X,), (V,))[1],
    "vmap of grad": lambda f: gg.vmap(gg.grad(f))(X[None])[0],
    "grad of vmap": lambda f: gg.grad(lambda x: gg.vmap(f)(gg.stack([x, x])).sum())(X) / 2,
    "jacobian of vmap": lambda f: gg.jacobian(lambda x: gg.vmap(f)(x[None]))(X)[0],
    "vmap of jacobian": lambda f: gg.vmap(gg.jacobian(f))(X[None])[0],
}


@pytest.mark.parametrize("name", FORMS)
def test_compositions_agree(name):
    h, g = gg.hessian(scalar)(X).numpy(), gg.grad(scalar)(X).numpy()
    want = {"jvp of linearize": V.numpy() @ h @ V.numpy()}.get(name, g if "vmap" in name else h @ V.numpy())
    np.testing.assert_allclose(FORMS[name](scalar).numpy(), want, rtol=1e-11)
    checked = gg.checkpoint(scalar)
    np.testing.assert_allclose(FORMS[name](checked).numpy(), want, rtol=1e-11)


def test_three_deep_mixtures():
    third = functools.reduce(lambda a, b: a + b, [6.0 * x * y * z for x, y, z in zip(*[V.numpy()] * 3)])
    f = lambda x: gg.sum(x**3)
    push = lambda f: lambda x: gg.jvp(f, (x,), (V,))[1]
    pull = lambda f: lambda x: (gg.grad(f)(x) * V).sum()
    batch = lambda f: lambda x: gg.vmap(f)(x[None])[0]
    for a in (push, pull):
        for b in (push, pull):
            for c in (push, pull):
                for wrap in (batch, gg.checkpoint):
                    for spot in range(3):
                        chain = [c, b, a]
                        chain.insert(spot, wrap)
                        g = f
                        for step in chain:
                            g = step(g)
                        assert g(X).item() == pytest.approx(third, rel=1e-11)
