"""How wrong a central difference is: a large step truncates, a small one cancels. f(x) = x^3 at 1."""

import math

import numpy as np

import gpugrad as gg


def f(x):
    return x**3


exact = float(gg.grad(f)(gg.tensor(1.0, dtype=gg.float64)))
assert exact == 3

steps = np.logspace(-12, -1, 45)
errors = np.array([abs((f(1 + h) - f(1 - h)) / (2 * h) - exact) / exact for h in steps])
for h, e in zip(steps, errors):
    bar = "#" * max(0, round(3 * (math.log10(e) + 14))) if e else ""
    print(f"h {h:8.1e}  error {e:8.1e}  {bar}")

# The error is |h^2 / 3| on the right, about eps / h on the left; the best step lies where they meet.
windowed = np.exp(
    np.convolve(np.log(np.maximum(errors, 1e-17)), np.ones(5) / 5, mode="valid")
)  # the left side is noisy
best, smoothest = steps[np.argmin(errors)], steps[2:-2][np.argmin(windowed)]
print(f"smallest error at h = {best:.1e}, and at {smoothest:.1e} when averaged over neighbouring steps")
assert 1e-6 < best < 1e-4
assert 1e-6 < smoothest < 1e-4
np.testing.assert_allclose(errors[steps > 1e-3], steps[steps > 1e-3] ** 2 / 3, rtol=1e-5)
assert min(errors[0], errors[-1]) > 1e3 * errors.min()
