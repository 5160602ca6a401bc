"""Second order by differentiating the gradient: Hessian, Hessian-vector product, Newton's step, Taylor's model."""

import numpy as np

import gpugrad as gg

rng = np.random.default_rng(0)


def rosenbrock(x):
    return gg.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


gradient = gg.grad(rosenbrock)


def hvp(x, v):
    """H v as the gradient of g(x) . v: about twice the cost of a gradient, and no matrix."""
    return gg.grad(lambda y: gg.vecdot(gradient(y), v))(x)


def hessian(x):
    return gg.stack([hvp(x, row) for row in gg.eye(x.shape[0], dtype=x.dtype)])


# At (a, b) the Hessian is [[1200 a^2 - 400 b + 2, -400 a], [-400 a, 200]].
x = gg.tensor([-1.2, 1.0], dtype=gg.float64)
H = hessian(x).numpy()
assert np.allclose(H, [[1200 * 1.44 - 400 + 2, 480], [480, 200]], rtol=1e-12)

x5 = gg.tensor(rng.normal(size=5))
H5, v = hessian(x5).numpy(), gg.tensor(rng.normal(size=5))
assert np.allclose(H5, H5.T, rtol=1e-12)
assert np.allclose(hvp(x5, v).numpy(), H5 @ v.numpy(), rtol=1e-12)

# Pearlmutter's product against a difference of gradients
h = 1e-5
slope = (gradient(x5 + h * v).numpy() - gradient(x5 - h * v).numpy()) / (2 * h)
assert np.allclose(hvp(x5, v).numpy(), slope, rtol=1e-6, atol=1e-6)

# The model of second order misses f by O(|d|^3): half the step, an eighth of the error.
misses = []
for size in (2e-3, 1e-3):
    d = size * v
    model = rosenbrock(x5) + gg.vecdot(gradient(x5), d) + 0.5 * gg.vecdot(d, hvp(x5, d))
    misses.append(abs((rosenbrock(x5 + d) - model).item()))
assert 7 < misses[0] / misses[1] < 9

# Newton's method reaches the minimum (1, 1) in a few steps.
steps = 0
while gg.norm(gradient(x)).item() > 1e-10:
    x = x - gg.linalg.solve(hessian(x), gradient(x))
    steps += 1
assert steps <= 8
assert np.allclose(x.numpy(), 1, rtol=1e-12)

print("hessian: at (-1.2, 1)", H.tolist(), "- Newton's method took", steps, "steps")
