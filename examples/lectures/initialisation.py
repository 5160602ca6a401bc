"""Why initial weights are scaled by the fan, and inputs normalised: signals keep their size through many layers."""

import numpy as np

import gpugrad as gg
from gpugrad import data
from gpugrad.nn import init

fan_in, fan_out = 300, 200
expected = {  # a weight has shape (outputs, inputs)
    "glorot_uniform": 2 / (fan_in + fan_out),
    "glorot_normal": 2 / (fan_in + fan_out),
    "he_uniform": 2 / fan_in,
    "he_normal": 2 / fan_in,
}
for name, variance in expected.items():
    W = getattr(init, name)((fan_out, fan_in), generator=gg.random.Generator(0), dtype=gg.float64).numpy()
    print(f"{name:15} variance {W.var():.6f}, expected {variance:.6f}")
    assert abs(W.mean()) < 5 * np.sqrt(variance / W.size)
    assert np.isclose(W.var(), variance, rtol=0.02)  # 60 000 samples: more than three standard errors


def through(layers, activation, std, width=256):
    """Size (root mean square) of a random signal after some layers, and of the gradient that comes back."""
    g = gg.random.Generator(1)
    x = g.normal((64, width), dtype=gg.float64).requires_grad_()
    h = x
    for _ in range(layers):
        h = activation(h @ g.normal((width, width), 0.0, std, dtype=gg.float64))
    (back,) = gg.gradients([h], [x], [g.normal(h.shape, dtype=gg.float64)])
    return [float(gg.sqrt(gg.mean(t * t))) for t in (h, back)]


he = np.sqrt(2 / 256)
for factor in (0.5, 1.0, 2.0):
    forward, back = through(20, gg.relu, factor * he)
    print(f"20 relu layers, {factor} times He: signal {forward:.2e}, gradient {back:.2e}")
    scale = factor**20  # relu is homogeneous: every layer multiplies both by the factor
    assert 0.3 < forward / scale < 3
    assert 0.3 < back / scale < 3

# Input normalisation, with the statistics of the training set alone.
rng = np.random.default_rng(0)
train, test = (rng.normal([100.0, -3.0], [20.0, 0.01], (n, 2)) for n in (400, 100))
scaled, scaled_test = data.standardize(train, test, axis=0)
assert np.allclose(scaled.mean(0), 0, atol=1e-4)  # float32
assert np.allclose(scaled.std(0), 1, rtol=1e-3)
assert np.allclose(scaled_test, (test - train.mean(0)) / train.std(0), rtol=1e-2, atol=1e-3)


# What it buys: the condition number of least squares, the ratio of the Hessian's eigenvalues.
def condition(x):
    x = gg.tensor(np.asarray(x, dtype=float))
    gradient = gg.grad(lambda w: 0.5 * gg.mean((x @ w) ** 2))
    H = gg.stack([gg.grad(lambda w, i=i: gradient(w)[i])(gg.ones(2, dtype=gg.float64)) for i in range(2)])
    low, high = np.linalg.eigvalsh(H.numpy())
    return high / low


print(f"condition number: raw {condition(train):.3g}, normalised {condition(scaled):.3g}")
assert condition(train) > 1000
assert condition(scaled) < 2
