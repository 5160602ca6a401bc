"""Tools for testing gpugrad code, users' kernels included, on a machine without a GPU."""
