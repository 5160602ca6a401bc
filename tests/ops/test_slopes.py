"""Derivatives known by hand, where no difference quotient can tell: at ties and kinks, where a slope is infinite, and
in more digits than differences have."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.op import TABLE
from gpugrad.tensor import Tensor

from . import test_table
from .samples import Sample

INF, NAN, LN2, LN10 = math.inf, math.nan, math.log(2), math.log(10)


@dataclasses.dataclass
class Slope:
    """One call, the cotangent of its output, and the gradients: None for what is not differentiated.

    second: whether the second derivative is no NaN.
    """

    args: tuple[Any, ...]
    attrs: dict[str, Any]
    t: Any
    want: tuple[Any, ...]
    second: bool = True


def at(*args: Any, t: Any, want: tuple[Any, ...], second: bool = True, **attrs: Any) -> Slope:
    """Shorthand: lists are float64 arrays."""
    return Slope(tuple(np.array(a, "float64") if isinstance(a, list) else a for a in args), attrs, t, want, second)


def check_slope(name: str, point: Slope, dtype: str = "float64") -> None:
    """The gradients are right to rounding; where all is finite, the forward rule is their adjoint."""
    rounding = 1e-13 if dtype == "float64" else 1e-6
    op, sample = TABLE[name], Sample(point.args, point.attrs)
    asked = [i for i, w in enumerate(point.want) if w is not None]
    want = [np.array(point.want[i], "float64") for i in asked]
    with np.errstate(all="ignore"):
        args = test_table.tensors(sample, dtype)
        leaves = [args[i].requires_grad_() for i in asked]
        out = op.call(*args, **point.attrs)
        t = np.array(np.broadcast_to(np.array(point.t, dtype), out.shape))
        weighted = (out * Tensor(t)).sum()  # no cotangent is given, so that the walk has no cause to expect zeros
        for g, w in zip(gg.gradients([weighted], leaves, retain_graph=True), want):
            np.testing.assert_allclose(g.data, w, rtol=rounding, atol=0)
        if op.via is None and t.all() and all(np.isfinite(a).all() for a in (*want, t)):
            v = {i: np.random.default_rng(i).normal(size=np.shape(point.args[i])) for i in asked}
            (moved,) = test_table.push(op, sample, v, dtype)
            assert abs((t * moved).sum() - sum((w * v[i]).sum() for i, w in zip(asked, want))) < 10 * rounding
            found = gg.gradients([weighted], leaves, create_graph=True)
            live = [g for g in found if g.requires_grad]
            again = gg.gradients(live, leaves, [gg.ones_like(g) for g in live], unconnected="zero") if live else []
            assert not (point.second and any(np.isnan(g.data).any() for g in again))


TIE = ([3.0, 1.0], [3.0, 2.0])
LARGE = np.tile([0.0, 1.0], 2500)  # where another formula is faster
BOUND = ([3.0, 1.0, 5.0], [3.0, 3.0, 3.0])

SLOPES: dict[str, list[Slope]] = {
    # a zero cotangent absorbs an infinite slope
    "absorb": [at([0, 2, 0], [INF, 3, 3], t=[0, 1, INF], want=([0, 3, INF], [0, 2, 0]))],
    "absorbed": [
        at([NAN, 2, NAN, 3, 1, 1], [0, 1, 1, 0, 0, 1], t=[5, 7, 11, 13, NAN, NAN], want=([0, 7, 11, 13, 0, NAN], None),
           infinite=False),
        at([NAN, 1], [INF, INF], t=[5, NAN], want=([0, 0], None), infinite=True),
    ],
    "quotient": [at([0, 2, 0, 0], [0, 4, 0, 5], t=[0, 1, 1, INF], want=([0, 0.25, INF, INF], [0, -0.125, 0, 0]))],
    "reciprocal": [at([0, 2], t=[0, 1], want=([0, -0.25],))],
    "sqrt": [at([0, 4], t=[0, 1], want=([0, 0.25],))],
    "cbrt": [at([0, 8], t=[0, 1], want=([0, 1 / 12],))],
    "log": [at([0, 2], t=[0, 1], want=([0, 0.5],))],
    "log2": [at([0, 2], t=[0, 1], want=([0, 0.5 / LN2],))],
    "log10": [at([0, 2], t=[0, 1], want=([0, 0.5 / LN10],))],
    "log1p": [at([-1, 1], t=[0, 1], want=([0, 0.5],))],
    "logit": [at([0, 0.5], t=[0, 1], want=([0, 4],))],
    "xlogy": [at([1, 2], [0, 2], t=[0, 1], want=([0, LN2], [0, 1]))],
    "asin": [at([1, 0], t=[0, 1], want=([0, 1],))],
    "acos": [at([1, 0], t=[0, 1], want=([0, -1],))],
    "erfinv": [at([1, 0], t=[0, 1], want=([0, math.sqrt(math.pi) / 2],))],
    "lgamma": [at([0, -1, 1], t=[0, 0, 1], want=([0, 0, -0.5772156649015329],))],
    "polygamma": [at([0, -1, 1], t=[0, 0, 1], n=0, want=([0, 0, math.pi**2 / 6],))],
    "erfcinv": [at([0, 1], t=[0, 1], want=([0, -math.sqrt(math.pi) / 2],))],
    "betaln": [
        at([0, 1], [1, 2], t=[0, 1], want=([0, -1.5], [0, -0.5])),
        at([1, 2], [0, 1], t=[0, 1], want=([0, -0.5], [0, -1.5])),
    ],
    "gammainc": [
        at([0.5, 2], [0, 2], t=[0, 1], want=([0, -0.29400469074623089], [0, 0.27067056647322538]), upper=False, n=0),
    ],
    "gamma_density": [at([0.5, 2], [0, 2], t=[0, 1], want=([0, 0.073179264534371389], [0, -0.13533528323661269]))],
    "betainc": [
        at([0.5, 2], [3, 3], [0, 0.25], t=[0, 1], wrt="",
           want=([0, -0.22805360232434637], [0, 0.10692153005229139], [0, 1.6875])),
    ],
    "beta_density": [
        at([0.5, 2, 2], [3, 3, 0.5], [0, 0.25, 1], t=[0, 1, 0],
           want=([0, -0.51124673438981542, 0], [0, 0.49891150273761968, 0], [0, 2.25, 0])),
    ],
    "acosh": [at([1, 1.25], t=[0, 1], want=([0, 4 / 3],))],
    "atanh": [at([1, 0.5], t=[0, 1], want=([0, 4 / 3],))],
    "atan2": [at([0, 3], [0, 4], t=[0, 1], want=([0, 0.16], [0, -0.12]))],
    "hypot": [at([0, 3], [0, 4], t=1, want=([0, 0.6], [0, 0.8]))],
    "pow": [
        at([0, 0, 2, 0, -1], [0.5, 0, 3, -1, 2], t=[0, 1, 1, 1, 0], want=([0, 0, 12, -INF, 0], [0, 0, 8 * LN2, 0, 0])),
        at([0, 4], 0.5, t=[0, 1], want=([0, 0.25], None)),
        at([0, 2], 0.0, t=1, want=([0, 0], None)),
    ],
    "softmax_xent": [
        at([[0, -INF]], [[1, 0]], [1, 1], t=1, want=(None, None, [0, 0]), ignore_index=-100, smoothing=0.0),
    ],
    "logsumexp": [at([-INF, -INF], t=1, want=([0, 0],), axis=(0,), keepdims=False)],
    "std": [at([2, 2, 2], t=1, want=([0, 0, 0],), axis=(0,), keepdims=False, correction=0.0, second=False)],
    "norm": [at([0, 0], t=1, want=([0, 0],), axis=(0,), keepdims=False, power=power) for power in (0.5, 2, 3)],
    # ties and kinks
    **{name: [at(*TIE, t=[4, 1], want=([2, 0], [2, 1]))] for name in ("maximum", "fmax")},
    **{name: [at(*TIE, t=[4, 1], want=([2, 1], [2, 0]))] for name in ("minimum", "fmin")},
    **{name: [at(*BOUND, t=2, want=([0, 0, 2], None))] for name in ("maximum_bound", "fmax_bound")},
    **{name: [at(*BOUND, t=2, want=([0, 2, 0], None))] for name in ("minimum_bound", "fmin_bound")},
    "clip": [at([-1, 0, 2], [-1, -1, -1], [2, 2, 2], t=2, want=([0, 2, 0], None, None))],
    "relu_bwd": [at(LARGE, LARGE, t=2, want=(2 * LARGE, None))],
    "heaviside": [at([0, 1], [0.5, 0.5], t=[2, 3], want=([0, 0], [2, 0]))],
    "nan_to_num": [at([NAN, INF, 2], t=3, want=([0, 0, 3],), nan=0.0, posinf=None, neginf=None)],
    "elu_bwd": [at([1, 1], [0, -0.5], t=1, want=([1, 0.75], [0.5, 0.5]), alpha=2.0, rate=0.5, scale=1.0)],
    "hardsigmoid": [at([-3, 0, 3], t=6, want=([0, 1, 0],))],
    "hardswish_bwd": [at([1, 1, 1], [-3, 0, 3], t=3, want=([0, 1.5, 3], [0, 1, 0]))],
    "softshrink": [at([-0.5, 0.5, 1], t=1, want=([0, 0, 1],), lambd=0.5)],
    "embedding": [
        at([[1, 2], [3, 4], [5, 6]], np.array([2, 1, 1]), t=[[1, 2], [3, 4], [5, 6]],
           want=([[0, 0], [8, 10], [0, 0]], None), padding=2),
    ],
    # the upper half of the cotangent of a triangular factor counts for nothing, whatever stands there
    "cholesky": [at([[4, 0], [0, 9]], t=[[1, INF], [1, 1]], want=([[0.25, 0.25], [0.25, 1 / 6]],))],
    # a hidden key is lower than any visible score
    "attention": [
        at([[[[-1e3]]]], [[[[1e3], [0]]]], [[[[2], [3]]]], np.array([[[[True, False]]]]), t=1, causal=False, scale=1.0,
           want=([[[[0]]]], [[[[0], [0]]]], [[[[1], [0]]]], None)),
    ],
    # two formulas: at the point where one of them is 0 / 0, and far out; from mpmath
    "erfcx": [at([0, 20], t=1, want=([-1.1283791670955126, -0.0014052174534598012],))],
    "i1e": [at([0, 1], t=1, want=([0.5, 0.049938776894223539],))],
    # a series near 0; from (cos(pi x) - sinc(x)) / x in 40 digits
    "sinc": [
        at([0, 0.01, 0.05, 0.09, 0.3], t=1, want=([
            0, -0.0328954344817124, -0.16408789296847298, -0.293727839347168, -0.9020281301388888,
        ],)),
    ],
}  # fmt: skip

POINTS = [pytest.param(n, p, id=f"{n}-{i}") for n, ps in SLOPES.items() if n in TABLE for i, p in enumerate(ps)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name, point", POINTS)
def test_slope(name, point, dtype):
    check_slope(name, point, dtype)
