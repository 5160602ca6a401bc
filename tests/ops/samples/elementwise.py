"""Samples for gpugrad/ops/elementwise.py."""

from . import S, normal

SAMPLES = {
    "add": [S(normal(3, 4), normal(4))],
    "subtract": [S(normal(3, 4), normal(3, 1))],
    "multiply": [S(normal(3, 4), normal(4))],
    "negative": [S(normal(3))],
    "exp": [S(normal(3, 4))],
    "tanh": [S(normal(3, 4))],
}
