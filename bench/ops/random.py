"""Random numbers and dropout: see bench/conftest.py."""


def test_op(op):
    """One op of gpugrad/ops/random.py."""
    op()
