"""Samples for gpugrad/ops/optim.py. Update ops overwrite their inputs; tests/optim/test_updates.py covers them."""

from . import S, normal

SAMPLES = {
    "global_norm": [
        S(normal(3, 4), normal(5), ord=2.0),
        S(normal(3, 4), normal(5), ord=float("inf")),
        S(normal(3, 4), normal(5), ord=3.0),
    ],
}
