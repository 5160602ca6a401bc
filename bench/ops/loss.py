"""Softmax cross-entropy: see bench/conftest.py."""


def test_op(op):
    """One op of gpugrad/ops/loss.py."""
    op()
