"""Products and decompositions: see bench/conftest.py."""


def test_op(op):
    """One op of gpugrad/ops/linalg.py."""
    op()
