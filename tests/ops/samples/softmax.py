"""Samples for gpugrad/ops/softmax.py. Backward ops take any `out`, not just one that some input has."""

from . import S, normal, positive

SAMPLES = {
    "softmax": [S(normal(3, 4), axis=1), S(normal(3, 4, 2), axis=1)],
    "log_softmax": [S(normal(3, 4), axis=1), S(normal(3, 4, 2), axis=0)],
    "logsumexp": [S(normal(3, 4), axis=(1,), keepdims=False), S(normal(3, 4, 2), axis=(0, 2), keepdims=True)],
    "softmax_bwd": [S(normal(3, 4), positive(3, 4), axis=1), S(normal(3, 4, 2), positive(3, 4, 2), axis=1)],
    "log_softmax_bwd": [S(normal(3, 4), normal(3, 4), axis=1), S(normal(3, 4, 2), normal(3, 4, 2), axis=0)],
    "logsumexp_bwd": [
        S(normal(3), normal(3), normal(3, 4), axis=(1,)),
        S(normal(1, 4, 1), normal(1, 4, 1), normal(3, 4, 2), axis=(0, 2)),
    ],
}
