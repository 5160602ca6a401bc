"""Local minima, plateaus and momentum: where descent ends depends on where it starts and on the optimiser."""

import numpy as np

import gpugrad as gg
from gpugrad import optim


def descend(f, start, steps=300, **options):
    """The points that gradient descent visits."""
    w = gg.tensor(start, dtype=gg.float64, requires_grad=True)
    optimizer, path = optim.SGD([w], **options), [start]
    for _ in range(steps):
        optimizer.zero_grad()
        f(w).backward()
        optimizer.step()
        path.append(w.item())
    return np.array(path)


# Two valleys: x^4 - 2 x^2 + 0.3 x has its global minimum near -1.04 and a local one near 0.96.
def valleys(x):
    return x**4 - 2 * x**2 + 0.3 * x


left, top, right = np.sort(np.roots([4, 0, -4, 0.3]).real)  # the zeros of the derivative
for start in (-1.8, 0.0, 0.2, 1.8):
    end = descend(valleys, start, lr=0.02)[-1]
    print(f"from {start:5.2f} descent ends at {end:.4f}, height {valleys(end):.4f}")
    assert np.isclose(end, left if start < top else right, rtol=1e-8)
slope = gg.grad(valleys)
for x in (left, top, right):
    assert abs(slope(gg.tensor(x)).item()) < 1e-12
curvature = [gg.grad(slope)(gg.tensor(x)).item() for x in (left, top, right)]
assert curvature[0] > 0 > curvature[1]
assert curvature[2] > 0
# Momentum rolls out of the shallow valley, from the same start.
rolling = descend(valleys, 1.8, lr=0.02, momentum=0.9)[-1]
print(f"with momentum from  1.80 it ends at {rolling:.4f}")
assert np.isclose(rolling, left, rtol=1e-4)


# A plateau: far out the slope of a saturated loss all but vanishes, and momentum crosses it in fewer steps.
def plateau(x):
    return gg.tanh(0.5 * x) ** 2


def steps_until(path):
    return int(np.argmax(np.abs(path) < 0.1))


plain = steps_until(descend(plateau, 6.0, steps=2000, lr=0.2))
faster = steps_until(descend(plateau, 6.0, steps=2000, lr=0.2, momentum=0.8))
print(f"off the plateau after {plain} steps, with momentum {faster}")
assert 0 < faster < plain / 2

# Rates on x^2 / 2, where a step multiplies x by 1 - rate: too low, right, just too high.
for rate, word in [(0.001, "crawls"), (0.5, "arrives"), (2.1, "diverges")]:
    end = descend(lambda x: 0.5 * x**2, 1.0, steps=100, lr=rate)[-1]
    print(f"rate {rate}: {word}, at {end:.2e} after 100 steps")
    assert np.isclose(end, (1 - rate) ** 100, rtol=1e-9)
