"""Per-op benchmarks, a file for each family of gpugrad/ops: see bench/conftest.py."""
