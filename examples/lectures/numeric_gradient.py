"""The central difference: its error falls with h squared, then rises as rounding takes over. f(x) = x^3."""

import numpy as np

import gpugrad as gg

f = lambda x: x**3
x = gg.tensor(1.7, dtype=gg.float64)
exact = gg.grad(f)(x).item()
assert np.isclose(exact, 3 * 1.7**2, rtol=1e-15)

steps = 10.0 ** np.arange(-12, 0)
errors = np.array([abs(gg.numgrad(f, x, method="central", eps=h / 1.7).item() / exact - 1) for h in steps])
for h, error in zip(steps, errors):
    print(f"h = {h:.0e}   relative error {error:.1e}")

best = steps[errors.argmin()]
assert 0.999e-6 <= best <= 1.001e-4
assert np.isclose(errors[-1] / errors[-2], 100, rtol=1e-3)  # truncation: h ten times larger, error a hundred times
assert errors[0] > 1e3 * errors.min()  # rounding

# Richardson's extrapolation is exact for polynomials of degree four: only rounding is left.
assert abs(gg.numgrad(f, x).item() / exact - 1) < 1e-12
print(f"numeric gradient: the error is least at h = {best:.0e}")
