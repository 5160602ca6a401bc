"""Three-step traces of every optimiser and option against the published formulas, written out here in float64."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg

SHAPES = [(3, 4), (5,), ()]
STEPS = 3


def start():
    rng = np.random.default_rng(7)
    values = [rng.normal(size=s) for s in SHAPES]
    grads = [[rng.normal(size=s) for s in SHAPES] for _ in range(STEPS)]
    return values, grads


def run(make, dtype="float64"):
    values, grads = start()
    params = [gg.tensor(v, dtype=dtype).requires_grad_() for v in values]
    optimizer = make(params)
    for step in grads:
        for p, g in zip(params, step):
            p.grad = gg.tensor(g, dtype=dtype)
        optimizer.step()
    return params


def by_hand(rule):
    """Apply rule(p, g, state, t) -> p to each parameter by itself."""
    values, grads = start()
    out = []
    for i, p in enumerate(values):
        state = {}
        for t in range(1, STEPS + 1):
            p = rule(p, grads[t - 1][i], state, t)
        out.append(p)
    return out


def sgd(lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    def rule(p, g, s, t):
        g = g + weight_decay * p
        if momentum:
            s["v"] = g if t == 1 else momentum * s["v"] + (1 - dampening) * g
            g = g + momentum * s["v"] if nesterov else s["v"]
        return p - lr * g

    return rule


def adagrad(lr, lr_decay=0.0, weight_decay=0.0, initial=0.0, eps=1e-10):
    def rule(p, g, s, t):
        g = g + weight_decay * p
        s["s"] = s.get("s", initial) + g**2
        return p - lr / (1 + (t - 1) * lr_decay) * g / (np.sqrt(s["s"]) + eps)

    return rule


def adadelta(lr, rho=0.9, eps=1e-6, weight_decay=0.0):
    def rule(p, g, s, t):
        g = g + weight_decay * p
        s["g"] = rho * s.get("g", 0) + (1 - rho) * g**2
        d = np.sqrt(s.get("d", 0) + eps) / np.sqrt(s["g"] + eps) * g
        s["d"] = rho * s.get("d", 0) + (1 - rho) * d**2
        return p - lr * d

    return rule


def rmsprop(lr, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False):
    def rule(p, g, s, t):
        g = g + weight_decay * p
        s["s"] = alpha * s.get("s", 0) + (1 - alpha) * g**2
        s["a"] = alpha * s.get("a", 0) + (1 - alpha) * g
        scaled = g / (np.sqrt(s["s"] - s["a"] ** 2 if centered else s["s"]) + eps)
        s["v"] = momentum * s.get("v", 0) + scaled
        return p - lr * s["v"]

    return rule


def adam(lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, decoupled=False):
    def rule(p, g, s, t):
        if decoupled:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
        s["v"] = b2 * s.get("v", 0) + (1 - b2) * g**2
        s["max"] = np.maximum(s.get("max", 0), s["v"]) if amsgrad else s["v"]
        return p - lr * (s["m"] / (1 - b1**t)) / (np.sqrt(s["max"] / (1 - b2**t)) + eps)

    return rule


def adamax(lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0):
    def rule(p, g, s, t):
        g = g + weight_decay * p
        s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
        s["u"] = np.maximum(b2 * s.get("u", 0), np.abs(g) + eps)
        return p - lr / (1 - b1**t) * s["m"] / s["u"]

    return rule


def nadam(lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, momentum_decay=4e-3):
    def mu(t):
        return b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))

    def rule(p, g, s, t):
        g = g + weight_decay * p
        s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
        s["v"] = b2 * s.get("v", 0) + (1 - b2) * g**2
        product = np.prod([mu(k) for k in range(1, t + 1)])
        look = mu(t + 1) * s["m"] / (1 - product * mu(t + 1)) + (1 - mu(t)) * g / (1 - product)
        return p - lr * look / (np.sqrt(s["v"] / (1 - b2**t)) + eps)

    return rule


optim = gg.optim
CASES = {
    "sgd": (lambda p: optim.SGD(p, 0.1), sgd(0.1)),
    "sgd-default": (lambda p: optim.SGD(p), sgd(1e-3)),
    "sgd-decay": (lambda p: optim.SGD(p, 0.1, weight_decay=0.3), sgd(0.1, weight_decay=0.3)),
    "sgd-momentum": (lambda p: optim.SGD(p, 0.1, momentum=0.9), sgd(0.1, 0.9)),
    "sgd-dampening": (lambda p: optim.SGD(p, 0.1, 0.9, 0.4, 0.2), sgd(0.1, 0.9, 0.4, 0.2)),
    "sgd-nesterov": (lambda p: optim.SGD(p, 0.1, 0.9, nesterov=True), sgd(0.1, 0.9, nesterov=True)),
    "sgd-nesterov-decay": (
        lambda p: optim.SGD(p, 0.1, 0.9, weight_decay=0.2, nesterov=True),
        sgd(0.1, 0.9, weight_decay=0.2, nesterov=True),
    ),
    "adagrad": (lambda p: optim.Adagrad(p), adagrad(1e-2)),
    "adagrad-all": (lambda p: optim.Adagrad(p, 0.1, 0.2, 0.3, 0.4, 1e-3), adagrad(0.1, 0.2, 0.3, 0.4, 1e-3)),
    "adadelta": (lambda p: optim.Adadelta(p), adadelta(1.0)),
    "adadelta-all": (lambda p: optim.Adadelta(p, 0.5, 0.8, 1e-3, 0.2), adadelta(0.5, 0.8, 1e-3, 0.2)),
    "rmsprop": (lambda p: optim.RMSprop(p), rmsprop(1e-2)),
    "rmsprop-momentum": (lambda p: optim.RMSprop(p, 0.1, 0.8, 1e-3, 0.2, 0.7), rmsprop(0.1, 0.8, 1e-3, 0.2, 0.7)),
    "rmsprop-centered": (lambda p: optim.RMSprop(p, 0.1, centered=True), rmsprop(0.1, centered=True)),
    "rmsprop-all": (
        lambda p: optim.RMSprop(p, 0.1, 0.8, 1e-3, 0.2, 0.7, True),
        rmsprop(0.1, 0.8, 1e-3, 0.2, 0.7, True),
    ),
    "adam": (lambda p: optim.Adam(p), adam(1e-3)),
    "adam-all": (lambda p: optim.Adam(p, 0.1, (0.7, 0.8), 1e-3, 0.2, True), adam(0.1, 0.7, 0.8, 1e-3, 0.2, True)),
    "adamw": (lambda p: optim.AdamW(p), adam(1e-3, weight_decay=0.01, decoupled=True)),
    "adamw-all": (
        lambda p: optim.AdamW(p, 0.1, (0.7, 0.8), 1e-3, 0.2, True),
        adam(0.1, 0.7, 0.8, 1e-3, 0.2, True, True),
    ),
    "adamax": (lambda p: optim.Adamax(p), adamax(2e-3)),
    "adamax-all": (lambda p: optim.Adamax(p, 0.1, (0.7, 0.8), 1e-3, 0.2), adamax(0.1, 0.7, 0.8, 1e-3, 0.2)),
    "nadam": (lambda p: optim.Nadam(p), nadam(2e-3)),
    "nadam-all": (lambda p: optim.Nadam(p, 0.1, (0.7, 0.8), 1e-3, 0.2, 0.5), nadam(0.1, 0.7, 0.8, 1e-3, 0.2, 0.5)),
}


@pytest.mark.parametrize("case", CASES)
def test_three_steps_by_hand(case):
    make, rule = CASES[case]
    for p, want in zip(run(make), by_hand(rule)):
        np.testing.assert_allclose(p.numpy(), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_float32_stays_and_is_close(case):
    make, _ = CASES[case]
    for p, exact in zip(run(make, "float32"), run(make)):
        assert p.dtype == np.float32
        np.testing.assert_allclose(p.numpy(), exact.numpy(), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_half_precision_is_float32_rounded(case):
    """float16 parameters keep float32 state: no overflow, no eps lost, within a few roundings of the exact trace."""
    make, _ = CASES[case]
    for p, exact in zip(run(make, "float16"), run(make)):
        assert p.dtype == np.float16
        np.testing.assert_allclose(p.numpy().astype("float64"), exact.numpy(), rtol=2e-2, atol=2e-2)


def test_half_precision_state_is_float32():
    p = gg.tensor([1.0], dtype="float16").requires_grad_()
    optimizer = gg.optim.Adam([p], lr=0.1)
    p.grad = gg.tensor([1e-4], dtype="float16")  # its square is 0 in float16
    optimizer.step()
    assert optimizer.param_groups[0].state["exp_avg_sq"][0].dtype == np.float32
    assert p.item() == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Adamax"])
def test_bias_correction_at_step_one(name):
    """With eps = 0 and no decay the first step is exactly lr times the sign of the gradient, whatever its size."""
    for size in (1e-6, 1.0, 1e6):
        p = gg.tensor([0.0, 0.0], dtype="float64").requires_grad_()
        optimizer = getattr(gg.optim, name)([p], lr=0.25, eps=0.0, weight_decay=0.0)
        p.grad = gg.tensor([size, -size], dtype="float64")
        optimizer.step()
        np.testing.assert_allclose(p.numpy(), [-0.25, 0.25], rtol=1e-14)


def test_textbook_momentum_makes_the_same_steps():
    """v = gamma v + eta grad, p -= v: PyTorch's form with a constant rate."""
    values, grads = start()
    got = run(lambda p: gg.optim.SGD(p, 0.1, momentum=0.9))
    for i, p in enumerate(values):
        v = 0.0
        for g in grads:
            v = 0.9 * v + 0.1 * g[i]
            p = p - v
        np.testing.assert_allclose(got[i].numpy(), p, rtol=1e-12)


def test_decoupled_decay_is_not_l2():
    """AdamW shrinks by lr * wd whatever the gradient; Adam's L2 term is normalised away with it."""
    for cls, want in ((gg.optim.AdamW, 1 - 0.1 * 0.5), (gg.optim.Adam, 1 - 0.1)):
        p = gg.tensor([1.0], dtype="float64").requires_grad_()
        p.grad = gg.tensor([0.0], dtype="float64")
        cls([p], lr=0.1, weight_decay=0.5, eps=0.0 if cls is gg.optim.Adam else 1e-8).step()
        assert p.item() == pytest.approx(want, abs=1e-12)


def test_centered_variance_rounded_below_zero_is_zero():
    p = gg.tensor([1.0], dtype="float32").requires_grad_()
    optimizer = gg.optim.RMSprop([p], lr=1e-9, alpha=0.99, centered=True)
    for _ in range(2000):  # a constant gradient: its variance is rounding, of either sign
        p.grad = gg.tensor([0.1], dtype="float32")
        optimizer.step()
    assert np.isfinite(p.numpy()).all()
