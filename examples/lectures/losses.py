"""The nine losses, each equal to its formula and its gradient to a numeric one; and L2 regularisation."""

import numpy as np

import gpugrad as gg
from gpugrad import losses

rng = np.random.default_rng(0)
a, b = rng.uniform(0.1, 3, (2, 6))
p, labels, signs = rng.uniform(0.05, 0.95, 6), rng.integers(0, 2, 6).astype(float), rng.choice([-1.0, 1.0], 6)
P, Q = 0.125 + 0.5 * rng.dirichlet(np.ones(4), (2, 6))  # rows that sum to 1, away from the pole of log
classes = rng.integers(0, 4, 6)
margin = np.maximum(0, 1 - signs * a)

# name: prediction, target, the formula of the lectures
table = {
    "mean_squared_error": (a, b, np.mean((a - b) ** 2)),
    "mean_squared_logarithmic_error": (a, b, np.mean(np.log((1 + a) / (1 + b)) ** 2)),
    "mean_absolute_error": (a, b, np.mean(np.abs(a - b))),
    "binary_cross_entropy": (p, labels, -np.mean(np.log(np.where(labels == 1, p, 1 - p)))),
    "hinge": (a, signs, np.mean(margin)),
    "squared_hinge": (a, signs, np.mean(margin**2)),
    "categorical_cross_entropy": (P, Q, -np.mean(np.sum(Q * np.log(P), axis=1))),
    "sparse_categorical_cross_entropy": (P, classes, -np.mean(np.log(P[np.arange(6), classes]))),
    "kl_divergence": (P, Q, np.mean(np.sum(Q * np.log(Q / P), axis=1))),
}
for name, (prediction, target, formula) in table.items():
    loss = getattr(losses, name)
    value = loss(gg.tensor(prediction), gg.tensor(target)).item()
    print(f"{name:34} {value:.6f}")
    assert np.isclose(value, formula, rtol=1e-12), name
    assert gg.gradcheck(lambda x, loss=loss, target=target: loss(x, gg.tensor(target)), [gg.tensor(prediction)])

# L2 regularisation adds rate / 2 |W|^2 to the loss, so rate W to the gradient.
X, y, rate = gg.tensor(rng.normal(size=(6, 3))), gg.tensor(b), 0.1
plain = lambda W: losses.mean_squared_error(X @ W, y)
W = gg.tensor(rng.normal(size=3))
added = gg.grad(lambda W: plain(W) + 0.5 * rate * gg.sum(W**2))(W) - gg.grad(plain)(W)
assert np.allclose(added.numpy(), rate * W.numpy(), rtol=1e-12, atol=1e-14)
