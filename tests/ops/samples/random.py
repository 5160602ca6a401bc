"""Samples for gpugrad/ops/random.py: a counter, then the key (seed, stream) among the attributes."""

import numpy as np

from . import S, normal

COUNTER, KEY = np.array([7], "uint64"), (3, 2**63 + 5)

SAMPLES = {
    "random_uniform": [
        S(COUNTER, key=KEY, shape=(2, 3), low=0.0, high=1.0, dtype="float32"),
        S(COUNTER, key=KEY, shape=(5,), low=-2.0, high=3.0, dtype="float64"),
        S(COUNTER, key=KEY, shape=(), low=0.0, high=1.0, dtype="float16"),
    ],
    "random_integers": [S(COUNTER, key=KEY, shape=(2, 3), low=-5, high=9)],
    "random_bernoulli": [S(COUNTER, key=KEY, shape=(2, 3), p=0.3)],
    "random_permutation": [S(COUNTER, key=KEY, n=9)],
    "snapshot": [S(COUNTER)],
    "dropout": [S(normal(3, 5), COUNTER, key=KEY, p=0.4), S(normal(3, 5), COUNTER, key=KEY, p=1.0)],
}
