"""gradients, grad, value_and_grad, Tape: the ways to ask for a derivative, and that they agree."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import gpugrad as gg


def t64(value):
    return gg.tensor(value, dtype=gg.float64)


def models():
    """Twenty small differentiable programs of (w, b), as (name, function)."""
    x = t64(np.random.default_rng(0).normal(size=(6, 4)))
    y = gg.tensor([0, 1, 2, 0, 1, 2])
    acts = [gg.tanh, gg.relu, gg.sigmoid, gg.gelu, gg.silu, gg.softplus, gg.elu, gg.exp, gg.sin, gg.square]
    for act in acts:
        yield act.__name__, lambda w, b, act=act: gg.mean(act(x @ w + b) ** 2)
        yield act.__name__ + "-xent", lambda w, b, act=act: gg.nn.functional.cross_entropy(act(x @ w + b), y)


MODELS = list(models())


@pytest.mark.parametrize("name, f", MODELS, ids=[n for n, _ in MODELS])
def test_backward_grad_gradients_and_tape_agree_bit_for_bit(name, f):
    rng = np.random.default_rng(1)
    w0, b0 = rng.normal(size=(4, 3)), rng.normal(size=3)
    w, b = t64(w0).requires_grad_(), t64(b0).requires_grad_()
    f(w, b).backward()
    want = w.grad.numpy(), b.grad.numpy()
    value, found = gg.value_and_grad(f, argnums=(0, 1))(t64(w0), t64(b0))
    others = [found, gg.gradients(f(w, b), [w, b])]
    tw, tb = t64(w0), t64(b0)
    with gg.Tape() as tape:
        tape.watch(tw, tb)
        out = f(tw, tb)
    others.append(tape.gradient(out, [tw, tb]))
    for got in others:
        assert np.array_equal(got[0].numpy(), want[0])
        assert np.array_equal(got[1].numpy(), want[1])
    assert value.item() == out.item()
    recorded = gg.gradients(f(w, b), [w, b], create_graph=True)  # a fused backward is then a composition
    for got, exact in zip(recorded, want):
        np.testing.assert_allclose(got.numpy(), exact, rtol=1e-12, atol=1e-15)


def test_argnums_aux_and_structure():
    f = lambda p, k: ((p["a"] * p["b"][0]).sum() * k, "extra")
    p = {"a": t64([1.0, 2.0]), "b": [t64(3.0)]}
    (value, aux), g = gg.value_and_grad(f, has_aux=True)(p, 2.0)
    assert (value.item(), aux) == (18.0, "extra")
    assert set(g) == {"a", "b"}
    assert g["a"].tolist() == [6.0, 6.0]
    assert g["b"][0].item() == 6.0
    g, aux = gg.grad(f, argnums=1, has_aux=True)(p, 2.0)
    assert (g.item(), aux) == (9.0, "extra")


def test_arguments_may_be_numbers_and_arrays():
    assert gg.grad(lambda x: x * x)(3.0).item() == 6.0
    assert gg.grad(lambda x: x * x)(3).item() == 6.0
    assert gg.grad(lambda x: (x * x).sum())(np.array([1.0, 2.0])).tolist() == [2.0, 4.0]


def test_the_function_must_return_one_element():
    with pytest.raises(gg.errors.GraphError, match="one-element"):
        gg.grad(lambda x: x * 2)(t64([1.0, 2.0]))


def test_fourth_derivative_of_a_sixth_power():
    f = lambda x: x**6
    for _ in range(4):
        f = gg.grad(f)
    assert f(t64(2.0)).item() == 360 * 4


def test_create_graph_to_the_fourth_order():
    x = t64(2.0).requires_grad_()
    y = x**6
    for want in (192.0, 480.0, 960.0, 1440.0):
        y = gg.gradients(y, x, create_graph=True)
        assert y.item() == want


def test_perturbations_are_not_confused():
    inner = lambda x: gg.grad(lambda y: x + y)(1.0)
    assert gg.grad(lambda x: x * inner(x))(1.0).item() == 1.0


def test_gradient_of_a_gradient_norm():
    x = t64([1.0, 2.0]).requires_grad_()
    (g,) = gg.gradients((x**3).sum(), [x], create_graph=True)
    (g * g).sum().backward()
    assert x.grad.tolist() == [36.0, 288.0]  # d (3x^2)^2 = 36 x^3


def test_hessian_vector_product_by_double_backward():
    rng = np.random.default_rng(0)
    a, v = rng.normal(size=(4, 4)), rng.normal(size=4)
    x = t64(rng.normal(size=4)).requires_grad_()
    (g,) = gg.gradients((x * (t64(a) @ x)).sum(), [x], create_graph=True)
    hv = gg.gradients((g * t64(v)).sum(), x)
    np.testing.assert_allclose(hv.numpy(), (a + a.T) @ v, rtol=1e-12)


def test_gradients_of_intermediates_leave_grad_alone():
    x = t64(3.0).requires_grad_()
    h = x * x
    y = h * h
    gh, gx = gg.gradients(y, [h, x])
    assert (gh.item(), gx.item()) == (18.0, 108.0)
    assert x.grad is None


def test_several_outputs_and_cotangents():
    x = t64([1.0, 2.0]).requires_grad_()
    a, b = x * 2, x.sum()
    g = gg.gradients([a, b], x, [t64([1.0, 10.0]), t64(100.0)])
    assert g.tolist() == [102.0, 120.0]


def test_unconnected_policies():
    x, y = t64(1.0).requires_grad_(), t64([1.0, 2.0]).requires_grad_()
    assert gg.gradients(x * 2, [x, y])[1] is None
    assert gg.gradients(x * 2, [x, y], unconnected="zero")[1].tolist() == [0.0, 0.0]
    with pytest.raises(gg.errors.GraphError, match="input 1"):
        gg.gradients(x * 2, [x, y], unconnected="error")
    with pytest.raises(ValueError, match="unconnected"):
        gg.gradients(x * 2, [x], unconnected="maybe")


def test_only_what_leads_to_the_inputs_is_walked():
    x, y = t64(2.0).requires_grad_(), t64(3.0).requires_grad_()
    side = y * y
    gg.gradients(x * x + side, x)
    side.backward()  # not spent by the call above
    assert y.grad.item() == 6.0


def test_tape_records_what_it_watches_and_only_inside():
    x, y = t64(3.0), t64(4.0)
    with gg.Tape() as tape:
        tape.watch(x)
        z = x * x * y
        with tape.stop_recording():
            hidden = x * 5
    assert not x.requires_grad
    assert not hidden.requires_grad
    assert tape.gradient(z, x).item() == 24.0
    with pytest.raises(gg.errors.GraphError):
        tape.gradient(z, x)


def test_persistent_tape_and_tape_in_tape():
    x = t64(3.0)
    with gg.Tape(persistent=True) as tape:
        tape.watch(x)
        y = x * x
        z = y * y
    assert tape.gradient(z, x).item() == 108.0
    assert tape.gradient(y, x).item() == 6.0
    with gg.Tape() as outer:
        outer.watch(x)
        with gg.Tape() as inner:
            inner.watch(x)
            y = x * x * x
            first = inner.gradient(y, x)
    assert first.item() == 27.0
    assert outer.gradient(first, x).item() == 18.0


def test_tape_with_nested_sources():
    with gg.Tape() as tape:
        p = {"w": t64([1.0, 2.0]), "b": [t64(1.0)]}
        tape.watch(p["w"], p["b"][0])
        loss = (p["w"] * p["b"][0]).sum()
    g = tape.gradient(loss, p)
    assert g["w"].tolist() == [1.0, 1.0]
    assert g["b"][0].item() == 3.0


def test_input_ascent_raises_the_activation_every_step():
    """Gradients with respect to the input, as DeepDream takes them."""
    g = gg.random.Generator(3)
    model = gg.nn.Sequential(gg.nn.Linear(16, 32, generator=g), gg.nn.Tanh(), gg.nn.Linear(32, 4, generator=g)).eval()
    x, seen = g.normal((1, 16)), []
    for _ in range(25):
        value, slope = gg.value_and_grad(lambda v: model(v)[0, 2])(x)
        seen.append(value.item())
        x = x + slope * 0.05
    assert all(b > a for a, b in itertools.pairwise(seen))
