"""Indexing, embeddings, scattering: see bench/conftest.py."""


def test_op(op):
    """One op of gpugrad/ops/index.py."""
    op()
