"""Gates: what add, multiply, max, a fork and friends do to the gradient that arrives at them."""

import math

import numpy as np

import gpugrad as gg

gg.set_default_dtype(gg.float64)


def slopes(f, *point):
    """Value and partial derivatives of f at a point, printed and returned as floats."""
    value, found = gg.value_and_grad(f, range(len(point)))(*map(float, point))
    print(f"f{point} = {float(value):.6g}, slopes {[round(float(g), 6) for g in found]}")
    return float(value), [float(g) for g in found]


y, (dw, dx, db) = slopes(lambda w, x, b: gg.exp(w * x + b), 2, 3, -4)
np.testing.assert_allclose([y, db, dx, dw], [7.389, 7.389, 14.778, 22.167], atol=5e-4)
np.testing.assert_allclose([y, db, dx, dw], np.exp(2) * np.array([1, 1, 2, 3]), rtol=1e-14)

assert slopes(lambda x, y, z: (x + y) * z, -2, 5, -4) == (-12, [-4, -4, 3])


def product(a, b):
    return (a + b) * (b + 1)


assert slopes(product, 2, 1) == (6, [2, 5])
h = 1e-4
numeric = [(product(2 + h, 1) - product(2 - h, 1)) / (2 * h), (product(2, 1 + h) - product(2, 1 - h)) / (2 * h)]
np.testing.assert_allclose(numeric, [2, 5], rtol=1e-9)

# Add hands its gradient on to both, max routes it to the larger, multiply switches: each gets it times the other.
x, y, z, w = 3, -4, 2, -1
assert slopes(lambda x, y, z, w: 2 * (x * y + gg.maximum(z, w)), x, y, z, w) == (-20, [2 * y, 2 * x, 2, 0])

# At a fork the gradients of the branches add up.
for x in (-1.5, 0.0, 0.7):
    e = math.exp(x)
    np.testing.assert_allclose(slopes(lambda x: gg.exp(x) + x**2, x)[1], e + 2 * x, rtol=1e-14)
    np.testing.assert_allclose(slopes(lambda x: gg.exp(x) * x**2, x)[1], x**2 * e + 2 * x * e, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(slopes(lambda x: (2 * x**2 + 1) ** 2, x)[1], 16 * x**3 + 8 * x, rtol=1e-14)

# Gates on vectors; grad takes and returns tuples as well.
u, v = gg.tensor([1.0, -2.0, 3.0]), gg.tensor([4.0, 0.5, -1.0])
on_pair = {
    "sum": (lambda p: gg.sum(p[0] + p[1]), (gg.ones(3), gg.ones(3))),
    "dot": (lambda p: p[0] @ p[1], (v, u)),
    "Hadamard": (lambda p: gg.sum((p[0] * p[1]) * u), (v * u, u * u)),
    "squared norm": (lambda p: gg.sum(p[0] ** 2) + gg.sum(p[1] ** 2), (2 * u, 2 * v)),
}
for name, (f, expected) in on_pair.items():
    du, dv = gg.grad(f)((u, v))
    print(f"{name}: du = {du.tolist()}, dv = {dv.tolist()}")
    np.testing.assert_allclose([du.numpy(), dv.numpy()], [expected[0].numpy(), expected[1].numpy()], rtol=1e-15)
