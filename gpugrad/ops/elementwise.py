"""Elementwise arithmetic: one derivative per input, used in both directions."""

from __future__ import annotations

from gpugrad.define import elementwise

__all__ = ["add", "exp", "multiply", "negative", "subtract", "tanh"]

add = elementwise("add", "add", lambda F, t, _out, _x, _y: t, lambda F, t, _out, _x, _y: t, doc="x + y, broadcast.")
subtract = elementwise("subtract", "subtract", lambda F, t, _out, _x, _y: t, lambda F, t, _out, _x, _y: -t, doc="x - y, broadcast.")
multiply = elementwise("multiply", "multiply", lambda F, t, _out, _x, y: t * y, lambda F, t, _out, x, _y: t * x, doc="x * y, broadcast.")
negative = elementwise("negative", "negative", lambda F, t, _out, _x: -t, doc="-x.")
exp = elementwise("exp", "exp", lambda F, t, out, _x: t * out, floating=True, doc="e to the x.")
tanh = elementwise("tanh", "tanh", lambda F, t, out, _x: t * (1 - out * out), floating=True, doc="Hyperbolic tangent.")
