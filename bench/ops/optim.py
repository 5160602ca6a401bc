"""Optimisers on a whole model: see bench/conftest.py."""


def test_op(op):
    """One op of gpugrad/ops/optim.py."""
    op()
