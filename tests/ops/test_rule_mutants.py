"""The proof of the derivative rules against faults put into them one at a time: each must make some check fail.

The checks are those of test_table.py on the op's samples, the slopes of test_slopes.py and the kink table; of a
function that several ops share or a rule that other ops' rules call, also those of the other ops. A mutant that passes
them all has to be in EQUIVALENT, with the reason why it computes the same.
`python -m tests.ops.test_rule_mutants --report` prints the count of every op.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import random
import sys
import warnings
from types import FunctionType

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.define import elementwise
from gpugrad.op import TABLE
from gpugrad.testing.mutants import Mutant, helpers, mutants, names, passes, plain, rules, survivors

from . import test_degenerate, test_elementwise, test_table
from .test_slopes import SLOPES, check_slope

# 'op or function: before -> after': why nothing can be seen
ABSORBED = "makes NaN where the cotangent is 0, which the walk absorbs"
AGAIN = "computed again where it was not kept"
HEAVY = "the walk sums over what was broadcast"
LIKE = "of the same shape"
NOOP = "a reshape or slice that leaves all as it is"
REAL = "the identity for real numbers on one device"
STEP = "shift takes 0 for -1"
EMPTY = "an array without elements"
EITHER = "both formulas hold there"
TINY = "a term below the rounding"
EQUIVALENT: dict[str, str] = {
    "absorbed: g -> out": "they differ where g is NaN alone",
    "absorbed: g -> out [2]": "they differ where g is NaN alone",
    "activation.bias_act_push: F.broadcast_to(add_up([t f...=out.shape) -> add_up([t for t in ts if t is not None])": (
        "the function's derivative broadcasts"
    ),
    "attention: False -> True": "adds a product with False, a zero",
    "attention.probabilities: 'float16' if s.dtype.items...lse s.dtype -> s.dtype": (
        "the same for float16; NumPy makes the scores of bfloat16 float32, CuPy does not"
    ),
    "batch_norm: statistics -> _out": AGAIN,
    "bias_act: out -> x": LIKE,
    "bias_act_bwd: F.sum(dx, axis=tuple(range...dims=False) -> F.sum(dx, axis=(), keepdims=False)": HEAVY,
    "bias_act_bwd: False -> True": HEAVY,
    "bias_act_out: out -> _x [2]": LIKE,
    "conj: F.conj(t) -> t": REAL,
    "conv.cropped: x if tuple(x.shape) == tup...in shape])) -> F.getitem(x, index=tuple([...in shape]))": NOOP,
    "cumulative_prod: 1 -> 0 [4]": STEP,
    "erfcx: 0.0 -> 1": TINY,
    "erfcx: 11 -> 12": TINY,
    "erfcx: 16 -> 17": EITHER,
    "erfcx: 16.0 -> 17.0": "not used there",
    "erfcx: F.where(far, x, 16.0) -> x": ABSORBED,
    "erfcx: x > 16 -> x >= 16": EITHER,
    "group_norm: statistics -> _out": AGAIN,
    "group_norm_bwd: 0 -> 1": EMPTY,
    "group_norm_bwd: False -> True": NOOP,
    "group_norm_bwd: none -> -none": EMPTY,
    "group_norm_bwd: none -> -none [2]": EMPTY,
    "i1e: 1.0 -> 0": ABSORBED,
    "i1e: F.where(zero, 1.0, x) -> x": ABSORBED,
    "i1e: x -> out": "they are 0 together",
    "i1e: x -> out [4]": "of the same sign",
    "index.spread: 1 -> 0": NOOP,
    "index.spread: out if count == 1 else F.r...e, *after)) -> F.reshape(out, shape=(*nam...e, *after))": NOOP,
    "layer_norm: statistics -> _out": AGAIN,
    "layer_norm_bwd: 0 -> 1": EMPTY,
    "layer_norm_bwd: False -> True": NOOP,
    "layer_norm_bwd: none -> -none": EMPTY,
    "layer_norm_bwd: none -> -none [2]": EMPTY,
    "linalg._as_matrix: F.reshape(t, shape=shape) ...lumn else t -> F.reshape(t, shape=shape)": NOOP,
    "linalg._inverse: 1 -> 0 [2]": ABSORBED,
    "linalg._inverse: F.where(zero, 1, d) -> d": ABSORBED,
    "linalg._reduced_svd: -1 -> 1 [3]": NOOP,
    "linalg._reduced_svd: u.shape[-1] > k -> u.shape[-1] >= k [2]": NOOP,
    "linalg._reduced_svd: vh.shape[-2] > k -> vh.shape[-2] >= k [2]": NOOP,
    "linalg._zero: 8 -> 9": "rounding errors are no exact number",
    "linear_scan: 1 -> 0 [5]": STEP,
    "matmul: -1 -> 1 [4]": "the last of two axes",
    "matmul: F.reshape(a, shape=(math.p...shape[-1])) -> a": HEAVY,
    "matmul: F.reshape(g, shape=(*g.sha...flat else g -> g": HEAVY,
    "matmul: F.reshape(g, shape=(*g.sha...shape[-1])) -> g": HEAVY,
    "matmul: len(x.shape) > 1 -> len(x.shape) < 1": HEAVY,
    "matmul: x if len(x.shape) > 1 else... *x.shape)) -> F.reshape(x, shape=(1, *x.shape))": HEAVY,
    "pow: t * (y * x ** (y - 1)) if ...** (y - 1)) -> F.absorb(t, y * x ** (y - 1))": "the slope is finite where x is",
    "pow: y >= 1 -> y > 1": "the slope is finite where x is",
    "put: picked if distinct else pi...pe=x_shape) -> picked * F.last_written(*a...pe=x_shape)": "each is the last",
    "reduce.norm_slope: F.quotient(F.abs(x), out) -> F.divide(F.abs(x), out)": ABSORBED,
    "reduce.scan_db: 0 -> 1": "the coefficient of the state before the first, which is 0",
    "rules.push_elementwise: total if total.shape == ou...=out.shape) -> F.broadcast_to(total, shape=out.shape)": NOOP,
    "sinc: 1 -> 0 [6]": ABSORBED,
    "sinc: F.where(close, 1, z) -> z": ABSORBED,
    "sinc: 3991680 -> 3991681": "lost in rounding",
    "sinc: F.abs(z) < 0.3 -> F.abs(z) <= 0.3": "both formulas hold there",
    "slogdet: 0 -> 1": LIKE,
    "to_device: F.to_device(t, device=sour...rce=device) -> t": REAL,
}

# what an op promises beyond the table
PROMISES = {"svd": test_degenerate.check_svd, "eigh": test_degenerate.check_eigh}

ARITHMETIC = ("sign", "operator", "factor", "term", "transpose")
DIFFERENTIABLE = {n: op for n, op in sorted(TABLE.items()) if op.differentiable}


@functools.lru_cache
def units() -> dict[str, list[tuple[FunctionType, list[str]]]]:
    """By the name in the report: the functions to be changed, each with the ops whose checks have to notice."""
    callers = collections.defaultdict(list)
    for name, op in DIFFERENTIABLE.items():
        for f in rules(op):
            for called in set(names(f.__code__)) & set(DIFFERENTIABLE) - {name}:
                callers[called].append(name)
    found = {n: [(f, [n, *dict.fromkeys(callers[n])]) for f in rules(op)] for n, op in DIFFERENTIABLE.items()}
    for name, op in DIFFERENTIABLE.items():
        if name.endswith("_bwd") and (f := plain(op.fwd)) is not None:
            found[f"{name} forward"] = [(f, [name, *dict.fromkeys(callers[name])])]
    shared: dict[FunctionType, list[str]] = {}
    for name, op in DIFFERENTIABLE.items():
        kind = [op.jvp.func] if isinstance(op.jvp, functools.partial) else []
        for f in [*kind, *helpers(op)]:
            shared.setdefault(f, []).append(name)
    own = {f for fs in found.values() for f, _ in fs}
    for f, ops in shared.items():
        if f not in own:
            found.setdefault(f"{f.__module__.rpartition('.')[2]}.{f.__qualname__}", []).append((f, ops))
    return found


def check(name: str) -> None:
    """Everything that is asked of one op, cheapest first."""
    samples = test_table.SAMPLES[name]
    if TABLE[name].via is None:
        for s in (s for s in samples if s.outputs is None):
            test_table.test_jvp_matches_numeric_and_adjoint(name, s)
    for s in samples:
        test_table.test_parts_make_up_the_whole(name, s)
    for s in SLOPES.get(name, ()):
        check_slope(name, s, "float64")
        check_slope(name, s, "float32")
    if name in PROMISES:
        PROMISES[name]()
    for s in samples:
        test_table.test_vjp_matches_numeric(name, s)
    for s in samples:
        if s.second:
            test_table.test_second_order_matches_numeric(name, s)
        test_table.test_gradient_keeps_float32_in_memory_of_its_own(name, s)


def kinks(names: list[str]) -> None:
    """The rows of the kink table that speak of these ops."""
    for row in test_elementwise.ROWS:
        if any(f"{n}(" in row[0] for n in names):
            test_elementwise.test_kink_table(*row, "float64")


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


@functools.lru_cache
def prove(name: str) -> None:
    """All of it without a mutant, or a check that always fails would kill everything."""
    with quiet():
        check(name)
        kinks([name])


def alive(mutant: Mutant, ops: list[str]) -> bool:
    """Whether every check passes with the mutant."""
    with quiet():
        return all(passes(mutant, lambda n=n: check(n)) for n in ops) and passes(mutant, lambda: kinks(ops))


def labelled(unit: str) -> dict[str, tuple[Mutant, list[str]]]:
    """The mutants of a unit and the ops that have to notice them, by what they are called in EQUIVALENT."""
    found: dict[str, tuple[Mutant, list[str]]] = {}
    counts = collections.Counter()
    for f, ops in units()[unit]:
        for m in mutants(f):
            if unit.endswith(" forward") and m.kind not in ARITHMETIC:
                continue
            name = f"{unit}: {m.before} -> {m.after}"
            counts[name] += 1
            key = name if counts[name] == 1 else f"{name} [{counts[name]}]"
            found[key] = m, ops[:1] if key in EQUIVALENT else ops  # what is explained need not pass everything
    return found


@pytest.mark.parametrize("unit", units())
def test_every_mutant_is_killed_or_explained(unit):
    listed = {key for key in EQUIVALENT if key.startswith(f"{unit}: ")}
    every = labelled(unit)
    assert every, "nothing was changed"
    for name in {name for _, ops in every.values() for name in ops}:
        prove(name)
    living = {key: str(m) for key, (m, ops) in every.items() if alive(m, ops)}
    assert not {key: said for key, said in living.items() if key not in listed}, "survive the checks"
    assert not listed - set(living), "killed, or gone, and still listed as equivalent"


# --- what users have: gradcheck, and survivors for ops of their own ------------------------------------------

FORTY = """multiply divide remainder square sqrt cbrt hypot pow exp exp2 expm1 log log2 log1p logaddexp xlogy sin cos
tan asin acos atan atan2 sinh cosh asinh acosh atanh logit softsign tanhshrink prod var std norm matmul inv solve
cholesky det"""


@pytest.mark.parametrize("name", FORTY.split())
def test_gradcheck_catches_forty_seeded_mutants(name):
    """One fault in the gradient, chosen by a seed: found element by element and along one random direction."""
    op = TABLE[name]
    reverse = [m for f in rules(op) if f is not plain(op.jvp) for m in mutants(f) if m.kind in ARITHMETIC]
    mutant = random.Random(name).choice(reverse)
    cases = [test_table.as_function(op, s) for s in test_table.SAMPLES[name]]
    for options in ({}, {"fast": True}):
        assert all(gg.gradcheck(f, xs, **options) for f, xs in cases)
        with np.errstate(all="ignore"):
            assert not passes(mutant, lambda o=options: [gg.gradcheck(f, xs, **o) for f, xs in cases]), mutant


def test_forty_are_forty():
    assert len(set(FORTY.split())) == 40


@pytest.fixture
def cube():
    scale = 1.0  # a free variable, as in a rule that a factory makes

    def slope(F, x):
        return 3 * x * x

    yield elementwise("cube_of_a_user", lambda xp, x: x * x * x, lambda F, t, _out, x: t * slope(F, x) * scale)
    del TABLE["cube_of_a_user"]


def test_a_check_that_is_too_weak_lets_mutants_survive(cube):
    def check(at):
        assert gg.gradcheck(cube, [gg.tensor(np.array(at))])

    left = survivors(cube, lambda: check([1.0]))
    free = "t * slope(F, x) * scale -> t * slope(F, x)"  # as scale is 1
    assert {f"{m.before} -> {m.after}" for m in left} == {free, "3 * x * x -> 3 * x"}
    assert all(f"line {m.line}, factor: " in str(m) for m in left)
    again = survivors(cube, lambda: check([0.7, -1.3]))
    assert [f"{m.before} -> {m.after}" for m in again] == [free]
    check([0.7, -1.3])


def test_survivors_of_a_function_class():
    class Tanh(gg.Function):
        @staticmethod
        def forward(ctx, x):
            y = gg.tanh(x)
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, t):
            (y,) = ctx.saved_tensors
            return t * (1 - y * y)

    assert not survivors([Tanh.backward], lambda: gg.gradcheck(Tanh.apply, [gg.tensor(np.array([0.3, -0.9]))]))


def test_mutants_of_every_kind_are_made_once_each():
    def rule(F, t, out, x, axis):
        g = F.matmul(x.T, t) if axis > 0 else -2 * F.sum(t, axis=axis) / out
        return g + (1 if x is None else F.sin(x))

    found = mutants(rule)
    assert {m.kind for m in found} == {
        "sign", "operator", "factor", "term", "comparison", "branch", "constant", "call", "function", "transpose",
        "keyword", "input",
    }  # fmt: skip
    assert len({m.code.co_code + repr(m.code.co_consts).encode() + repr(m.code.co_names).encode() for m in found}) > 30
    before = rule.__code__
    with found[0]:
        assert rule.__code__ is not before
    assert rule.__code__ is before
    unsourced = eval("lambda F, t, out, x: t * x")
    with pytest.raises(LookupError, match="no source"):
        mutants(unsourced)
    with pytest.raises(ZeroDivisionError):
        survivors([rule], lambda: 1 / 0)


def report() -> int:
    """Print the counts, then the survivors; how many there are that EQUIVALENT does not explain."""
    left = []
    print(f"{'op or function':40} {'mutants':>8} {'killed':>8} {'equivalent':>11}")
    total = collections.Counter()
    for unit in units():
        every = labelled(unit)
        passed = {key: m for key, (m, ops) in every.items() if alive(m, ops)}
        counts = {
            "mutants": len(every),
            "killed": len(every) - len(passed),
            "equivalent": len(EQUIVALENT.keys() & passed),
        }
        left += [f"{key}  ({m})" for key, m in passed.items() if key not in EQUIVALENT]
        total.update(counts)
        print(f"{unit:40} {counts['mutants']:8} {counts['killed']:8} {counts['equivalent']:11}", flush=True)
    print(f"{'all':40} {total['mutants']:8} {total['killed']:8} {total['equivalent']:11}")
    print(*left, sep="\n")
    return len(left)


if __name__ == "__main__":
    sys.exit(report() > 0)
