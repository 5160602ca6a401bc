"""Samples for gpugrad/ops/guard.py."""

from . import S, normal

SAMPLES = {"assert_finite": [S(normal(3, 4), what="the loss"), S(normal(), what="x")]}
