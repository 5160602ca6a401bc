"""Activations as modules: each is a function of `gpugrad` with its options fixed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import gpugrad as gg
from gpugrad.errors import DomainError, fail
from gpugrad.nn.module import Module


class Activation(Module):
    """An elementwise or row-wise function with fixed options, given by position or name as the function takes them.

    Raises DomainError for an option that the function does not have.
    """

    fn: ClassVar[Callable[..., gg.Tensor]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = list(inspect.signature(type(self).fn).parameters)[1:]
        given = dict(zip(names, args)) | kwargs
        if len(args) > len(names) or not set(kwargs) <= set(names[len(args) :]):
            raise fail(
                DomainError, type(self).__name__,
                f"options {args} {kwargs} do not fit, expected {', '.join(names) or 'none'}",
            )  # fmt: skip
        self.options = given

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        """The function of x."""
        return type(self).fn(x, **self.options)

    def extra_repr(self) -> str:
        """The options that were given."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class ReLU(Activation):
    """max(0, x); slope 0 at 0."""

    fn = staticmethod(gg.relu)


class LeakyReLU(Activation):
    """x above 0, negative_slope x elsewhere (0.01)."""

    fn = staticmethod(gg.leaky_relu)


class ELU(Activation):
    """x above 0, alpha (exp(x) - 1) elsewhere (alpha 1)."""

    fn = staticmethod(gg.elu)


class SELU(Activation):
    """Scaled elu that keeps mean 0 and variance 1."""

    fn = staticmethod(gg.selu)


class GELU(Activation):
    """x times the normal distribution function; approximate='tanh' for the faster form."""

    fn = staticmethod(gg.gelu)


class SiLU(Activation):
    """x sigmoid(x)."""

    fn = staticmethod(gg.silu)


class Mish(Activation):
    """x tanh(softplus(x))."""

    fn = staticmethod(gg.mish)


class Sigmoid(Activation):
    """1 / (1 + exp(-x))."""

    fn = staticmethod(gg.sigmoid)


class LogSigmoid(Activation):
    """log(sigmoid(x)) without overflow."""

    fn = staticmethod(gg.log_sigmoid)


class Tanh(Activation):
    """Hyperbolic tangent."""

    fn = staticmethod(gg.tanh)


class Softplus(Activation):
    """log(1 + exp(beta x)) / beta (beta 1)."""

    fn = staticmethod(gg.softplus)


class Hardswish(Activation):
    """x hardsigmoid(x)."""

    fn = staticmethod(gg.hardswish)


class Hardsigmoid(Activation):
    """x / 6 + 1/2 clipped to [0, 1]."""

    fn = staticmethod(gg.hardsigmoid)


class Hardtanh(Activation):
    """x clipped to [min_val, max_val] (-1 and 1)."""

    fn = staticmethod(gg.hardtanh)


class Softmax(Activation):
    """exp(x) over its sum along `axis` (-1)."""

    fn = staticmethod(gg.softmax)


class LogSoftmax(Activation):
    """log(softmax(x)) along `axis` (-1), without overflow."""

    fn = staticmethod(gg.log_softmax)
