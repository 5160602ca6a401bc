"""Ops of your own at Tensor level: `Function` with forward, backward and ctx, and `custom_op`, its short form.

They need no table entry. The rule is checked against numeric derivatives at the first recorded call.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from gpugrad import backends
from gpugrad.check import GradientError
from gpugrad.dtypes import is_float
from gpugrad.errors import DTypeError, GpugradError, GraphError, ShapeError, describe, fail
from gpugrad.op import PICK, RECORDING, alive, record
from gpugrad.state import mode, no_grad
from gpugrad.tensor import Tensor


class Context:
    """What `forward` hands to `backward`: saved tensors, and any attribute you set.

    needs_input_grad: one flag per positional argument. saved_tensors: in `backward`, what `save_for_backward` got.
    An attribute that is a tensor would be a constant to second derivatives, so recording `backward` refuses it.
    """

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self.saved_tensors: tuple[Tensor | None, ...] = ()
        self._fixed: tuple[Tensor, ...] = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors for `backward`: inputs and outputs at any order, other floats at first order only."""
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *outputs: Tensor) -> None:
        """Say that these outputs are constants, such as indices. Integer outputs are so by themselves."""
        self._fixed = outputs

    def _pack(self, inputs: Sequence[Any], outputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
        """Exchange the saved tensors for places in (*outputs, *inputs, *others); returns the node's saved values."""
        n, known = len(outputs), (*outputs, *inputs)
        self._outputs = [o.data if is_float(o.dtype) and all(o is not f for f in self._fixed) else None for o in outputs]
        self._outputs = [None if a is None else (a.shape, a.dtype) for a in self._outputs]
        place = {id(t): k for k, t in enumerate(known) if k >= n or self._outputs[k]}
        others = [t for t in self.saved_tensors if t is not None and id(t) not in place]
        place |= {id(t): len(known) + j for j, t in enumerate(others)}
        self._places = [None if t is None else place[id(t)] for t in self.saved_tensors]
        self._others, self.saved_tensors, self._fixed = [t.data for t in others], (), ()
        whole = any(k is not None and k < n for k in self._places)  # one saved output keeps all: they are tied together
        heads = tuple(o.data for o in outputs) if whole else None
        body = [x.data if n + i in self._places else None for i, x in enumerate(inputs)]
        return (heads[0] if heads and n == 1 else heads, *body, *self._others)

    def _unpack(self, name: str, out: Any, rest: tuple[Any, ...], recording: bool) -> Context:
        """A copy for one run of the rule, with the saved tensors in place (never kept here: they may hold the node)."""
        n = len(self._outputs)
        heads = (out,) if n == 1 else (None,) * n if out is None else out
        values = [*heads, *rest[: len(rest) - len(self._others)], *self._others]
        loose = [v for v in self._others if is_float(v.dtype)]
        loose += [v for v in vars(self).values() if isinstance(v, Tensor) and is_float(v.dtype)]
        if recording and loose:
            raise fail(
                GraphError, name,
                f"ctx kept {describe(loose[0])}, neither input nor output, and second derivatives would take it for a "
                "constant; recompute it in backward from saved inputs, or return it as an output",
            )  # fmt: skip
        run = copy.copy(self)
        run.saved_tensors = tuple(None if k is None else wrap(values[k]) for k in self._places)
        return run

    if not hasattr(object, "__getattr__"):

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"ctx has no attribute {name!r}: forward did not set it")
