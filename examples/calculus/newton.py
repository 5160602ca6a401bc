"""Newton's method: with the whole Hessian, with Hessian-vector products alone, and for a root, by the Jacobian."""

import numpy as np

import gpugrad as gg

rng = np.random.default_rng(0)
X = gg.tensor(rng.normal(size=(200, 5)))
true = gg.tensor(rng.normal(size=5))
labels = gg.tensor((gg.sigmoid(X @ true).numpy() > rng.uniform(size=200)).astype("float64"))


def loss(w):
    """Logistic regression with a ridge, in nats an example."""
    return gg.nn.functional.binary_cross_entropy_with_logits(X @ w, labels) + 0.005 * gg.sum(w * w)


gradient, hessian = gg.grad(loss), gg.hessian(loss)


def newton(w, steps):
    """Solve H d = g at each step."""
    for _ in range(steps):
        w = w - gg.linalg.solve(hessian(w), gradient(w))
    return w


def conjugate_gradients(product, b, steps):
    """Solve H d = b, with H given by what it does to a vector."""
    d = gg.zeros_like(b)
    r = p = b
    for _ in range(steps):
        rr, hp = gg.sum(r * r), product(p)
        a = rr / gg.sum(p * hp)
        d, r = d + a * p, r - a * hp
        p = r + p * (gg.sum(r * r) / rr)
    return d


def newton_without_hessian(w, steps):
    """The same steps from products alone: memory of a gradient, however many weights there are."""
    for _ in range(steps):
        product = lambda v, w=w: gg.hvp(loss, (w,), (v,))[0]
        w = w - conjugate_gradients(product, gradient(w), 5)
    return w


start = gg.zeros(5, dtype=gg.float64)
w = newton(start, 7)
assert gg.norm(gradient(w)).item() < 1e-13
assert np.allclose(newton_without_hessian(start, 7).numpy(), w.numpy(), rtol=1e-9)

# Each step squares the error: the digits that are right double.
errors = [gg.norm(newton(start, k) - w).item() for k in (2, 3, 4)]
assert errors[1] < errors[0] ** 1.5
assert errors[2] < errors[1] ** 1.5


def system(z):
    """Where a circle meets a cubic."""
    x, y = z[0], z[1]
    return gg.stack([x**2 + y**2 - 4.0, y - x**3])


z = gg.tensor([1.0, 1.0], dtype=gg.float64)
for _ in range(8):
    z = z - gg.linalg.solve(gg.jacobian(system)(z), system(z))
assert gg.norm(system(z)).item() < 1e-14

print("newton: weights", np.round(w.numpy(), 3), "- root", np.round(z.numpy(), 6))
