"""Samples for gpugrad/ops/shape.py."""

from . import S, normal

SAMPLES = {
    "alias": [S(normal(2, 3))],
    "reshape": [S(normal(2, 3), shape=(3, 2)), S(normal(), shape=(1, 1))],
    "broadcast_to": [S(normal(3, 1), shape=(2, 3, 4))],
    "astype": [S(normal(3), dtype="float64")],
    "zeros_like": [S(normal(2, 3))],
    "ones_like": [S(normal(2, 3))],
}
