"""A two-layer network with weight decay, from the units of the lectures, equals the backward written by hand."""

import numpy as np

import gpugrad as gg
from gpugrad.nn import units

rng = np.random.default_rng(0)
m, rate = 8, 1e-2
X, T = rng.normal(size=(m, 5)), np.eye(3)[rng.integers(0, 3, m)]
W1, b1, W2, b2 = rng.normal(size=(5, 6)), rng.normal(size=6), rng.normal(size=(6, 3)), rng.normal(size=3)

# forward and backward, line by line
A1 = X @ W1 + b1
Z1 = np.maximum(0, A1)
A2 = Z1 @ W2 + b2
Y = np.exp(A2) / np.exp(A2).sum(1, keepdims=True)
value = -np.mean(np.sum(T * np.log(Y), 1)) + rate / 2 * ((W1**2).sum() + (W2**2).sum())
dA2 = (Y - T) / m
dW2, db2, dZ1 = Z1.T @ dA2 + rate * W2, dA2.sum(0), dA2 @ W2.T
dA1 = dZ1 * (A1 > 0)
dW1, db1 = X.T @ dA1 + rate * W1, dA1.sum(0)


def loss(params):
    (W1, b1), (W2, b2) = params
    hidden = units.relu(units.affine(gg.tensor(X), (W1, b1)))
    return units.logistic(units.affine(hidden, (W2, b2)), gg.tensor(T)) + units.decay([W1, W2], rate)


got, ((gW1, gb1), (gW2, gb2)) = gg.value_and_grad(loss)([(W1, b1), (W2, b2)])
assert np.isclose(got.item(), value, rtol=1e-13)
for g, want in ((gW1, dW1), (gb1, db1), (gW2, dW2), (gb2, db2)):
    assert np.allclose(g.numpy(), want, rtol=1e-11, atol=1e-14)

# One unit alone, with its own backward: dX = dA W', dW = X' dA, db = the sum over rows.
A, backward = units.forward(units.affine, X, (W1, b1))
dX, (dW, db) = backward(gg.ones_like(A))
assert np.allclose(dX.numpy(), np.ones_like(A1) @ W1.T, rtol=1e-12)
assert np.allclose(dW.numpy(), X.T @ np.ones_like(A1), rtol=1e-12)
assert np.allclose(db.numpy(), np.full(6, m), rtol=1e-12)

print(f"units: loss {got.item():.6f}, all gradients equal the lines written by hand")
