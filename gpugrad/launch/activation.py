"""Launches of kernels/activation.cu."""

from __future__ import annotations

from gpugrad.kernel import kernel

relu_bwd = kernel("activation", "relu_bwd")
