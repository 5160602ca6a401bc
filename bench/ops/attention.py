"""Attention and rotary positions: see bench/conftest.py."""


def test_op(op):
    """One op of gpugrad/ops/attention.py."""
    op()
