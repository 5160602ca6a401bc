"""Loss scaling: gradients of half-precision values that would vanish are computed large, and divided on the way."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gpugrad as gg
from gpugrad.errors import DeviceError, DomainError, GraphError, fail
from gpugrad.ops import optim as updates
from gpugrad.optim.helpers import gradients_of
from gpugrad.optim.optimizer import Optimizer, overwrite


@dataclass
class Progress:
    """How far an optimiser is since the last `update()`, and the int32 scalar that tells of an overflow."""

    overflow: gg.Tensor
    unscaled: bool = False
    stepped: bool = False


class GradScaler:
    """Multiplies losses by a scale, gradients by its inverse, and leaves out steps whose gradients are not finite.

        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)          # only to see the true gradients, as for clip_grad_norm
        scaler.step(optimizer)
        scaler.update()

    The scale is multiplied by backoff_factor after a step that was left out, and by growth_factor after growth_interval
    good ones in a row. All of this is decided on the device: nothing waits, and the steps can be captured.
    enabled=False makes every method pass through. Raises DomainError for factors out of range.
    """

    def __init__(
        self, init_scale: float = 2.0**16, growth_factor: float = 2.0, backoff_factor: float = 0.5,
        growth_interval: int = 2000, enabled: bool = True,
    ) -> None:  # fmt: skip
        if not (init_scale > 0 and growth_factor > 1 and 0 < backoff_factor < 1 and growth_interval >= 1):
            raise fail(
                DomainError, "GradScaler",
                f"init_scale {init_scale}, growth_factor {growth_factor}, backoff_factor {backoff_factor}, "
                f"growth_interval {growth_interval}: expected above 0, above 1, between 0 and 1, at least 1",
            )  # fmt: skip
        self.growth_factor, self.backoff_factor = growth_factor, backoff_factor
        self.growth_interval, self.enabled = growth_interval, enabled
        self._start = (init_scale, 0)
        self._scale: gg.Tensor | None = None  # made on the device of the first tensor
        self._good: gg.Tensor | None = None  # steps since the scale changed
        self._progress: weakref.WeakKeyDictionary[Optimizer, Progress] = weakref.WeakKeyDictionary()

    def _on(self, device: str) -> gg.Tensor:
        """The scale, which lives on `device`."""
        if self._scale is None:
            scale, good = self._start
            self._scale = gg.full((), scale, dtype=gg.float32, device=device)
            self._good = gg.full((), good, dtype=gg.int32, device=device)
        if self._scale.device != device:
            raise fail(DeviceError, "GradScaler", f"it scales on {self._scale.device}, got a tensor on {device}")
        return self._scale

    def _of(self, optimizer: Optimizer) -> Progress:
        """The progress of an optimiser."""
        if optimizer not in self._progress:
            flag = gg.zeros((), dtype=gg.int32, device=self._on(optimizer.param_groups[0]["params"][0].device).device)
            self._progress[optimizer] = Progress(flag)
        return self._progress[optimizer]

    def scale(self, outputs: Any) -> Any:
        """A tensor, or each of a list or tuple of tensors, times the scale; differentiable."""
        if not self.enabled:
            return outputs
        if isinstance(outputs, (list, tuple)):
            return type(outputs)(self.scale(o) for o in outputs)
        return outputs * self._on(outputs.device)

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the optimiser's gradients by the scale, in place; `step` does it unless it was done.

        Raises GraphError a second time before `update()`, after `step()`, and if there are no gradients.
        """
        if not self.enabled:
            return
        now = self._of(optimizer)
        if now.unscaled or now.stepped:
            done = "step() was" if now.stepped else "unscale_() was already"
            raise fail(GraphError, "GradScaler.unscale_", f"{done} called for this optimizer since the last update()")
        grads = gradients_of("GradScaler.unscale_", [p for g in optimizer.param_groups for p in g["params"]])
        if not grads:
            raise fail(GraphError, "GradScaler.unscale_", "no parameter has a gradient; call backward() first")
        updates.unscale_into(grads, now.overflow, self._on(grads[0].device))
        now.unscaled = True

    def step(self, optimizer: Optimizer) -> None:
        """`optimizer.step()`, with true gradients; the device leaves it out if one of them is not finite.

        Raises GraphError if called twice before `update()`.
        """
        if not self.enabled:
            optimizer.step()
            return
        now = self._of(optimizer)
        if now.stepped:
            raise fail(GraphError, "GradScaler.step", "already called for this optimizer since the last update()")
        if not now.unscaled:
            self.unscale_(optimizer)
        optimizer.step(skip=now.overflow)
        now.stepped = True

    def update(self, new_scale: float | gg.Tensor | None = None) -> None:
        """Choose the scale of the next iteration: `new_scale`, or by whether a gradient was not finite.

        Raises GraphError if no gradients were unscaled since the last call.
        """
        if not self.enabled:
            return
        ready = [now for now in self._progress.values() if now.unscaled]
        if self._scale is None or not (ready or new_scale is not None):
            raise fail(GraphError, "GradScaler.update", "no gradients were unscaled; call step(optimizer) first")
        if ready:
            updates.next_scale(
                self._scale, self._good, [now.overflow for now in ready],
                growth=self.growth_factor, backoff=self.backoff_factor, interval=self.growth_interval,
            )  # fmt: skip
        if new_scale is not None:
            overwrite(self._scale, new_scale if isinstance(new_scale, gg.Tensor) else float(new_scale))
        for now in ready:
            now.unscaled = now.stepped = False

    def get_scale(self) -> float:
        """The present scale, for which this waits; 1.0 if not enabled."""
        if not self.enabled:
            return 1.0
        return float(self._start[0] if self._scale is None else self._scale.numpy())

    def state_dict(self) -> dict[str, Any]:
        """Scale, factors and the count of good steps, under PyTorch's names; empty if not enabled."""
        if not self.enabled:
            return {}
        return {
            "scale": self.get_scale(), "growth_factor": self.growth_factor, "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
            "_growth_tracker": int(self._start[1] if self._good is None else self._good.numpy()),
        }  # fmt: skip

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave. Raises DomainError for the empty state of a scaler that was not enabled."""
        if not self.enabled:
            return
        if not saved:
            raise fail(DomainError, "GradScaler", "the saved state is empty: it is of a scaler that was not enabled")
        self.growth_factor, self.backoff_factor = saved["growth_factor"], saved["backoff_factor"]
        self.growth_interval = saved["growth_interval"]
        self._start = (saved["scale"], saved["_growth_tracker"])
        if self._scale is not None and self._good is not None:
            for target, value in zip((self._scale, self._good), self._start):
                with gg.no_grad():
                    target[...] = value
