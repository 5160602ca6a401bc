"""Logistic regression in plain NumPy, trained with gpugrad's gradients.

The loss is an ordinary NumPy function of NumPy arrays. `grad` calls it with a Tensor in place of the weights, and NumPy
hands its own functions over to gpugrad. A program for HIPS autograd needs other import lines, and nothing else.
"""

import numpy as np

from gpugrad import grad

rs = np.random.RandomState(0)
ONES = rs.normal(size=(60, 2)) + np.array([1.5, -0.5])
ZEROS = rs.normal(size=(60, 2)) + np.array([-1.0, 1.0])
INPUTS = np.concatenate([np.concatenate([ONES, ZEROS]), np.ones((120, 1))], axis=1)  # the last column is for the bias
SIGNS = np.concatenate([np.ones(60), -np.ones(60)])


def objective(weights):
    """Mean negative log-likelihood, with a little ridge."""
    margins = SIGNS * np.dot(INPUTS, weights)
    return np.mean(np.logaddexp(0.0, -margins)) + 0.001 * np.sum(weights**2)


start = (np.zeros(3),)


def main():
    slope = grad(objective)
    weights = start[0].copy()
    for _ in range(300):
        weights -= 1.0 * slope(weights)  # in place, on NumPy's own array
    right = np.mean(SIGNS * np.dot(INPUTS, weights) > 0)
    assert isinstance(weights, np.ndarray)
    assert np.max(np.abs(slope(weights))) < 1e-4
    assert right > 0.9
    print(f"logistic regression: loss {objective(weights):.5f}, {right:.1%} of the training set right")


if __name__ == "__main__":
    main()
