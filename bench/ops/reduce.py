"""Reductions, scans and their backward kernels: see bench/conftest.py."""


def test_op(op):
    """One op of gpugrad/ops/reduce.py."""
    op()
