"""Tools for testing gpugrad code, users' kernels and derivative rules included, on a machine without a GPU."""

from gpugrad.testing.check import check_kernel, guarded
from gpugrad.testing.emulator import EmulatorError
from gpugrad.testing.mutants import survivors

__all__ = ["EmulatorError", "check_kernel", "guarded", "survivors"]
