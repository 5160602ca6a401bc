"""Learning-rate schedules: shapes (pure functions of the step) and the object that applies one to an optimiser.

A shape maps the step number, from 0, to a factor of the optimiser's own learning rate, so that groups keep their
ratios: `schedule = Schedule(optimizer, Cosine(1000))`, then `schedule.step()` after every update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gpugrad.errors import DomainError, fail
from gpugrad.optim.optimizer import Optimizer

Shape = Callable[[int], float]


def require(shape: Any, **ranges: bool) -> None:
    """Raise DomainError naming the first parameter whose condition is False."""
    for name, holds in ranges.items():
        if not holds:
            raise fail(DomainError, type(shape).__name__, f"{name} is {getattr(shape, name)!r}, which is out of range")


@dataclass(frozen=True)
class Constant:
    """The same factor at every step."""

    factor: float = 1.0

    def __call__(self, step: int) -> float:
        return self.factor


@dataclass(frozen=True)
class Step:
    """Multiplied by gamma after every `every` steps: gamma^(step // every)."""

    every: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        require(self, every=self.every > 0)

    def __call__(self, step: int) -> float:
        return float(self.gamma ** (step // self.every))


@dataclass(frozen=True)
class MultiStep:
    """Multiplied by gamma at each milestone (the step numbers themselves)."""

    milestones: tuple[int, ...]
    gamma: float = 0.1

    def __call__(self, step: int) -> float:
        return self.gamma ** sum(step >= m for m in self.milestones)


@dataclass(frozen=True)
class Exponential:
    """gamma^step."""

    gamma: float

    def __call__(self, step: int) -> float:
        return self.gamma**step


@dataclass(frozen=True)
class Polynomial:
    """From 1 to `final` in `steps` steps along (1 - step / steps)^power, then `final`; power 1 is linear decay."""

    steps: int
    power: float = 1.0
    final: float = 0.0

    def __post_init__(self) -> None:
        require(self, steps=self.steps > 0, power=self.power > 0)

    def __call__(self, step: int) -> float:
        left: float = (1 - min(step / self.steps, 1.0)) ** self.power
        return self.final + (1 - self.final) * left


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 to `final` in `steps` steps, then `final`. Loshchilov and Hutter, 2017.

    restarts: start again at 1 instead, each cycle `growth` times as long as the one before.
    """

    steps: int
    final: float = 0.0
    restarts: bool = False
    growth: int = 1

    def __post_init__(self) -> None:
        require(self, steps=self.steps > 0, growth=self.growth >= 1)

    def __call__(self, step: int) -> float:
        length, done = self.steps, min(step, self.steps)
        if self.restarts:
            done = step
            while done >= length and self.growth > 1:
                done, length = done - length, length * self.growth
            done %= length
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * done / length)) / 2


@dataclass(frozen=True)
class Warmup:
    """Linear from `start` to 1 in `steps` steps, then 1; put it before another shape with `Chain`."""

    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        require(self, steps=self.steps > 0)

    def __call__(self, step: int) -> float:
        return self.start + (1 - self.start) * min(step / self.steps, 1.0)


@dataclass(frozen=True)
class OneCycle:
    """Up to the optimiser's rate in the first `up` of `steps`, down to far below the start in the rest; by cosines.

    The factor starts at 1 / start_div, is 1 at step up * steps - 1 and 1 / (start_div * final_div) at step steps - 1
    and after, as in PyTorch (whose max_lr is the optimiser's rate here). Smith and Topin, 2018.
    """

    steps: int
    up: float = 0.3
    start_div: float = 25.0
    final_div: float = 1e4

    def __post_init__(self) -> None:
        require(self, up=0 < self.up < 1, steps=self.up * self.steps > 1)

    def __call__(self, step: int) -> float:
        peak, last = self.up * self.steps - 1, self.steps - 1
        low, end = 1 / self.start_div, 1 / (self.start_div * self.final_div)
        a, b, t = (low, 1.0, step / peak) if step <= peak else (1.0, end, min((step - peak) / (last - peak), 1.0))
        return b + (a - b) * (1 + math.cos(math.pi * t)) / 2


@dataclass(frozen=True)
class InverseSqrt:
    """min(n / warmup, sqrt(warmup / n)) with n = step + 1: linear to 1, then slow decay. Vaswani et al., 2017."""

    warmup: int = 1

    def __post_init__(self) -> None:
        require(self, warmup=self.warmup > 0)

    def __call__(self, step: int) -> float:
        return min((step + 1) / self.warmup, math.sqrt(self.warmup / (step + 1)))


@dataclass(frozen=True)
class TimeDecay:
    """1 / (1 + rate step)^power; for 1/2 < power <= 1 it satisfies the Robbins-Monro conditions."""

    rate: float
    power: float = 1.0

    def __post_init__(self) -> None:
        require(self, rate=self.rate > 0, power=self.power >= 0)

    def __call__(self, step: int) -> float:
        return math.pow(1 + self.rate * step, -self.power)


class Chain:
    """Shapes one after another: `Chain((100, Warmup(100)), Cosine(900))`; each counts its steps from 0.

    Every part but the last is (length in steps, shape).
    """

    def __init__(self, *parts: Any) -> None:
        if not parts or not callable(parts[-1]) or any(callable(p) or p[0] <= 0 for p in parts[:-1]):
            raise fail(DomainError, "Chain", "expected (length, shape) pairs with lengths above 0, then one shape")
        self.parts = parts

    def __call__(self, step: int) -> float:
        for length, shape in self.parts[:-1]:
            if step < length:
                return float(shape(step))
            step -= length
        return float(self.parts[-1](step))

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.parts))})"


class Schedule:
    """Applies a shape to an optimiser: every group's rate becomes its own base rate times shape(step).

    The factor of step 0 holds at once; `step()` moves on by one. `schedule(n)` is the first group's rate at step n.
    Only writes device scalars, so a captured training step picks the new rate up.
    """

    def __init__(self, optimizer: Optimizer, shape: Shape) -> None:
        self.optimizer, self.shape, self.count = optimizer, shape, 0
        self.base = [float(g["lr"]) for g in optimizer.param_groups]
        self._apply()

    def __call__(self, step: int) -> float:
        return self.base[0] * self.shape(step)

    def step(self) -> None:
        """Move on by one step."""
        self.count += 1
        self._apply()

    def _apply(self) -> None:
        factor = self.shape(self.count)
        for group, base in zip(self.optimizer.param_groups, self.base):
            group["lr"] = base * factor

    def state_dict(self) -> dict[str, Any]:
        """Step number and base rates."""
        return {"count": self.count, "base": list(self.base)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, and the rate that belongs to it."""
        self.count, self.base = saved["count"], list(saved["base"])
        self._apply()

    def __repr__(self) -> str:
        return f"Schedule({self.shape!r}, step={self.count}, base={self.base})"


class ReduceOnPlateau:
    """Multiplies the rate by `factor` when a metric has not improved for more than `patience` calls of `step(metric)`.

    mode: 'min' or 'max', what an improvement is; it must exceed the best value by the relative `threshold`. After a
    reduction `cooldown` calls are not counted. The rate stays above min_lr. Raises DomainError for factor
    outside (0, 1) or another mode.
    """

    def __init__(
        self, optimizer: Optimizer, mode: str = "min", factor: float = 0.1, patience: int = 10, threshold: float = 1e-4,
        cooldown: int = 0, min_lr: float = 0.0,
    ) -> None:  # fmt: skip
        if mode not in ("min", "max") or not 0 < factor < 1:
            raise fail(
                DomainError, "ReduceOnPlateau", f"mode {mode!r}, factor {factor}: expected 'min' or 'max', and (0, 1)"
            )
        self.optimizer, self.mode, self.factor, self.patience = optimizer, mode, factor, patience
        self.threshold, self.cooldown, self.min_lr = threshold, cooldown, min_lr
        self.best, self.waited, self.resting = math.inf, 0, 0

    def step(self, metric: Any) -> None:
        """Take the latest metric: a number, or a tensor (for which this waits)."""
        value = float(metric) if self.mode == "min" else -float(metric)
        if self.best == math.inf or value < self.best - self.threshold * abs(self.best):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.resting > 0:
            self.resting, self.waited = self.resting - 1, 0
        if self.waited > self.patience:
            for group in self.optimizer.param_groups:
                group["lr"] = max(group["lr"] * self.factor, self.min_lr)
            self.resting, self.waited = self.cooldown, 0

    def state_dict(self) -> dict[str, Any]:
        """Best value and counters; the rate itself is in the optimiser's state."""
        return {"best": self.best, "waited": self.waited, "resting": self.resting}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.best, self.waited, self.resting = saved["best"], saved["waited"], saved["resting"]


def robbins_monro(shape: Shape) -> tuple[bool, bool]:
    """Whether the factors of a finally decreasing shape have a divergent sum, and a convergent sum of squares.

    Stochastic gradient descent converges for rates with both. By Cauchy's condensation the sum of f(n) behaves like
    the sum of 2^k f(2^k); with f falling as n^-p far out, that is p <= 1 and p > 1/2. p is read off between steps
    2^40 and 2^41, so log factors are not resolved.
    """
    near, far = shape(2**40), shape(2**41)
    if near <= 0 or far <= 0:
        return False, True
    p = math.log2(near / far)
    return p <= 1 + 1e-6, p > 0.5 + 1e-6
