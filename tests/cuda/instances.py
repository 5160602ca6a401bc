"""Every kernel in kernels/ with every dtype it is launched with."""

from gpugrad.warmup import families, instances

__all__ = ["families", "instances"]
