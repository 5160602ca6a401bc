"""What all optimisers share: parameter groups, device-side counters and learning rate, state in and out."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import gpugrad as gg
from gpugrad.errors import DeviceError, DomainError, DTypeError, GraphError, ShapeError, describe, fail

Params: TypeAlias = "Iterable[gg.Tensor] | Iterable[tuple[str, gg.Tensor]] | Iterable[Mapping[str, Any]]"
NoDecay: TypeAlias = "bool | Callable[[str, gg.Tensor], bool]"


def named(op: str, params: Any, start: int = 0) -> list[tuple[str, gg.Tensor]]:
    """(name, tensor) pairs of an iterable of tensors or pairs; unnamed ones are called by their position.

    Raises DomainError for anything else, and GraphError for a computed tensor.
    """
    if isinstance(params, (gg.Tensor, str)):
        raise fail(DomainError, op, f"params must be an iterable of tensors, not one {type(params).__name__}")
    pairs = []
    for i, entry in enumerate(params, start):
        name, p = entry if isinstance(entry, tuple) and len(entry) == 2 else (f"params[{i}]", entry)
        if not isinstance(p, gg.Tensor):
            raise fail(DomainError, op, f"{name} is a {type(p).__name__}, expected a tensor")
        if p.dtype.kind in "biu":
            raise fail(DTypeError, op, f"{name} is {describe(p)}; only floating-point tensors are optimised")
        if not p.is_leaf:
            raise fail(
                GraphError, op, f"{name}, {describe(p)}, is computed from other tensors; only leaves are optimised"
            )
        pairs.append((name, p))
    return pairs


def wide(p: gg.Tensor) -> Any:
    """The dtype of a parameter's state: its own, float32 for half precision."""
    return p.dtype if p.dtype.itemsize > 2 else gg.float32


def overwrite(target: gg.Tensor, value: Any) -> None:
    """Copy values into a tensor's memory; the address stays."""
    with gg.no_grad():
        target[...] = value if isinstance(value, (float, gg.Tensor)) else gg.asarray(value, device=target.device)


class Group(UserDict[str, Any]):
    """Options of one parameter group (`group["lr"]`, `group["params"]`, ...) with its state on the device.

    Assigning `group["lr"]` also writes the device scalar that the update reads. The other options are constants
    of the update, read by the host at every step. `counters["step"]` counts the updates of each parameter. `skip`
    is what the step that is being made was given.
    """

    skip: gg.Tensor | None = None

    def __init__(
        self, names: list[str], params: list[gg.Tensor], options: dict[str, Any], counters: dict[str, float]
    ) -> None:
        device = params[0].device
        self.names, self.state = names, dict[str, list[gg.Tensor]]()
        self.rate = gg.full((), float(options["lr"]), dtype=gg.float64, device=device)
        self.counters = {
            name: gg.full((len(params),), value, dtype=gg.float64, device=device) for name, value in counters.items()
        }
        super().__init__({"params": params, **options})

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "lr":
            value = float(value)
            overwrite(self.rate, value)
        super().__setitem__(key, value)

    def slot(self, name: str, used: Any = True) -> list[gg.Tensor]:
        """One state array a parameter, or no arrays where the options do not use them."""
        return self.state[name] if used else []


class Optimizer:
    """Base of the optimisers: `step()` updates every parameter that has a gradient, in place.

    params: tensors, (name, tensor) pairs (as `model.named_parameters()`), or dicts with "params" and options of that
    group. no_decay: which parameters are excluded from weight decay: True for those of at most one axis (biases, norm
    scales), or a predicate of (name, tensor). Nothing here waits for the device; parameters, state and counters keep
    their addresses. Raises DomainError for an option out of range, no parameters or a duplicate, GraphError for a
    computed tensor, DeviceError for a group on several devices.
    """

    counters: dict[str, float] = {"step": 0.0}

    def __init__(self, params: Params, defaults: dict[str, Any], no_decay: NoDecay = False) -> None:
        self.defaults, self.no_decay = defaults, no_decay
        self.param_groups: list[Group] = []
        self._without: list[str] | None = None
        if isinstance(params, (gg.Tensor, str)):
            named(self.name, params)
        entries: list[Any] = list(params)
        if not entries:
            raise fail(DomainError, self.name, "got no parameters")
        for group in entries if isinstance(entries[0], Mapping) else [{"params": entries}]:
            self.add_param_group(group)

    @property
    def name(self) -> str:
        """The class name, as messages print it."""
        return type(self).__name__

    # --- what a subclass says ---------------------------------------------------------------------------

    def slots(self, group: Group) -> dict[str, float]:
        """Names and initial values of the state arrays that the group's options need."""
        raise NotImplementedError

    def update(self, group: Group, grads: list[gg.Tensor | None]) -> None:
        """One update of the group's parameters, unless `group.skip` is a scalar that is not 0."""
        raise NotImplementedError

    # --- groups -----------------------------------------------------------------------------------------

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters with options of their own; options left out take the optimiser's defaults."""
        options = {**self.defaults, **{k: v for k, v in group.items() if k != "params"}}
        unknown = sorted(set(options) - set(self.defaults))
        if unknown:
            raise fail(DomainError, self.name, f"unknown option {unknown[0]!r}; known: {', '.join(self.defaults)}")
        for key, value in options.items():
            check_option(self.name, key, value)
        count = sum(len(g["params"]) for g in self.param_groups)
        pairs = named(self.name, group["params"], count)
        if not pairs:
            raise fail(DomainError, self.name, "got a group without parameters")
        known = {id(p.data): n for g in self.param_groups for n, p in zip(g.names, g["params"])}
        for name, p in pairs:
            if id(p.data) in known:
                raise fail(DomainError, self.name, f"{name} and {known[id(p.data)]} are the same parameter")
            known[id(p.data)] = name
        places = sorted({p.device for _, p in pairs})
        if len(places) > 1:
            raise fail(
                DeviceError, self.name, f"one group has parameters on {', '.join(places)}; make a group for each"
            )
        rule = (lambda _, p: p.ndim <= 1) if self.no_decay is True else self.no_decay
        free = [pair for pair in pairs if rule and options.get("weight_decay") and rule(*pair)]
        exempt = {name for name, _ in free}
        for part, changed in (([q for q in pairs if q[0] not in exempt], {}), (free, {"weight_decay": 0.0})):
            if part:
                new = Group([n for n, _ in part], [p for _, p in part], {**options, **changed}, self.counters)
                self._prepare(new)
                self.param_groups.append(new)

    def _prepare(self, group: Group) -> None:
        """Make the state arrays that are still missing."""
        for name, value in self.slots(group).items():
            if name not in group.state:
                group.state[name] = [gg.full(p.shape, value, dtype=wide(p), device=p.device) for p in group["params"]]

    @property
    def lr(self) -> float:
        """The learning rate of the first group; assignment sets all groups."""
        return float(self.param_groups[0]["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.param_groups:
            group["lr"] = value

    # --- stepping ---------------------------------------------------------------------------------------

    def step(self, *, skip: gg.Tensor | None = None) -> None:
        """Update every parameter that has a gradient. Raises ShapeError if a gradient does not fit its parameter.

        skip: an int32 scalar on the device of the parameters. Where it is not 0 when the device gets there, parameters,
        state and counters stay as they are.
        """
        if self._without is None:
            self._without = [n for g in self.param_groups for n, p in zip(g.names, g["params"]) if p.grad is None]
        for group in self.param_groups:
            grads = [p.grad for p in group["params"]]
            if all(g is None for g in grads):
                continue
            for name, p, g in zip(group.names, group["params"], grads):
                if g is not None and g.shape != p.shape:
                    raise fail(ShapeError, self.name, f"{name} is {describe(p)} but its gradient is {describe(g)}")
            self._prepare(group)
            group.skip = skip
            self.update(group, grads)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or fill them with zeros in place."""
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none:
                    p.zero_grad()
                elif p.grad is not None:
                    overwrite(p.grad, 0.0)

    def unused(self) -> dict[str, str]:
        """Parameters that did not learn, and why: name -> reason.

        Those without a gradient at the first step (before it: now), and those whose present gradient is all zeros,
        for which this waits for the device.
        """
        reasons = {}
        for group in self.param_groups:
            for name, p in zip(group.names, group["params"]):
                missing = p.grad is None if self._without is None else name in self._without
                if not p.requires_grad:
                    reasons[name] = "does not require gradients"
                elif missing:
                    reasons[name] = "no gradient: the loss does not depend on it"
                elif p.grad is not None and not p.grad.numpy().any():
                    reasons[name] = "its gradient is zero everywhere"
        return reasons

    # --- state ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a bit-equal continuation needs, as NumPy copies: options, counters and state of each group."""
        return {
            "kind": self.name,
            "groups": [
                {
                    "names": list(g.names),
                    "options": {k: v for k, v in g.items() if k != "params"},
                    "counters": {k: t.numpy(copy=True) for k, t in g.counters.items()},
                    "state": {k: [t.numpy(copy=True) for t in ts] for k, ts in g.state.items()},
                }
                for g in self.param_groups
            ],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, into the present arrays. Raises DomainError if it is another optimiser's."""
        if "groups" not in saved:
            raise fail(DomainError, self.name, "the saved state has no groups; expected what state_dict() gave")
        groups = saved["groups"]
        if saved["kind"] != self.name or len(groups) != len(self.param_groups):
            raise fail(
                DomainError, self.name,
                f"the saved state is of {saved['kind']} with {len(groups)} groups, "
                f"expected {self.name} with {len(self.param_groups)}",
            )  # fmt: skip
        for group, old in zip(self.param_groups, groups):
            for key, arrays in old["state"].items():
                shapes = [tuple(a.shape) for a in arrays]
                if shapes != [p.shape for p in group["params"]]:
                    raise fail(
                        ShapeError, self.name,
                        f"saved {key} has shapes {shapes}, expected {[p.shape for p in group['params']]}",
                    )  # fmt: skip
        for group, old in zip(self.param_groups, groups):
            group.update(old["options"])
            for name, vector in old["counters"].items():
                overwrite(group.counters[name], vector)
            self._prepare(group)
            for name, arrays in old["state"].items():
                for target, value in zip(group.state[name], arrays):
                    overwrite(target, value)

    def __repr__(self) -> str:
        lines = []
        for i, g in enumerate(self.param_groups):
            options = ", ".join(f"{k}={v!r}" for k, v in g.items() if k != "params")
            size = sum(p.size for p in g["params"])
            lines.append(f"  group {i}: {options}; {len(g.names)} tensors, {size:,} elements: {', '.join(g.names)}\n")
        return f"{self.name}(\n{''.join(lines)})"


RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "betas": ("two numbers in [0, 1)", lambda v: len(v) == 2 and all(0 <= b < 1 for b in v)),
    "alpha": ("in [0, 1]", lambda v: 0 <= v <= 1),
    "rho": ("in [0, 1]", lambda v: 0 <= v <= 1),
    "dampening": ("in [0, 1]", lambda v: 0 <= v <= 1),
}


def check_option(op: str, key: str, value: Any) -> None:
    """Raise DomainError for a hyper-parameter out of its range."""
    expected, fits = RANGES.get(key, ("at least 0", lambda v: isinstance(v, bool) or 0 <= v < float("inf")))
    try:
        right = fits(value)
    except TypeError:  # no number, or not as many as expected
        right = False
    if not right:
        raise fail(DomainError, op, f"{key} is {value!r}, expected {expected}")
