"""A Gaussian process: its length scale, amplitude and noise by maximum likelihood, with plain NumPy linear algebra.

The negative log marginal likelihood of observations y at points x with covariance K is
(y' K^-1 y + log det K + n log 2 pi) / 2; its gradient goes through the Cholesky factor.
"""

import numpy as np

from gpugrad import grad

rs = np.random.RandomState(1)
POINTS = np.sort(rs.uniform(-3.0, 3.0, 40))
NOISE = 0.2
OBSERVED = np.sin(2.0 * POINTS) + NOISE * rs.normal(size=40)


def covariance(params, a, b):
    """Squared exponential kernel; params are the logarithms of length scale, amplitude and noise."""
    distance = (a[:, None] - b[None, :]) / np.exp(params[0])
    return np.exp(2.0 * params[1]) * np.exp(-0.5 * distance**2)


def objective(params):
    """The negative log marginal likelihood, a point."""
    n = len(POINTS)
    K = covariance(params, POINTS, POINTS) + np.exp(2.0 * params[2]) * np.eye(n)
    root = np.linalg.cholesky(K)
    white = np.linalg.solve(root, OBSERVED)
    return (0.5 * np.sum(white**2) + np.sum(np.log(np.diag(root))) + 0.5 * n * np.log(2.0 * np.pi)) / n


def predict(params, where):
    """The posterior mean at other points."""
    K = covariance(params, POINTS, POINTS) + np.exp(2.0 * params[2]) * np.eye(len(POINTS))
    return np.dot(covariance(params, where, POINTS), np.linalg.solve(K, OBSERVED))


start = (np.array([0.5, 0.0, 0.0]),)


def main():
    slope = grad(objective)
    params, velocity = start[0], np.zeros(3)
    for _ in range(400):
        velocity = 0.9 * velocity - 0.02 * slope(params)
        params = params + velocity
    where = np.linspace(-2.5, 2.5, 50)
    error = np.max(np.abs(predict(params, where) - np.sin(2.0 * where)))
    noise = np.exp(params[2])
    assert objective(params) < objective(start[0]) - 0.5
    assert np.max(np.abs(slope(params))) < 1e-4
    assert abs(noise - NOISE) < 0.1
    assert error < 0.4
    print(f"gaussian process: noise {noise:.4f} (made with {NOISE}), largest error of the mean {error:.3f}")


if __name__ == "__main__":
    main()
