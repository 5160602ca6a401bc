"""Norms: see bench/conftest.py."""


def test_op(op):
    """One op of gpugrad/ops/normalize.py."""
    op()
