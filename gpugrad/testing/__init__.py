"""Tools for testing gpugrad code, users' kernels included, on a machine without a GPU."""

from gpugrad.testing.check import check_kernel, guarded
from gpugrad.testing.emulator import EmulatorError

__all__ = ["EmulatorError", "check_kernel", "guarded"]
