"""Ops of your own at Tensor level: `Function` with forward, backward and ctx, and `custom_op`, its short form.

They need no table entry. The rule is checked against numeric derivatives at the first recorded call.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from gpugrad import backends
from gpugrad.check import GradientError
from gpugrad.dtypes import is_float
from gpugrad.errors import DTypeError, GpugradError, GraphError, ShapeError, describe, fail
from gpugrad.forward import Forward
from gpugrad.layered import LAYERS, Layered, levels, top
from gpugrad.op import PICK, RAW, RECORDING, raw, record
from gpugrad.operands import alive
from gpugrad.state import enable_grad, mode, no_grad
from gpugrad.tape import fit
from gpugrad.tensor import Tensor
from gpugrad.transforms import gradients


class Context:
    """What `forward` hands to `backward`: saved tensors, and any attribute you set.

    needs_input_grad: one flag per positional argument. saved_tensors: in `backward`, what `save_for_backward` got.
    An attribute that is a tensor would be a constant to second derivatives, so recording `backward` refuses it.
    """

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self.saved_tensors: tuple[Tensor | None, ...] = ()
        self._constants: tuple[Tensor, ...] = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors for `backward`: inputs and outputs at any order, other floats at first order only."""
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *outputs: Tensor) -> None:
        """Say that these outputs are constants. Integer outputs, such as indices, are so by themselves."""
        self._constants = outputs

    def _pack(self, inputs: Sequence[Any], outputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
        """Exchange the saved tensors for places in (*outputs, *inputs, *others); returns what the node saves."""
        n, known = len(outputs), (*outputs, *inputs)
        constant = [not is_float(o.dtype) or any(o is c for c in self._constants) for o in outputs]
        place = {id(t): k for k, t in enumerate(known) if k >= n or not constant[k]}
        others = [t for t in self.saved_tensors if t is not None and id(t) not in place]
        place |= {id(t): len(known) + j for j, t in enumerate(others)}
        self._places = [None if t is None else place[id(t)] for t in self.saved_tensors]
        self._others, self.saved_tensors, self._constants = [t.data for t in others], (), ()
        self._outputs = [None if c else (o.shape, o.dtype) for o, c in zip(outputs, constant)]
        whole = any(k is not None and k < n for k in self._places)  # the outputs are tied together: keep all or none
        heads = tuple(o.data for o in outputs) if whole else None
        body = [x.data if n + i in self._places else None for i, x in enumerate(inputs)]
        return (heads[0] if heads and n == 1 else heads, *body, *self._others)

    def _unpack(self, name: str, out: Any, rest: tuple[Any, ...], recording: bool, layered: bool = False) -> Context:
        """A copy for one run of the rule, with the saved tensors in it (here they would make a cycle with the node)."""
        n = len(self._outputs)
        heads = (out,) if n == 1 else (None,) * n if out is None else out
        values = [*heads, *rest[: len(rest) - len(self._others)], *self._others]
        loose = [*self._others, *(v.data for v in vars(self).values() if isinstance(v, Tensor))]
        hidden = [v for v in loose if is_float(v.dtype) and not (layered and type(v) in LAYERS)]
        if hidden and (recording or layered):
            raise fail(
                GraphError, name,
                f"ctx kept {describe(hidden[0])}, neither input nor output, which second derivatives would take for a "
                "constant; recompute it in backward from saved inputs, or return it as an output",
            )  # fmt: skip
        run = copy.copy(self)
        run.saved_tensors = tuple([None if k is None else tensor(values[k]) for k in self._places])
        return run

    def _cotangents(self, given: list[Any]) -> list[Any]:
        """One per output: zeros where nothing arrived, None for a constant output."""
        like = next(g for g in given if g is not None).data
        backend = backends.of(like)
        with backend.scope(backend.device_of(like)):
            return [
                None if spec is None else Tensor(backend.xp.zeros(*spec)) if g is None else g
                for g, spec in zip(given, self._outputs)
            ]


class Rule:
    """How the walk sees the calls of one Function class with `nout` outputs."""

    __slots__ = ("cls", "name", "nout")
    aux, vjps, kind, via, reuse, singular, fragile = False, (), "general", None, None, 0, False

    def __init__(self, cls: type[Function], nout: int) -> None:
        self.cls, self.name, self.nout = cls, cls.__name__, nout

    def joint(self, F: Any, t: Any, out: Any, *rest: Any, ctx: Context) -> tuple[Any, ...]:
        """`backward` for all inputs at once: on raw arrays, or on Tensors when it is itself recorded."""
        recording = F is RECORDING
        run = ctx._unpack(self.name, out, rest, recording, F is RAW[Layered])
        grads = pull(self.cls, run, [None if g is None else tensor(g) for g in (t if self.nout > 1 else [t])])
        if recording:
            return grads
        # Copies: a user's rule may return one tensor twice, or one that the user keeps, and leaves grow in place.
        return tuple([None if g is None else g.data.copy() for g in grads])

    def jvp(self, F: Any, ts: tuple[Any, ...], out: Any, *rest: Any, ctx: Context) -> Any:
        """`jvp` of the class. Raises GraphError where it has none."""
        if self.cls.jvp is None:
            raise fail(
                GraphError, self.name, "this Function has no forward-mode rule; give it a static jvp(ctx, *tangents)"
            )
        recording = F is RECORDING
        run = ctx._unpack(self.name, out, rest, recording)
        pushed = self.cls.jvp(run, *[None if t is None else tensor(t) for t in ts])
        return pushed if recording else tuple(p.data for p in pushed) if self.nout > 1 else pushed.data


def tensor(x: Any) -> Tensor:
    """A saved value as a Tensor: raw arrays (and NumPy scalars, their 0-d results) are wrapped as constants."""
    return x if type(x) is Tensor else Tensor(np.asarray(x) if isinstance(x, (float, np.generic)) else x)


class Function:
    """Base class of an op with a gradient of its own, called as `Cls.apply(*args, **kwargs)`.

    forward(ctx, *args, **kwargs): the values, from tensors without history; one Tensor or a tuple of them. Tensors to
    differentiate go by position. backward(ctx, *cotangents): one gradient per positional argument (None for none),
    written with Tensor operations, so that it can be differentiated in turn. jvp(ctx, *tangents): optional, one tangent
    per output. check: at the first recorded call, for each set of differentiated arguments, compare backward (and jvp)
    with numeric derivatives in float64; a wrong rule raises GradientError. Switch it off for forwards that are random,
    float32 only or intentionally not the function that backward differentiates.
    """

    check: ClassVar[bool] = True
    forward: ClassVar[Callable[..., Any]]
    backward: ClassVar[Callable[..., Any]]
    jvp: ClassVar[Callable[..., Any] | None] = None
    _rules: ClassVar[dict[int, Rule]]
    _checked: ClassVar[set[tuple[bool, ...]]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._rules, cls._checked = {}, set()

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """Run forward, recording the call when an argument requires gradients."""
        parents = tuple([alive(a.node) if type(a) is Tensor else None for a in args])
        live = mode.enabled and any(p is not None for p in parents)
        inner: list[Any] = [Tensor(a.data) if type(a) is Tensor else a for a in args]
        for name, value in kwargs.items():
            if live and isinstance(value, Tensor) and value.node is not None:
                raise fail(GraphError, cls.__name__, f"{name} requires gradients; pass it by position")
        needs = tuple([live and p is not None for p in parents])
        ctx, outs, several = push(cls, needs, inner, kwargs)
        level = top([a.data for a in inner if type(a) is Tensor])
        if isinstance(level, Forward):
            follow(cls, level, inner, kwargs, outs)
        elif any(isinstance(v, Forward) for a in inner if type(a) is Tensor for v in levels(a.data.dtype)):
            raise fail(GraphError, cls.__name__, "jvp of a vmap of a Function is not supported; take the vmap of a jvp")
        if not live:
            result = [Tensor(o.data) for o in outs]
            return tuple(result) if several else result[0]
        if cls.check and needs not in cls._checked and level is None:
            verify(cls, needs, inner, kwargs)
            cls._checked.add(needs)
        rule = cls._rules.get(len(outs)) or cls._rules.setdefault(len(outs), Rule(cls, len(outs)))
        saved = ctx._pack(inner, outs)
        smooth = [spec is not None for spec in ctx._outputs]
        if not any(smooth):
            return tuple(Tensor(o.data) for o in outs) if several else Tensor(outs[0].data)
        whole = record(rule, {"ctx": ctx}, parents, saved, outs[0].data)
        if len(outs) == 1:
            return (whole,) if several else whole
        return tuple(
            [record(PICK, {"index": i}, (whole.node,), (), o.data) if s else Tensor(o.data)
             for i, (o, s) in enumerate(zip(outs, smooth))]
        )  # fmt: skip


def follow(cls: type[Function], level: Forward, args: Sequence[Any], kwargs: Any, outs: Sequence[Tensor]) -> None:
    """Give the outputs of a call on duals the tangents of its own rule, whatever forward did to them.

    That is `jvp`, or the transpose of `backward`, which is linear in the cotangents. Raises GraphError where there is
    no jvp and backward is not made of Tensor operations.
    """
    pairs = [level.halves(a.data) if type(a) is Tensor else (None, None) for a in args]
    tangents = [None if t is None else Tensor(t) for _, t in pairs]
    xs = [Tensor(x) if type(a) is Tensor else a for a, (x, _) in zip(args, pairs)]
    values: Sequence[Any]
    ctx, values, _ = push(cls, tuple(t is not None for t in tangents), xs, kwargs)
    below = top([x.data for x in xs if type(x) is Tensor])
    if isinstance(below, Forward):
        follow(cls, below, xs, kwargs, values)
    out, *rest = ctx._pack(xs, tuple(values))
    run = ctx._unpack(cls.__name__, out, tuple(rest), False)
    smooth = [spec is not None for spec in ctx._outputs]
    if cls.jvp is not None:
        with no_grad():
            pushed = cls.jvp(run, *tangents)
        found = list(pushed) if isinstance(pushed, (tuple, list)) else [pushed]
    else:
        with enable_grad():
            knobs = [RECORDING.ones_like(v).requires_grad_() for v in values]
            grads = pull(cls, run, knobs)
            live = [(g, t) for g, t in zip(grads, tangents) if g is not None and t is not None]
            if any(g.node is None and g.numpy().any() for g, _ in live):
                hint = "give it a static jvp(ctx, *tangents), or write backward with Tensor operations"
                raise fail(GraphError, cls.__name__, f"this Function has no forward-mode rule; {hint}")
            live = [(g, t) for g, t in live if g.node is not None]
            found = list(gradients([g for g, _ in live], knobs, [t for _, t in live], unconnected="zero"))
    for o, v, t, on in zip(outs, values, found, smooth):
        o.data = level.paired(v.data, t.data if on and t is not None else None)


def push(
    cls: type[Function], needs: tuple[bool, ...], args: Sequence[Any], kwargs: Any
) -> tuple[Context, tuple[Tensor, ...], bool]:
    """Run forward without recording: its context, its outputs, and whether it returned a tuple."""
    ctx = Context(needs)
    with no_grad():
        result = cls.forward(ctx, *args, **kwargs)
    several = isinstance(result, (tuple, list))
    outs = tuple(result) if several else (result,)
    for o in outs:
        if not isinstance(o, Tensor):
            raise fail(
                DTypeError, cls.__name__, f"forward returned {describe(o)}; expected a Tensor or a tuple of them"
            )
    return ctx, outs, several


def pull(cls: type[Function], run: Context, given: list[Any]) -> tuple[Any, ...]:
    """Run backward on the cotangents and hold its result to one Tensor or None per input."""
    result = cls.backward(run, *run._cotangents(given))
    grads = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    n = len(run.needs_input_grad)
    if len(grads) != n:
        raise ShapeError(f"backward returned {len(grads)} gradients, expected {n}: one per argument of forward")
    for i, g in enumerate(grads):
        if g is not None and not isinstance(g, Tensor):
            raise DTypeError(f"backward returned {describe(g)} for input {i}, expected a Tensor or None")
    return grads


# --- the check at the first call --------------------------------------------------------------------------

STEPS = (1e-4, 1e-6)  # the small one steps over few kinks, the large one rounds off little
NUDGES: tuple[Callable[[Any], Any], ...] = (lambda r: 0 * r, lambda r: r, np.abs)


def verify(cls: type[Function], needs: tuple[bool, ...], args: Sequence[Any], kwargs: Any) -> None:
    """Raise GradientError if the rule disagrees with forward at these arguments, in float64.

    A rule passes that agrees here or, since the arguments may sit on a kink or at the edge of the domain, at
    arguments slightly moved. Without a finite derivative to compare with there is no verdict.
    """
    rng, failure = np.random.default_rng(0), None
    for k, nudge in enumerate(NUDGES):
        point = [moved(a, nudge, rng) if type(a) is Tensor and is_float(a.dtype) else a for a in args]
        try:
            found = disagreement(cls, needs, point, kwargs, rng)
        except GpugradError as error:
            if k == 0:
                raise fail(type(error), f"{cls.__name__} backward", str(error)) from error
            continue
        if found is None:
            return
        failure = failure or found
    if failure:
        raise fail(GradientError, cls.__name__, f"{failure}\n  if that is intended, set check = False in the class")


def moved(x: Tensor, nudge: Callable[[Any], Any], rng: np.random.Generator) -> Tensor:
    """x in float64, each element moved by up to a thousandth of its size."""
    a = x.numpy().astype(np.float64)
    r = rng.choice([-1.0, 1.0], a.shape) * rng.uniform(0.5, 1.0, a.shape)
    return tensor(a + 1e-3 * np.maximum(1.0, np.abs(a)) * nudge(r)).to(device=x.device)  # type: ignore[no-any-return]


def disagreement(
    cls: type[Function], needs: tuple[bool, ...], args: Sequence[Any], kwargs: Any, rng: np.random.Generator
) -> str | None:
    """Compare derivatives along one random direction per input: None if they agree, '' if one is not finite."""
    ctx, outs, _ = push(cls, needs, args, kwargs)
    out, *rest = ctx._pack(args, outs)
    weights = [None if spec is None else rng.normal(size=o.shape) for o, spec in zip(outs, ctx._outputs)]
    if all(w is None for w in weights):
        return None
    size = weigh(weights, outs, np.abs)

    with no_grad():
        given = [None if w is None else tensor(w).to(device=o.device) for w, o in zip(weights, outs)]
        grads = pull(cls, ctx._unpack(cls.__name__, out, tuple(rest), False), given)
        for i in (i for i, need in enumerate(needs) if need):
            x, g = args[i], grads[i]
            base = x.numpy()
            v = rng.normal(size=x.shape) * np.maximum(1.0, np.abs(base))
            along = tensor(v).to(device=x.device)
            parts = v * (0.0 if g is None else tensor(fit(raw(g.data), g.data, x, i)).numpy())
            rules = {"backward": float(parts.sum())}
            if cls.jvp is not None:
                run = ctx._unpack(cls.__name__, out, tuple(rest), False)
                pushed = cls.jvp(run, *[along if k == i else None for k in range(len(args))])
                rules["jvp"] = weigh(weights, pushed if isinstance(pushed, (tuple, list)) else (pushed,))
            slopes = []
            for h in STEPS:
                ends = [push(cls, needs, [*args[:i], tensor(x.data + s * h * along.data), *args[i + 1 :]], kwargs)[1]
                        for s in (1, -1)]  # fmt: skip
                slopes.append((weigh(weights, ends[0]) - weigh(weights, ends[1])) / (2 * h))
            for name, got in rules.items():
                if not np.isfinite([got, *slopes]).all():
                    return ""
                room = 1e-5 * float(np.abs(parts).sum())
                if all(abs(got - s) > room + 1e-5 * abs(s) + 1e-14 * size / h for s, h in zip(slopes, STEPS)):
                    return (
                        f"{name} is wrong for input {i}: along a random direction it gives {got:.6g}, "
                        f"expected {slopes[0]:.6g}"
                    )
    return None


def weigh(weights: Sequence[Any], outs: Sequence[Any], part: Callable[[Any], Any] = lambda a: a) -> float:
    """Sum over all outputs of weights times values; what has no weight or is None does not count."""
    return float(sum(np.sum(part(w * o.numpy())) for w, o in zip(weights, outs) if w is not None and o is not None))


# --- the short form ---------------------------------------------------------------------------------------


def custom_op(
    forward: Callable[..., Any],
    vjp: Callable[..., Any],
    jvp: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    check: bool = True,
) -> Callable[..., Any]:
    """A function with a gradient of its own, from two or three plain functions of tensors.

    forward(*args, **kwargs): one Tensor. vjp(t, out, *args, **kwargs): a gradient, or a tuple of one per argument
    (None for none). jvp(tangents, out, *args, **kwargs): the tangent of out. All arguments and the output are kept for
    the rules; write a `Function` to choose. name: shown in errors. check: as in `Function`.
    """

    def run(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        ctx.plain = tuple(None if isinstance(a, Tensor) else a for a in args)
        ctx.kwargs = kwargs
        ctx.save_for_backward(out, *[a if isinstance(a, Tensor) else None for a in args])
        return out

    def call(rule: Callable[..., Any], ctx: Any, t: Any) -> Any:
        out, *tensors = ctx.saved_tensors
        return rule(t, out, *[p if x is None else x for x, p in zip(tensors, ctx.plain)], **ctx.kwargs)

    body = {
        "__doc__": forward.__doc__,
        "check": check,
        "forward": staticmethod(run),
        "backward": staticmethod(lambda ctx, t: call(vjp, ctx, t)),
        "jvp": None if jvp is None else staticmethod(lambda ctx, *ts, rule=jvp: call(rule, ctx, ts)),
    }
    made = type(name or forward.__name__, (Function,), body)

    @functools.wraps(forward)
    def op(*args: Any, **kwargs: Any) -> Any:
        return made.apply(*args, **kwargs)  # type: ignore[attr-defined]

    op.__name__ = op.__qualname__ = made.__name__
    return op
