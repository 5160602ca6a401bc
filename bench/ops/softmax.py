"""Softmax and its kin: see bench/conftest.py."""


def test_op(op):
    """One op of gpugrad/ops/softmax.py."""
    op()
