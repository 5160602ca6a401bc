"""Gauss-Newton: J'J v is a jvp followed by a vjp, so a least-squares fit needs no Jacobian matrix.

Also the generalised product J' H J v of a classifier (H: the Hessian of the loss in the logits), which is the Fisher
information of the softmax, and per-example gradients by vmap, whose outer products average to it under the model.
"""

import numpy as np

import gpugrad as gg

rng = np.random.default_rng(0)
t = gg.tensor(np.linspace(0.0, 3.0, 60))
measured = 2.0 * np.exp(-1.3 * t.numpy()) * np.cos(4.0 * t.numpy()) + 0.01 * rng.normal(size=60)
data = gg.tensor(measured)


def residual(p):
    """A damped oscillation of amplitude p[0], decay p[1] and frequency p[2], minus the data."""
    return p[0] * gg.exp(-p[1] * t) * gg.cos(p[2] * t) - data


def gauss_newton_product(f, p, v):
    """J'J v at p: push v forward, pull the result back."""
    _, jv = gg.jvp(f, (p,), (v,))
    return gg.vjp(f, p)[1](jv)[0]


p = gg.tensor([1.0, 1.0, 3.7], dtype=gg.float64)
J = gg.jacobian(residual)(p)
v = gg.tensor(rng.normal(size=3))
assert np.allclose(gauss_newton_product(residual, p, v).numpy(), (J.T @ (J @ v)).numpy(), rtol=1e-12)

for _ in range(25):  # Levenberg and Marquardt: a step that does not help is damped
    J, r = gg.jacobian(residual)(p), residual(p)
    for damping in (0.0, 1e-3, 1e-2, 1e-1, 1.0, 10.0):
        step = gg.linalg.solve(J.T @ J + damping * gg.eye(3, dtype=gg.float64), J.T @ r)
        if (gg.norm(residual(p - step)) <= gg.norm(r)).item():
            p = p - step
            break
assert np.allclose(p.numpy(), [2.0, 1.3, 4.0], atol=0.05)
assert gg.norm(J.T @ residual(p)).item() < 1e-6  # a stationary point of the squared residual

# A small classifier: its Gauss-Newton matrix is J' (diag(q) - q q') J for each example, averaged.
x, labels = gg.tensor(rng.normal(size=(20, 4))), gg.tensor(rng.integers(0, 3, 20))
w = gg.tensor(rng.normal(size=12))


def logits(w, x):
    return gg.tanh(x) @ w.reshape(4, 3)


def loss_of_logits(z, label):
    return gg.nn.functional.cross_entropy(z[None], label[None])


def example_product(x, label, v):
    """J' H J v of one example."""
    z, jv = gg.jvp(lambda w: logits(w, x), (w,), (v,))
    (hjv,) = gg.hvp(lambda z: loss_of_logits(z, label), (z,), (jv,))
    return gg.vjp(lambda w: logits(w, x), w)[1](hjv)[0]


v = gg.tensor(rng.normal(size=12))
got = gg.mean(gg.vmap(example_product, (0, 0, None))(x, labels, v), axis=0)

dense = np.zeros((12, 12))
for i in range(20):
    Ji, q = gg.jacobian(lambda w, i=i: logits(w, x[i]))(w).numpy(), gg.softmax(logits(w, x[i])).numpy()
    dense += Ji.T @ (np.diag(q) - np.outer(q, q)) @ Ji / 20
assert np.allclose(got.numpy(), dense @ v.numpy(), rtol=1e-9)

# The Fisher information: squared per-example gradients, averaged over the labels that the model itself expects.
per_example = gg.vmap(gg.grad(lambda w, x, label: loss_of_logits(logits(w, x), label)), (None, 0, 0))
fisher = np.zeros((12, 12))
for label in range(3):
    g = per_example(w, x, gg.full((20,), label, dtype=gg.int64)).numpy()
    q = gg.softmax(logits(w, x)).numpy()[:, label]
    fisher += (g * q[:, None]).T @ g / 20
assert np.allclose(fisher, dense, rtol=1e-9, atol=1e-12)

print("gauss_newton: amplitude, decay, frequency", np.round(p.numpy(), 3))
