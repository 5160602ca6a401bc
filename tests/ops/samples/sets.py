"""Samples for gpugrad/ops/sets.py."""

import numpy as np

from . import S, ints, normal

SAMPLES = {
    "unique": [
        S(ints(0, 4, 3, 5)),
        S(normal(2, 3)),
        S(np.array([np.nan, 0.0, -0.0, np.nan, 1.0])),
        S(np.zeros((0, 2))),
        S(np.array(3)),
    ],
    "isin": [S(ints(0, 9, 3, 4), ints(0, 9, 5), invert=False), S(normal(3), normal(0), invert=True)],
}
