"""The optimisers of the lectures on one long valley, f(x, y) = (x^2 + 50 y^2) / 2, from (10, 1)."""

import numpy as np

import gpugrad as gg
from gpugrad import optim


def descend(make, steps=100):
    p = gg.tensor([10.0, 1.0], dtype=gg.float64, requires_grad=True)
    optimizer, losses = make([p]), []
    for _ in range(steps):
        loss = 0.5 * (p[0] ** 2 + 50.0 * p[1] ** 2)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return p.numpy(copy=True), losses


# Gradient descent multiplies x by 1 - eta and y by 1 - 50 eta at each step, exactly.
p, losses = descend(lambda ps: optim.SGD(ps, lr=0.03))
assert np.allclose(p, [10 * 0.97**100, (1 - 1.5) ** 100], rtol=1e-9)
# Too low a rate crawls; above 2 / 50 the steep direction diverges.
assert descend(lambda ps: optim.SGD(ps, lr=0.0003))[1][-1] > 0.9 * 50
_, high = descend(lambda ps: optim.SGD(ps, lr=0.045))
assert high[-1] > high[0]

# Momentum, v = gamma v + eta grad: the same numbers as the recursion written out, and far ahead of plain descent.
momentum, fast = descend(lambda ps: optim.SGD(ps, lr=0.03, momentum=0.8))
x, v = np.array([10.0, 1.0]), np.zeros(2)
for _ in range(100):
    v = 0.8 * v + 0.03 * np.array([1.0, 50.0]) * x
    x = x - v
assert np.allclose(momentum, x, rtol=1e-9, atol=1e-15)
assert fast[-1] < 1e-3 * losses[-1]

# Adam's bias correction makes the first step of every coordinate exactly the learning rate.
first, _ = descend(lambda ps: optim.Adam(ps, lr=0.1), steps=1)
assert np.allclose(first, [9.9, 0.9], rtol=1e-8)

makers = {
    "descent": lambda ps: optim.SGD(ps, lr=0.03),
    "momentum": lambda ps: optim.SGD(ps, lr=0.03, momentum=0.8),
    "Nesterov": lambda ps: optim.SGD(ps, lr=0.02, momentum=0.8, nesterov=True),
    "Adagrad": lambda ps: optim.Adagrad(ps, lr=1.0),
    "Adadelta": lambda ps: optim.Adadelta(ps, lr=30.0),
    "RMSprop": lambda ps: optim.RMSprop(ps, lr=0.1),
    "Adam": lambda ps: optim.Adam(ps, lr=0.3),
    "Adamax": lambda ps: optim.Adamax(ps, lr=0.3),
    "Nadam": lambda ps: optim.Nadam(ps, lr=0.3),
}
for name, make in makers.items():
    _, curve = descend(make)
    assert curve[-1] < 0.1 * curve[0], (name, curve[-1])
    print(f"{name:9} loss {curve[0]:.0f} -> {curve[-1]:.2e}")
