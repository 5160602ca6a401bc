"""Forks add: a variable that is used twice receives the sum of what comes back on both paths."""

from math import exp, isclose

import gpugrad as gg

for t in (-1.0, 0.5, 2.0):
    x = gg.tensor(t, dtype=gg.float64, requires_grad=True)

    (gg.exp(x) + x**2).backward()
    assert isclose(x.grad.item(), exp(t) + 2 * t)

    x.zero_grad()
    (gg.exp(x) * x**2).backward()
    assert isclose(x.grad.item(), t**2 * exp(t) + 2 * t * exp(t))

    # Two backward passes add as well, until zero_grad.
    (x * 3.0).backward()
    assert isclose(x.grad.item(), t**2 * exp(t) + 2 * t * exp(t) + 3)

# An array used k times: the gradients of the copies are summed, whatever the k.
x = gg.tensor([1.0, 2.0], requires_grad=True)
sum((x * float(k) for k in range(1, 6)), start=gg.zeros(2)).sum().backward()
assert x.grad.tolist() == [15, 15]

print("forks: L = e^x + x^2 gives e^x + 2x, L = e^x x^2 gives x^2 e^x + 2x e^x")
