"""Samples for gpugrad/ops/shape.py."""

from . import S, normal

SAMPLES = {
    "alias": [S(normal(2, 3))],
    "reshape": [S(normal(2, 3), shape=(3, 2)), S(normal(), shape=(1, 1)), S(normal(0, 3), shape=(3, 0))],
    "broadcast_to": [S(normal(3, 1), shape=(2, 3, 4)), S(normal(), shape=(2,)), S(normal(1), shape=(0,))],
    "astype": [S(normal(3), dtype="float64")],
    "to_device": [S(normal(3), device="cpu", source="cpu")],
    "zeros_like": [S(normal(2, 3))],
    "ones_like": [S(normal(2, 3))],
    "transpose": [S(normal(2, 3, 4), axes=(2, 0, 1)), S(normal(2, 3), axes=(1, 0)), S(normal(), axes=())],
    "matrix_transpose": [S(normal(2, 3, 4))],
    "flip": [S(normal(2, 3), axis=(1,)), S(normal(2, 3, 2), axis=(0, 2))],
    "roll": [S(normal(4, 3), shift=(1, -2), axis=(0, 1)), S(normal(4), shift=(7,), axis=(0,))],
    "concat": [S(normal(2, 3), normal(2, 1), normal(2, 2), axis=1), S(normal(3), axis=0)],
    "stack": [S(normal(2, 3), normal(2, 3), axis=1), S(normal(), normal(), normal(), axis=0)],
    "tril": [S(normal(3, 4), k=0), S(normal(2, 3, 3), k=-1)],
    "triu": [S(normal(4, 3), k=1)],
}
