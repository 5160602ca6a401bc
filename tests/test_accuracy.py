"""The published bounds of elementwise ops: nothing is further off, and none is far above what is measured.

The truth is the op's NumPy code in the next wider type, which tests/ops/test_proof.py holds to exact arithmetic.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from gpugrad import accuracy, compiler
from gpugrad.chain import compile_many, functor
from gpugrad.op import TABLE

from .ops import truth
from .test_chain import ATTRS, SPECIAL, chain_of, eager, taken

WIDE = {"float32": np.float64, "float64": np.longdouble}
needs_wide = pytest.mark.skipif(np.finfo(np.longdouble).eps == np.finfo(float).eps, reason="no wider type than float64")
BY_HAND = ("gelu", "gelu_bwd", "mish", "mish_bwd", "silu", "silu_bwd")  # NumPy's code for these is made for two types
NAMES = sorted(n for n in TABLE if any(functor(n, a) for a in ATTRS.get(n, [{}])))


def operands_of(name, n, dtype):
    """Every magnitude and sign, close neighbours of what matters, an even sample; special numbers."""
    if name in BY_HAND:
        few = [[a[::3] for a in truth.points(case, np.dtype(dtype).type)] for case in truth.CASES[name]]
        return [np.concatenate(lists) for lists in zip(*few)]
    kind, found = np.dtype(dtype).type, []
    for case in truth.CASES.get(name, [truth.Case(None, arity=n)]):
        lists = truth.points(case._replace(arity=n), kind)
        rng = np.random.default_rng(3)
        special = [rng.permutation(np.array(SPECIAL * 4, kind)) for _ in lists]
        special = [np.clip(s, *case.spans[i]) if case.spans else s for i, s in enumerate(special)]
        found.append([np.concatenate(pair) for pair in zip(lists, special)])
    found = [np.concatenate(lists) for lists in zip(*found)]
    if name == "softplus":  # beyond, beta x overflows
        found = [np.clip(a, -1e37, 1e37) for a in found]
    return taken(name, found)


@functools.cache
def measured(dtype):
    """The largest error of every op in its units: of NumPy's code, and compiled."""
    work, result = [], {}
    for name in NAMES:
        for attrs in ATTRS.get(name, [{}]):
            n = functor(name, attrs)[0].operands
            work.append((name, attrs, operands_of(name, n, dtype)))
    chains = [chain_of(*w) for w in work]
    runs = compile_many([(c, [o.dtype for o in w[2]]) for c, w in zip(chains, work)])
    for (name, attrs, operands), chain, run in zip(work, chains, runs):
        wide = [o if o.dtype == bool else o.astype(WIDE[dtype]) for o in operands]
        with np.errstate(all="ignore"):
            numpy = eager(chain, operands)[0]
            want = exactly(name, operands, attrs, WIDE[dtype]) if name in BY_HAND else eager(chain, wide)[0]
            outs = {"numpy": numpy}
            if run is not None:
                outs["compiled"] = np.empty_like(numpy)
                run([outs["compiled"]], operands)
            given = wide[: functor(name, attrs)[0].operands]
            for kind, out in outs.items():
                sizes = accuracy.SIZES if kind == "compiled" else accuracy.NUMPY_SIZES
                error, at = worst(
                    out,
                    want,
                    accuracy.unit(np, name, sizes, np.abs(want), given, attrs, out.dtype) if out.dtype != bool else 1,
                )
                before = result.setdefault((name, kind), (0.0, ""))
                where = f"{name}{tuple(o[at] for o in operands)} {attrs} = {out[at]!r}, not {want[at]!r}"
                result[name, kind] = max(before, (error, where))
    return result


def exactly(name, operands, attrs, wide):
    """Of arbitrary precision."""
    case = next(c for c in truth.CASES[name] if c.attrs.get("approximate") == attrs.get("approximate"))
    found = [truth.evaluate(case, numbers) for numbers in zip(*[o.tolist() for o in operands])]
    return np.array([wide(truth.mp.nstr(v, 25)) for v in found])


def worst(out, want, unit):
    """(largest error in units, where). Beyond the largest number infinity is right, and so is that number."""
    if out.dtype == bool:
        return (np.inf if (out != want).any() else 0.0), int((out != want).argmax())
    top = np.finfo(out.dtype).max.astype(want.dtype)
    got, want = (np.clip(v.astype(want.dtype), -top, top) for v in (out, want))
    error = np.abs(got - want) / unit
    error[(got == want) | (np.isnan(got) & np.isnan(want))] = 0
    error[np.isnan(error)] = np.inf
    return float(error.max(initial=0)), int(error.argmax())


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=needs_wide)])
@pytest.mark.parametrize("name", NAMES)
def test_an_op_and_its_functor_are_within_the_published_bound(name, dtype):
    for kind in ("numpy", "compiled"):
        error, where = measured(dtype).get((name, kind), (0.0, ""))
        assert error <= accuracy.BOUNDS[name], where


@needs_wide
@pytest.mark.skipif(not compiler.enabled(), reason="no C++ compiler")
@pytest.mark.parametrize("name", NAMES)
def test_no_bound_is_far_above_what_is_measured(name):
    worst = max(measured(d)[name, k][0] for d in WIDE for k in ("numpy", "compiled") if (name, k) in measured(d))
    assert accuracy.BOUNDS[name] <= 4 * worst + 1


def test_every_functor_has_a_bound_and_every_bound_a_functor():
    assert sorted([*NAMES, "dropout"]) == sorted(accuracy.BOUNDS)
    assert max(accuracy.BOUNDS.values()) <= truth.LIMIT
    assert {*accuracy.SIZES, *accuracy.NUMPY_SIZES, *accuracy.MAGNIFIED} <= {*accuracy.BOUNDS}


def test_a_worse_function_would_be_found():
    want = np.array([1.0, 2.0, -3.0, np.inf, np.nan])
    out = want.astype("f4")
    unit = accuracy.unit(np, "exp", {}, np.nan_to_num(abs(want), posinf=1.0), [want], {}, np.dtype("f4"))
    assert worst(out, want, unit)[0] == 0
    out[2] = np.nextafter(out[2], np.float32(0))
    assert 0 < worst(out, want, unit)[0] <= 1
    for k, wrong in ((2, -3.00001), (3, 1.0), (4, 0.0), (0, np.nan), (1, np.inf)):
        out = want.astype("f4")
        out[k] = wrong
        assert worst(out, want, unit)[0] > 4
