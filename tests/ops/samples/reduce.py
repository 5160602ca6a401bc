"""Samples for gpugrad/ops/reduce.py. Reductions take a canonical axis tuple and keepdims."""

import numpy as np

from . import S, away, distinct, ints, normal, positive

zeros = np.array([[1.5, 0.0, -2.0, 0.7], [0.0, 3.0, 0.0, 1.0], [2.0, -1.0, 0.5, 0.3]])

SAMPLES = {
    "sum": [
        S(normal(2, 3, 4), axis=(0, 2), keepdims=False),
        S(normal(3, 4), axis=(0, 1), keepdims=True),
        S(normal(3), axis=(), keepdims=False),
    ],
    "mean": [S(normal(2, 3, 4), axis=(0, 2), keepdims=False), S(normal(3, 4), axis=(1,), keepdims=True)],
    "prod": [
        S(normal(2, 3, 4), axis=(0, 2), keepdims=False),
        S(zeros, axis=(1,), keepdims=True),
        S(zeros, axis=(0, 1), keepdims=False),
        S(normal(3), axis=(), keepdims=False),
    ],
    "var": [
        S(normal(2, 3, 4), axis=(0, 2), keepdims=False, correction=0.0),
        S(normal(3, 4), axis=(1,), keepdims=True, correction=1),
    ],
    "std": [
        S(normal(2, 3, 4), axis=(0, 2), keepdims=False, correction=0.0),
        S(normal(3, 4), axis=(1,), keepdims=True, correction=1),
    ],
    "max": [S(distinct(2, 3, 4), axis=(0, 2), keepdims=False), S(distinct(3, 4), axis=(1,), keepdims=True)],
    "min": [S(distinct(2, 3, 4), axis=(0, 2), keepdims=False), S(distinct(3, 4), axis=(1,), keepdims=True)],
    "argmax": [S(normal(3, 4), axis=1, keepdims=False), S(normal(3, 4), axis=None, keepdims=True)],
    "argmin": [S(normal(3, 4), axis=0, keepdims=True), S(normal(3, 4), axis=None, keepdims=False)],
    "all": [S(zeros != 0, axis=(1,), keepdims=False)],
    "any": [S(zeros == 0, axis=(0,), keepdims=True)],
    "count_nonzero": [S(zeros, axis=(0, 1), keepdims=False), S(ints(0, 2, 3, 4), axis=(1,), keepdims=True)],
    "cumulative_sum": [S(normal(3, 4), axis=1, reverse=False), S(normal(3, 4), axis=0, reverse=True)],
    "cumulative_prod": [
        S(normal(3, 5), axis=1, reverse=False),
        S(zeros, axis=1, reverse=False),
        S(zeros, axis=0, reverse=True),
    ],
    "cumulative_argmax": [
        S(normal(3, 5), axis=1, largest=True),
        S(np.floor(normal(4, 3)), axis=0, largest=False),
    ],
    "linear_scan": [
        S(normal(3, 5), normal(3, 5), axis=1, reverse=False),
        S(normal(5, 2), normal(5, 2), axis=0, reverse=True),
    ],
    "shift": [S(normal(3, 4), axis=1, by=1, fill=1), S(normal(3, 4), axis=0, by=-1, fill=0)],
    "norm": [
        S(normal(2, 3, 4), axis=(0, 2), keepdims=False, power=2),
        S(away(3, 4, gap=0.3), axis=(1,), keepdims=True, power=3.5),
        S(positive(4), axis=(0,), keepdims=False, power=-1.5),
        S(away(4, gap=0.3), axis=(0,), keepdims=False, power=3),
    ],
}
