"""Samples for gpugrad/ops/index.py. An index is a template in which "array" stands for the next index array."""

import numpy as np

from . import S, distinct, ints, normal

FULL = slice(None)
MASK = np.array([[True, False, True], [False, False, True]])

SAMPLES = {
    "getitem": [
        S(normal(4, 5), index=(slice(1, None, 2), 3)),
        S(normal(3, 4), index=(..., None, slice(None, None, -1))),
        S(normal(3), index=(1,)),
    ],
    "unslice": [S(normal(2), index=(slice(1, None, 2), 3), shape=(4, 5)), S(normal(), index=(1,), shape=(3,))],
    "gather": [
        S(normal(4, 3), np.array([0, 0, -1]), index=("array",), distinct=False),
        S(normal(4, 3), ints(0, 3, 2, 2), index=(FULL, "array"), distinct=False),
        S(normal(4, 3, 2), ints(-4, 4, 2, 1), ints(0, 3, 3), index=("array", "array"), distinct=False),
        S(normal(2, 4, 3, 2), ints(0, 4, 5), ints(0, 3, 5), index=(FULL, "array", "array", ...), distinct=False),
        S(normal(3, 4, 5), ints(0, 3, 2), ints(0, 5, 2), index=("array", FULL, "array"), distinct=False),
        S(normal(3, 4), ints(0, 3, 2), index=("array", 1), distinct=False),
        S(normal(3, 4), ints(0, 4, 2), index=(..., None, "array"), distinct=False),
        S(normal(2, 3), MASK, index=("array",), distinct=True),
        S(normal(2, 3, 2), MASK, np.array([0, 1, 1]), index=("array", "array"), distinct=False),
        S(normal(3, 2), np.zeros(0, "int64"), index=("array",), distinct=False),
    ],
    "scatter_rows": [
        S(normal(4, 3), np.array([1, 0, 1, 1]), rows=3, distinct=False),
        S(normal(2, 2), np.array([[0, 4], [4, 0]]), rows=5, distinct=False),
        S(normal(3, 2), np.array([2, 0, 3]), rows=4, distinct=True),
        S(normal(0, 3), np.zeros(0, "int64"), rows=2, distinct=False),
    ],
    "embedding": [
        S(normal(4, 3), np.array([[0, 3], [3, 1]]), padding=None),
        S(normal(4, 3), np.array([0, 3, 3]), padding=2),
    ],
    "put": [
        S(normal(3, 4), normal(3), index=(FULL, 1), distinct=True),
        S(normal(3, 4), normal(), index=(slice(0, 2),), distinct=True),
        S(normal(4, 3), normal(3, 3), np.array([1, 2, 1]), index=("array",), distinct=False),
        S(normal(2, 3), normal(3), MASK, index=("array",), distinct=True),
        S(normal(4), normal(1), np.array([0, 0, 2]), index=("array",), distinct=False),
    ],
    "positions": [
        S(np.array([0, -1, 2]), np.array([1, 1, -2]), index=("array", "array"), shape=(3, 4)),
        S(MASK, index=("array", FULL), shape=(2, 3, 2)),
    ],
    "last_written": [S(np.array([1, 2, 1]), index=("array",), shape=(4, 3))],
    "argsort": [
        S(distinct(3, 4), axis=1, descending=False, stable=True),
        S(distinct(3, 4), axis=0, descending=True, stable=True),
    ],
    "searchsorted": [S(np.array([0.0, 1.0, 1.0, 2.0]), normal(3, 2), side="right")],
    "one_hot": [S(ints(0, 4, 2, 3), n=4, dtype=np.dtype("float32"))],
}
