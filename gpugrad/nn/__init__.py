"""Neural networks: modules, their functions, initialisers and the lecture's units."""

from gpugrad.nn import functional, init, units
