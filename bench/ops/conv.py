"""Convolution and pooling: see bench/conftest.py."""


def test_op(op):
    """One op of gpugrad/ops/conv.py."""
    op()
