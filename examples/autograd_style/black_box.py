"""Climbing a function that has no gradient, by the gradient of a search distribution.

Points are drawn from a normal distribution with parameters (mean, log standard deviation). The score-function estimate
of the expected reward's gradient is the mean of reward times the gradient of log density, and only the density has to
be differentiable: the reward here is a staircase with holes.
"""

import numpy as np

from gpugrad import grad

rs = np.random.RandomState(3)
SUMMIT = np.array([2.0, -1.0, 0.5])


def reward(points):
    """Steps up to the summit, with every seventh point broken: flat or jumping wherever one looks."""
    height = -np.floor(4.0 * np.sqrt(np.sum((points - SUMMIT) ** 2, axis=1)))
    return np.where(np.arange(len(points)) % 7 == 6, -30.0, height)


def objective(params, points, weights):
    """The log densities of points, weighed: its gradient is the estimate."""
    mean, log_std = params
    scaled = (points - mean) / np.exp(log_std)
    log_density = np.sum(-0.5 * scaled**2 - log_std - 0.5 * np.log(2.0 * np.pi), axis=1)
    return np.mean(weights * log_density)


def draw(params, n):
    """Points of the search distribution, and what they are worth in terms of rank."""
    mean, log_std = (np.array(p) for p in params)
    points = mean + np.exp(log_std) * rs.normal(size=(n, 3))
    order = np.argsort(np.argsort(reward(points), kind="stable"), kind="stable")
    return points, 2.0 * order / (n - 1) - 1.0


start = ((np.zeros(3), np.zeros(3)), *draw((np.zeros(3), np.zeros(3)), 200))


def main():
    slope = grad(objective)
    mean, log_std = start[0]
    for _ in range(150):
        d_mean, d_log_std = slope((mean, log_std), *draw((mean, log_std), 200))
        mean = mean + 0.3 * np.exp(2.0 * log_std) * d_mean  # natural gradient: by the inverse Fisher information
        log_std = log_std + 0.15 * d_log_std
    distance = np.linalg.norm(mean - SUMMIT)
    assert distance < 0.2
    print(f"black box: search ends {distance:.2f} from the summit, {np.linalg.norm(SUMMIT):.2f} from where it began")


if __name__ == "__main__":
    main()
