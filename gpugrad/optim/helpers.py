"""Round the step: gradient clipping and averages of the parameters. Nothing here waits for the device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import gpugrad as gg
from gpugrad.errors import DomainError, GraphError, ShapeError, fail
from gpugrad.ops import optim as updates
from gpugrad.optim.optimizer import Params, named, overwrite, wide


def gradients_of(op: str, params: Any) -> list[gg.Tensor]:
    """The gradients that are there, of one tensor or an iterable of tensors or (name, tensor) pairs."""
    pairs = [("", params)] if isinstance(params, gg.Tensor) else named(op, params)
    grads = (p.grad for _, p in pairs)
    return [g for g in grads if g is not None]


def clip_grad_norm(params: Any, max_norm: float, ord: float = 2.0) -> gg.Tensor:
    """Scale all gradients by one factor so that their joint norm is at most `max_norm`; returns the norm before, 0-d.

    params: tensors, (name, tensor) pairs or one tensor; those without gradients are skipped. ord: a positive number
    or inf. The factor is max_norm / max(norm, max_norm), formed on the device. A norm that is not finite
    makes the gradients nan or 0, and is what comes back. Raises DomainError unless max_norm > 0 and ord > 0.
    """
    if not (max_norm > 0 and ord > 0):
        raise fail(DomainError, "clip_grad_norm", f"max_norm is {max_norm} and ord {ord}, expected both above 0")
    grads = gradients_of("clip_grad_norm", params)
    if not grads:
        return gg.zeros(())
    norm: gg.Tensor = updates.global_norm(*(g.detach() for g in grads), ord=float(ord))
    updates.scale_into(grads, norm, limit=float(max_norm))
    return norm


def clip_grad_value(params: Any, limit: float) -> None:
    """Clip every gradient element to [-limit, limit], in place. Raises DomainError for a negative limit."""
    if not limit >= 0:
        raise fail(DomainError, "clip_grad_value", f"limit is {limit}, expected at least 0")
    grads = gradients_of("clip_grad_value", params)
    if grads:
        updates.clamp_into(grads, limit=float(limit))


class ExponentialMovingAverage:
    """Average of the parameters over the steps: a += (1 - decay) (p - a) at each `update()`, from a copy of p.

    decay=None gives the plain mean of the parameters at all updates (Polyak averaging). Half-precision parameters are
    averaged in float32. Raises DomainError for a decay outside [0, 1] and for no parameters.
    """

    def __init__(self, params: Params, decay: float | None = 0.999) -> None:
        if decay is not None and not 0 <= decay <= 1:
            raise fail(DomainError, "ExponentialMovingAverage", f"decay is {decay}, expected in [0, 1]")
        pairs = named("ExponentialMovingAverage", params)
        if not pairs:
            raise fail(DomainError, "ExponentialMovingAverage", "got no parameters")
        self.decay = decay
        self.names, self.params = [n for n, _ in pairs], [p for _, p in pairs]
        self.averages = [gg.asarray(p.detach(), dtype=wide(p), copy=True) for p in self.params]
        self.count = gg.zeros((len(pairs),), dtype=gg.float64, device=self.params[0].device)
        self._swapped = False

    def update(self) -> None:
        """Take the present parameters into the average. Raises GraphError while the averages are swapped in."""
        if self._swapped:
            raise fail(
                GraphError, "ExponentialMovingAverage", "the parameters hold the averages now; update outside swap()"
            )
        updates.average_into(self.averages, self.count, self.params, decay=self.decay)

    @contextlib.contextmanager
    def swap(self) -> Iterator[None]:
        """Inside the block the parameters hold the averages (for evaluation); afterwards their own values again."""
        own = [gg.asarray(p.detach(), copy=True) for p in self.params]
        self.copy_to_params()
        self._swapped = True
        try:
            yield
        finally:
            self._swapped = False
            for p, value in zip(self.params, own):
                overwrite(p, value)

    def copy_to_params(self) -> None:
        """Overwrite the parameters with the averages."""
        for p, a in zip(self.params, self.averages):
            overwrite(p, a)

    def state_dict(self) -> dict[str, Any]:
        """Averages and update counts as NumPy copies."""
        return {
            "decay": self.decay,
            "count": self.count.numpy(copy=True),
            "averages": [a.numpy(copy=True) for a in self.averages],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave. Raises ShapeError if it does not fit the parameters."""
        shapes = [tuple(a.shape) for a in saved["averages"]]
        if shapes != [p.shape for p in self.params]:
            raise fail(
                ShapeError, "ExponentialMovingAverage",
                f"saved averages have shapes {shapes}, expected {[p.shape for p in self.params]}",
            )  # fmt: skip
        self.decay = saved["decay"]
        overwrite(self.count, saved["count"])
        for a, value in zip(self.averages, saved["averages"]):
            overwrite(a, value)
