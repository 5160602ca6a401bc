"""log(1 + e^-x) and its gradient, without overflow: the naive formula is inf from x = -710 on."""

import warnings

import numpy as np

import gpugrad as gg

xs = np.array([-1, -2, -5, -10, -20, -50, -100, -200, -500, -1000, -2000], dtype=float)
shown = [1.3133, 2.1269, 5.0067, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    naive = np.log(1 + np.exp(-xs))
assert np.isinf(naive[-2:]).all()

x = gg.tensor(xs, requires_grad=True)
for stable in (gg.softplus(-x), -gg.log_sigmoid(x), gg.logaddexp(-x, 0.0)):
    assert np.allclose(stable.numpy(), shown, rtol=0, atol=1e-4)
    slope = gg.gradients(stable.sum(), x).numpy()
    assert np.isfinite(slope).all()
    assert np.allclose(slope, -1 / (1 + np.exp(np.maximum(xs, -700))), rtol=1e-12)

# float32, where e^89 overflows
assert np.allclose(gg.softplus(-gg.tensor(xs, dtype=gg.float32)).numpy(), shown, rtol=1e-4)

print("log(1 + e^-x) at", xs.astype(int).tolist(), "is", gg.softplus(-x).numpy().round(4).tolist())
