"""A network of two hidden layers fits a curve: parameters in a list of dicts, Adam by hand, plain NumPy throughout."""

import numpy as np

from gpugrad import grad

rs = np.random.RandomState(2)
INPUTS = np.linspace(-1.0, 1.0, 60)[:, None]
TARGETS = np.sin(5.0 * INPUTS) * np.exp(-INPUTS)


def layer(n_in, n_out):
    return {"weight": rs.normal(size=(n_in, n_out)) / np.sqrt(n_in), "bias": 0.1 * rs.normal(size=n_out)}


def network(layers, x):
    for i, p in enumerate(layers):
        x = np.dot(x, p["weight"]) + p["bias"]
        if i < len(layers) - 1:
            x = np.tanh(x)
    return x


def objective(layers):
    """Mean squared error."""
    return np.mean((network(layers, INPUTS) - TARGETS) ** 2)


start = ([layer(1, 20), layer(20, 20), layer(20, 1)],)


def adam(slope, layers, steps, rate, decay=(0.9, 0.99)):
    first = [{k: np.zeros_like(v) for k, v in p.items()} for p in layers]
    second = [{k: np.zeros_like(v) for k, v in p.items()} for p in layers]
    for t in range(1, steps + 1):
        new = []
        for p, g, m, v in zip(layers, slope(layers), first, second):
            for k in p:
                m[k] = decay[0] * m[k] + (1 - decay[0]) * g[k]
                v[k] = decay[1] * v[k] + (1 - decay[1]) * g[k] ** 2
            size = rate * np.sqrt(1 - decay[1] ** t) / (1 - decay[0] ** t)
            new.append({k: p[k] - size * m[k] / (np.sqrt(v[k]) + 1e-8) for k in p})
        layers = new
    return layers


def main():
    fitted = adam(grad(objective), start[0], steps=800, rate=0.02)
    before, after = objective(start[0]), objective(fitted)
    assert after < 1e-3 < before
    print(f"neural network: mean squared error {before:.2f} before, below {1e-3} after 800 steps")


if __name__ == "__main__":
    main()
