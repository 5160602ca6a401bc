"""The multiclass hinge loss: the sum over wrong classes j of max(0, s_j - s_y + 1)."""

import numpy as np

import gpugrad as gg


def multiclass_hinge(scores, labels):
    true = gg.take_along_axis(scores, labels[:, None], axis=1)
    margins = gg.relu(scores - true + 1.0)
    return gg.sum(margins, axis=1) - 1.0  # j = y counts max(0, 1), not to be counted


scores = gg.tensor([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]], dtype=gg.float64, requires_grad=True)
labels = gg.tensor([0, 1, 2])
losses = multiclass_hinge(scores, labels)
assert np.allclose(losses.numpy(), [2.9, 0.0, 12.9], rtol=1e-12, atol=1e-12)

losses.sum().backward()
# every violated margin pushes its class down by one and the true class up by one
assert scores.grad.tolist() == [[-1, 1, 0], [0, 0, 0], [1, 1, -2]]
assert gg.gradcheck(lambda s: multiclass_hinge(s, labels), [scores.detach()])

print("hinge: losses", losses.numpy().round(1).tolist(), "mean", round(losses.mean().item(), 4))
