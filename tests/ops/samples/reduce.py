"""Samples for gpugrad/ops/reduce.py. Reductions take a canonical axis tuple and keepdims."""

from . import S, normal

SAMPLES = {
    "sum": [S(normal(2, 3, 4), axis=(0, 2), keepdims=False), S(normal(3, 4), axis=(0, 1), keepdims=True)],
}
