"""Softmax and cross-entropy: the numbers of the lectures, large scores, and a true class that underflows."""

import numpy as np

import gpugrad as gg
from gpugrad.nn import functional as F


def softmax(*scores):
    return gg.softmax(gg.tensor(scores, dtype=gg.float64)).numpy()


assert softmax(1, 2).round(4).tolist() == [0.2689, 0.7311]
assert np.allclose(softmax(10, 20), [4.54e-5, 0.99995], rtol=1e-4)

# Adding a constant changes nothing; dividing by the plain sum would not have this property.
assert np.allclose(softmax(1, 2), softmax(11, 12), rtol=1e-14)
assert not np.allclose(np.array([1, 2]) / 3, np.array([11, 12]) / 23)

# No overflow, no underflow to nan.
assert softmax(1000, 1000).tolist() == [0.5, 0.5]
assert softmax(-1000, -10, -8).round(3).tolist() == [0, 0.119, 0.881]

# Cross-entropy of a class whose softmax underflows to 0: -log(0) is inf, the fused loss is exact.
scores = gg.tensor([[1000.0, 0.0]], dtype=gg.float64, requires_grad=True)
assert softmax(1000, 0)[1] == 0
loss = F.cross_entropy(scores, gg.tensor([1]))
loss.backward()
assert loss.item() == 1000
assert scores.grad.tolist() == [[1, -1]]

# The gradient for a batch of m rows is (Y - T) / m.
rng = np.random.default_rng(0)
A, labels = rng.normal(size=(5, 3)), rng.integers(0, 3, 5)
scores = gg.tensor(A, requires_grad=True)
F.cross_entropy(scores, gg.tensor(labels)).backward()
Y = np.exp(A) / np.exp(A).sum(1, keepdims=True)
assert np.allclose(scores.grad.numpy(), (Y - np.eye(3)[labels]) / 5, rtol=1e-12, atol=1e-15)

print("softmax: [1, 2] gives", softmax(1, 2).round(4).tolist(), "and the loss of an underflowing class is", loss.item())
