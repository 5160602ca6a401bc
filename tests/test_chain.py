"""Chains of elementwise ops: bit for bit NumPy's on its own path, within a few units in the last place compiled."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest

import gpugrad as gg  # noqa: F401  fills the table
from gpugrad import compiler
from gpugrad.backends import threads
from gpugrad.chain import Chain, Const, End, Step, compile_many, functor, functors, fusable
from gpugrad.op import TABLE

needs_compiler = pytest.mark.skipif(compiler.find() is None, reason="needs a C++ compiler")
IMPL = {name: op.impls[np.ndarray] for name, op in TABLE.items()}
# exact: one correctly rounded operation, so that compiled code has NumPy's bits
EXACT = {
    1: ("negative", "abs", "square", "sqrt", "relu", "reciprocal", "sign", "positive"),
    2: ("add", "subtract", "multiply", "divide", "maximum", "minimum", "relu_bwd", "absorb", "quotient"),
}
COMPARISONS = ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal")
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-38, 3e38, -3e38, 1.0, -1.0, 88.7, 88.8, -104.0, 20.0]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    """A cache of compiled code of our own, and no warnings about the special values."""
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setenv("GPUGRAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("GPUGRAD_CPU_JIT", raising=False)
        yield


def eager(chain, ins):
    """The ops one after the other on whole arrays."""
    values = list(ins)
    for step in chain.steps:
        operands = [values[o] if type(o) is int else getattr(o, "value", None) for o in step.operands]
        values.append(np.asarray(IMPL[step.op](*operands, **dict(step.attrs))))
    ends = [IMPL[e.op](values[e.operand], axis=trailing(values[e.operand], e.axes), keepdims=False) for e in chain.ends]
    return [values[i] for i in chain.outputs] + [np.asarray(e) for e in ends]


def trailing(x, axes):
    return tuple(range(x.ndim - axes, x.ndim))


def empty_like(results):
    return [np.empty(r.shape, r.dtype) for r in results]


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def random_chain(rng, inputs, length, transcendental=True):
    """Steps on any earlier values, masks going to `where` alone."""
    steps, floats = [], list(range(inputs))
    unary = EXACT[1] + (("exp", "tanh", "sigmoid", "log1p", "gelu", "softplus") if transcendental else ())
    attrs = {"gelu": (("approximate", "tanh"),), "softplus": (("beta", 1.0),)}

    def pick():
        return int(rng.choice(floats))

    while len(steps) < length:
        kind = rng.integers(4)
        at = inputs + len(steps)
        if kind == 0:
            op = str(rng.choice(unary))
            steps.append(Step(op, (pick(),), attrs.get(op, ())))
        elif kind == 1:
            steps.append(Step(str(rng.choice(EXACT[2])), (pick(), pick())))
        elif kind == 2:
            steps.append(Step(str(rng.choice(["add", "multiply"])), (pick(), Const(float(rng.normal())))))
        else:
            steps.append(Step(str(rng.choice(COMPARISONS)), (pick(), Const(0.5))))
            steps.append(Step("where", (at, pick(), pick())))
            at += 1
        floats.append(at)
    return steps, floats


def arrays(rng, shape, dtype, kinds):
    """Operands that broadcast to a shape: full, strided, a row, a column, one number."""
    made = []
    for kind in kinds:
        if kind == "strided":
            a = rng.normal(size=(*shape[:-1], 2 * shape[-1])) if shape else rng.normal(size=shape)
            made.append(a.astype(dtype)[..., ::2] if shape else np.asarray(a, dtype))
            continue
        own = {
            "full": shape, "row": shape[-1:], "column": (*shape[:-1], 1) if shape else (), "scalar": (),
            "middle": tuple(n if i % 2 else 1 for i, n in enumerate(shape)),
        }[kind]  # fmt: skip
        made.append(np.asarray(rng.normal(size=own), dtype))
    return made


SHAPES = [(), (0,), (3, 0, 2), (1,), (7,), (513,), (40, 31), (3, 4, 5, 6), (300, 700), (2, 70000)]
KINDS = [("full", "full", "full"), ("full", "row", "column"), ("full", "strided", "scalar"), ("full", "middle", "row")]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numpy_path_has_the_bits_of_the_ops(shape):
    for seed, kinds in enumerate(KINDS):
        rng = np.random.default_rng(seed)
        dtype = ("float32", "float64", "float16")[seed % 3]
        ins = arrays(rng, shape, dtype, kinds)
        steps, floats = random_chain(rng, len(ins), 8)
        steps.append(Step("add", (floats[-1], 0)))  # of the common shape
        chain = Chain(len(ins), tuple(steps), (len(ins) + len(steps) - 1, 0))
        before = [a.copy() for a in ins]
        wanted = eager(chain, ins)
        outs = empty_like(wanted)
        chain.numpy(outs, ins)
        assert all(map(same_bits, outs, wanted)), chain
        assert all(map(same_bits, ins, before))


def test_an_op_that_returns_its_operand_keeps_it():
    """absorbed gives back its first operand where that has no NaN: exp must not be written over it."""
    attrs = (("infinite", False),)
    steps = (Step("add", (0, 1)), Step("absorbed", (2, 0), attrs), Step("exp", (2,)), Step("multiply", (3, 4)))
    chain = Chain(2, steps, (5,))
    ins = [np.linspace(0, 1, 1000, dtype="f4"), np.ones(1000, "f4")]
    wanted, out = eager(chain, ins)[0], np.empty(1000, "f4")
    chain.numpy([out], ins)
    assert same_bits(out, wanted)


def test_an_output_may_be_the_memory_of_an_input():
    x, y = (np.random.default_rng(i).normal(size=100_000).astype("float32") for i in (0, 1))
    chain = Chain(2, (Step("multiply", (0, 1)), Step("add", (0, 2))), (2, 3))  # x is read after the first output
    wanted = eager(chain, [x, y])
    runs = [chain.numpy] + ([chain.compile_cpu([x.dtype] * 2)] if compiler.find() else [])
    for run in runs:
        a, other = x.copy(), np.empty_like(x)
        run([a, other], [a, y])
        assert same_bits(a, wanted[0])
        assert same_bits(other, wanted[1])


def test_an_output_may_overlap_with_an_input_in_any_way():
    memory = np.random.default_rng(0).normal(size=200_001).astype("f4")
    chain = Chain(2, (Step("multiply", (0, 1)), Step("add", (2, Const(1.0)))), (3,))
    for run in filter(None, (chain.numpy, chain.compile_cpu(["f4", "f4"]))):
        for x, y in (
            (lambda m: m[1:], lambda m: m[:-1]), (lambda m: m[:-1], lambda m: m[-1:]),
            (lambda m: m[:0:-1], lambda m: m[1:]),
        ):  # fmt: skip
            m = memory.copy()
            out, wanted = m[:-1], eager(chain, [x(memory), y(memory)])[0]
            run([out], [x(m), y(m)])
            assert same_bits(out, wanted)


def test_constants_are_told_apart():
    numbers = [0.0, -0.0, 0, False, 1, 1.0, True, float("nan")]
    assert len({Const(n) for n in numbers}) == len(numbers)
    assert Const(float("nan")) == Const(float("nan"))
    x = np.ones(3, "float32")
    for number, sign in ((0.0, np.inf), (-0.0, -np.inf)):
        chain = Chain(1, (Step("divide", (0, Const(number))),), (1,))
        out = np.empty_like(x)
        for run in filter(None, (chain.numpy, chain.compile_cpu(["f4"]))):
            run([out], [x])
            assert (out == sign).all()


def test_a_chain_reads_as_a_program():
    chain = Chain(
        2, (Step("multiply", (0, 1)), Step("leaky_relu", (2,), (("negative_slope", 0.1),))), (3,), (End("sum", 3, 1),)
    )
    assert str(chain).splitlines() == [
        "v0 = multiply(x0, x1)", "v1 = leaky_relu(v0, negative_slope=0.1)", "return v1, sum(v1, last 1)",
    ]  # fmt: skip


# --- functors ---------------------------------------------------------------------------------------------------------


def test_an_op_finds_its_functor_by_name():
    assert functor("log_sigmoid", {})[0].call == "LogSigmoid::value<A>"
    assert functor("silu_bwd", {})[0].call == "Silu::back<A>"
    assert functor("gelu", {"approximate": "tanh"})[0].call == "GeluTanh::value<A>"
    assert functor("elu", {"scale": 3.0, "rate": 2.0, "alpha": 1.0})[1] == (1.0, 2.0, 3.0)
    assert functor("matmul", {}) is None
    assert functor("softmax", {"axis": 1}) is None
    assert not fusable("sum", {"axis": (0,), "keepdims": False})
    used = {f[0].call for name in TABLE for a in ATTRS.get(name, [{}]) if (f := functor(name, a))}
    assert {f.call for f in functors().values()} == used, "a functor that no op finds"


ATTRS: dict = {
    "gelu": [{"approximate": "none"}, {"approximate": "tanh"}], "softplus": [{"beta": 1.0}, {"beta": -2.5}],
    "absorbed": [{"infinite": True}, {"infinite": False}], "softshrink": [{"lambd": 0.5}],
    "leaky_relu": [{"negative_slope": 0.1}],
    "elu": [{"alpha": 1.5, "rate": 0.7, "scale": 1.1}],
}  # fmt: skip
ATTRS |= {f"{name}_bwd": a for name, a in ATTRS.items()}
OWN = (  # what rests on functions of our own, or of the C library, in each type
    "exp", "expm1", "log", "log1p", "tanh", "sin", "cos", "pow", "sigmoid", "softplus", "elu", "gelu",
)  # fmt: skip
# Where an error of half a unit in an intermediate result is multiplied (small tails, differences), the operands are
# kept where that factor is small.
RANGE = {
    "gelu": 2.0, "gelu_bwd": 0.5, "silu": 20.0, "silu_bwd": 1.0, "mish": 10.0, "mish_bwd": 0.5, "sin": 1e4, "cos": 1e4,
    "pow": 8.0, "bce_logits": 1.0, "hardswish": 2.5, "hardsigmoid": 2.0, "hardswish_bwd": 1.0, "tanh_bwd": 0.9,
    "sigmoid_bwd": 0.7, "softplus": 30.0, "softplus_bwd": 30.0, "log_sigmoid": 80.0, "tanhshrink": 0.0, "elu_bwd": 1.0,
}  # fmt: skip


def taken(name, operands):
    """Operands as an op takes them: ordered limits, conditions; of what has only those also an array of the dtype."""
    if name == "clip":
        return [operands[0], np.minimum(*operands[1:]), np.maximum(*operands[1:])]
    if name == "where":
        return [operands[0] > 0, *operands[1:]]
    if name.startswith(("logical", "bitwise")):
        return [o > 0 for o in operands] + [np.zeros_like(operands[0])]
    return operands


def cases(dtype):
    """(op, attributes, operands) for everything that has a functor."""
    rng = np.random.default_rng(5)
    for name in sorted(TABLE):
        for attrs in ATTRS.get(name, [{}]):
            found = functor(name, attrs)
            if found is None or (dtype == "float64" and (name not in OWN or attrs.get("approximate") == "none")):
                continue
            limit = RANGE.get(name)
            operands = []
            for _ in range(found[0].operands):
                x = np.concatenate(
                    [rng.normal(size=3000) * 3, rng.uniform(-100, 100, 2000), 10 ** rng.uniform(-30, 30, 1000)]
                )
                x = rng.permutation(np.concatenate([x, SPECIAL * 20]))
                operands.append((x if limit is None else rng.uniform(-limit, limit, len(x))).astype(dtype))
            if name == "pow":
                operands[0] = np.abs(operands[0])
            yield name, attrs, taken(name, operands)


def units(got, wanted):
    """The largest distance in units in the last place; equal numbers, infinities and NaN are no distance."""
    wanted = wanted.astype(got.dtype)
    step = np.spacing(np.abs(wanted)).astype(np.longdouble)
    distance = np.abs(got.astype(np.longdouble) - wanted.astype(np.longdouble)) / step
    distance[(got == wanted) | (np.isnan(got) & np.isnan(wanted))] = 0
    return np.inf if np.isnan(distance).any() else distance.max(initial=0)


def chain_of(name, attrs, operands):
    """The op as a chain; masks of masks end in a choice, because a chain has a floating type."""
    n = functor(name, attrs)[0].operands
    step, at = Step(name, tuple(range(n)), tuple(attrs.items())), len(operands)
    if n == at:
        return Chain(at, (step,), (at,))
    return Chain(at, (step, Step("where", (at, Const(1.0), n))), (at + 1,))


def same_kinds(chain, run, operands):
    """On every combination of special values NaN, inf and -inf stand where NumPy has them."""
    grids = [g.ravel() for g in np.meshgrid(*[np.array(SPECIAL, "f4")] * len(operands))]
    ins = [(g > 0) if o.dtype == bool else g for g, o in zip(grids, operands)]
    numpy = eager(chain, ins)[0]
    out = np.empty_like(numpy)
    run([out], ins)
    if out.dtype != bool:
        numpy, out = (np.where(np.isfinite(a), 0, a) for a in (numpy, out))
    assert np.array_equal(out, numpy, equal_nan=out.dtype != bool), chain


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functors_are_as_close_to_the_truth_as_the_ops(dtype):
    """The truth is the op's NumPy code in the next wider type: 4 units in the last place off, or 2 more than NumPy."""
    wide = {"float32": np.float64, "float64": np.longdouble}[dtype]
    work = [(name, chain_of(name, attrs, operands), operands) for name, attrs, operands in cases(dtype)]
    runs = compile_many([(chain, [o.dtype for o in operands]) for _, chain, operands in work])
    for (name, chain, operands), run in zip(work, runs):
        assert run is not None, chain
        numpy = eager(chain, operands)[0]
        truth = eager(chain, [o if o.dtype == bool else o.astype(wide) for o in operands])[0]
        out = np.empty_like(numpy)
        run([out], operands)
        if out.dtype == bool:
            assert (out == truth).all(), chain
        else:
            assert units(out, truth) <= max(4, units(numpy, truth) + 2), chain
        if dtype == "float32" and len(operands) == functor(name, dict(chain.steps[0].attrs))[0].operands:
            same_kinds(chain, run, operands)
    wanted = {*OWN} if dtype == "float64" else {"where", "less", "sigmoid_bwd", "maximum_bound", *OWN}
    assert wanted <= {name for name, *_ in work}


# --- compiled ---------------------------------------------------------------------------------------------------------


@needs_compiler
def test_compiled_exact_chains_have_numpys_bits():
    """Sums, products, quotients, roots and choices are rounded once each, in the same order: nothing may differ."""
    work = []
    for seed, kinds in enumerate(KINDS):
        rng = np.random.default_rng(seed)
        steps, floats = random_chain(rng, 3, 10, transcendental=False)
        steps.append(Step("add", (floats[-1], 0)))
        work.append((Chain(3, tuple(steps), (3 + len(steps) - 1,)), kinds))
    for dtype in ("float32", "float64"):
        runs = compile_many([(chain, [dtype] * 3) for chain, _ in work])
        for (chain, kinds), run in zip(work, runs):
            for shape in SHAPES:
                ins = arrays(np.random.default_rng(1), shape, dtype, kinds)
                wanted = eager(chain, ins)
                outs = empty_like(wanted)
                run(outs, ins)
                assert same_bits(outs[0], wanted[0]), (chain, shape, kinds)


@needs_compiler
def test_masks_come_in_and_go_out():
    rng = np.random.default_rng(6)
    x, mask, row = rng.normal(size=(70, 90)).astype("f4"), rng.random((70, 90)) > 0.5, rng.random(90) > 0.5
    steps = (
        Step("where", (1, 0, Const(0.0))), Step("greater", (3, Const(0.25))), Step("logical_and", (4, 2)),
        Step("where", (5, 0, 3)), Step("clip", (6, Const(-1.0), Const(1))),
    )  # fmt: skip
    chain = Chain(3, steps, (5, 7, 4))
    wanted = eager(chain, [x, mask, row])
    for run in (chain.numpy, chain.compile_cpu(["f4", bool, bool])):
        outs = empty_like(wanted)
        run(outs, [x, mask, row])
        assert [o.dtype for o in outs] == [bool, "f4", bool]
        assert all(map(same_bits, outs, wanted))


@needs_compiler
def test_bound_calls_read_their_arrays_anew():
    chain = Chain(2, (Step("multiply", (0, 1)),), (2,))
    x, y, out = np.ones(10, "f4"), np.full(10, 2, "f4"), np.empty(10, "f4")
    go = chain.compile_cpu(["f4", "f4"]).bind([out], [x, y])
    go()
    assert (out == 2).all()
    x += 4
    go()
    assert (out == 10).all()


@needs_compiler
def test_compiled_code_refuses_what_it_was_not_made_for():
    run = Chain(1, (Step("negative", (0,)),), (1,)).compile_cpu(["f4"])
    with pytest.raises(TypeError, match="compiled for"):
        run([np.empty(3, "f8")], [np.ones(3, "f8")])
    with pytest.raises(ValueError, match="expected contiguous outputs"):
        run([np.empty((2, 3), "f4").T], [np.ones((3, 2), "f4")])


def test_what_cannot_be_compiled_is_none():
    x = Chain(1, (Step("asinh", (0,)),), (1,))
    mixed = Chain(2, (Step("add", (0, 1)),), (2,))
    assert x.source("cpu", ["f4"]) is None
    assert x.compile_cpu(["f4"]) is None
    assert mixed.compile_cpu(["f4", "f8"]) is None
    assert mixed.compile_cpu(["i4", "i4"]) is None
    assert mixed.compile_cpu(["f2", "f2"]) is None


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(), (3,), (5, 7), (400, 300)], ids=str)
def test_dropout_drops_what_the_op_drops(shape, p):
    rng = np.random.default_rng(2)
    x, b = (np.asarray(rng.normal(size=s), "f4") for s in (shape, shape[-1:]))
    counter = np.array([12], "u8")
    attrs = (("key", (3, 2**63 + 1)), ("p", p))
    steps = (Step("add", (0, 1)), Step("relu", (3,)), Step("dropout", (4, 2), attrs), Step("multiply", (5, 0)))
    chain = Chain(3, steps, (5, 6))
    wanted = eager(chain, [x, b, counter])
    for run in filter(None, (chain.numpy, chain.compile_cpu(["f4", "f4", "u8"]))):
        outs = empty_like(wanted)
        run(outs, [x, b, counter])
        assert all(map(same_bits, outs, wanted))


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (513, 10), (2, 40_000), (150, 300)], ids=str)
def test_reductions_that_end_a_chain(shape, axes):
    rng = np.random.default_rng(3)
    x, w = rng.normal(size=shape), rng.normal(size=shape[-1:])
    ends = End("sum", 3, axes), End("max", 2, axes), End("mean", 3, axes)
    chain = Chain(2, (Step("multiply", (0, 1)), Step("square", (2,))), (2,), ends)
    wanted = eager(chain, [x, w])
    for dtype, tolerance in (("float64", 1e-13), ("float32", 1e-6)):
        ins = [x.astype(dtype), w.astype(dtype)]
        numpy = empty_like(eager(chain, ins))
        chain.numpy(numpy, ins)
        assert all(map(same_bits, numpy, eager(chain, ins)))
        run = chain.compile_cpu([dtype] * 2)
        if run is not None:
            outs = empty_like(numpy)
            run(outs, ins)
            assert same_bits(outs[0], numpy[0])
            np.testing.assert_allclose(outs[1], wanted[1], rtol=tolerance)
            assert same_bits(outs[2], numpy[2])
            np.testing.assert_allclose(outs[3], wanted[3], rtol=tolerance)
            ins[0][-1, -1] = np.nan
            run(outs, ins)
            assert np.isnan(outs[1].flat[-1])
            assert np.isnan(outs[2].flat[-1])


@needs_compiler
def test_results_larger_than_a_cache_go_past_it():
    """Whole lines of memory at a time, wherever an array begins."""
    n, rng = 3_000_001, np.random.default_rng(5)
    whole = [np.zeros(n + 40, "f4") for _ in range(3)]
    outs = [a[k:][:n] for a, k in zip(whole, (0, 5, 16))] + [np.zeros(n + 7, bool)[3:][:n], np.zeros((), "f4")]
    x, one = rng.normal(size=n).astype("f4"), np.broadcast_to(np.float32(1.5), n)
    steps = Step("multiply", (0, 1)), Step("square", (2,)), Step("add", (3, 0)), Step("greater", (4, 0))
    chain = Chain(2, steps, (2, 3, 4, 5), (End("max", 3, 1),))
    chain.compile_cpu(["f4", "f4"])(outs, [x, one])
    assert sum(o.nbytes for o in outs) > 1 << 25
    assert all(map(same_bits, outs, eager(chain, [x, one])))
    assert not any(a[:k].any() or a[k + n :].any() for a, k in zip(whole, (0, 5, 16)))  # nothing beside them
    over = Chain(1, (Step("square", (0,)),), (1,)).compile_cpu(["f8"])
    y = rng.normal(size=1 << 23)
    want = y * y
    over([y], [y])
    assert same_bits(y, want)


@needs_compiler
def test_any_number_of_threads_gives_the_same_bits():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(700, 301)).astype("f4")
    chain = Chain(2, (Step("exp", (0,)), Step("add", (2, 1))), (3,), (End("sum", 3, 2),))
    run, results = chain.compile_cpu(["f4", "f4"]), []
    try:
        for n in (1, 2, 5, 2):
            compiler.set_threads(n)
            outs = [np.empty_like(x), np.empty((), "f4")]
            for _ in range(3):
                run(outs, [x, x[0]])
                results.append([o.tobytes() for o in outs])
    finally:
        compiler.set_threads(threads.count())
    assert all(r == results[0] for r in results)


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_computes_too():
    """The threads do not survive a fork; a child that waited for them would hang."""
    x, out = np.ones(500_000, "f4"), np.zeros(500_000, "f4")
    go = Chain(1, (Step("exp", (0,)),), (1,)).compile_cpu(["f4"]).bind([out], [x])
    compiler.set_threads(3)
    try:
        go()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            x += 1
            go()
            os._exit(0 if np.allclose(out, np.exp(2.0), rtol=1e-6) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert np.allclose(out, np.e, rtol=1e-6)
    finally:
        compiler.set_threads(threads.count())


# --- the compiler -----------------------------------------------------------------------------------------------------


@pytest.fixture
def forgetful(monkeypatch, tmp_path):
    """As in a new process, with an empty cache."""
    monkeypatch.setenv("GPUGRAD_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "functions", {})
    compiler.pool.cache_clear()
    compiler.warn_once.cache_clear()
    yield tmp_path
    compiler.pool.cache_clear()
    compiler.warn_once.cache_clear()


ADD = Chain(2, (Step("add", (0, 1)),), (2,))


@needs_compiler
def test_compiled_code_is_kept_on_disk(forgetful, monkeypatch):
    assert ADD.compile_cpu(["f4", "f4"]) is not None
    there = sorted(forgetful.glob("*.so"))
    assert len(there) == 2  # the threads, and the chain
    monkeypatch.setattr(compiler, "functions", {})
    compiler.pool.cache_clear()
    monkeypatch.setattr(compiler.subprocess, "run", lambda *a, **k: pytest.fail("compiled again"))
    run = ADD.compile_cpu(["f4", "f4"])
    out = np.empty(3, "f4")
    run([out], [np.ones(3, "f4")] * 2)
    assert (out == 2).all()
    assert sorted(forgetful.glob("*.so")) == there


@needs_compiler
def test_many_chains_are_one_run_of_the_compiler(forgetful, monkeypatch):
    runs, real = [], compiler.subprocess.run
    monkeypatch.setattr(compiler.subprocess, "run", lambda *a, **k: runs.append(a) or real(*a, **k))
    compiler.pool(forgetful)
    before = len(runs)
    wanted = [(Chain(1, (Step("add", (0, Const(float(i)))),), (1,)), ["f4"]) for i in range(5)]
    made = compile_many([*wanted, wanted[0]])
    assert len(runs) - before == 2  # compile and link
    monkeypatch.setattr(compiler, "functions", {})
    compile_many([wanted[3], (ADD, ["f4", "f4"])])  # one of them is on disk
    assert len(runs) - before == 4
    compile_many([(ADD, ["f4", "f4"]), wanted[1]])
    assert len(runs) - before == 4
    x, out = np.zeros(3, "f4"), np.empty(3, "f4")
    for i, run in enumerate(made):
        run([out], [x])
        assert (out == i % 5).all()


def test_a_compiler_that_fails_is_one_warning_and_numpy(forgetful, monkeypatch):
    bad = forgetful / "c++"
    bad.write_text("#!/bin/sh\necho no such processor >&2\nexit 1\n")
    bad.chmod(0o755)
    monkeypatch.setenv("CXX", str(bad))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [ADD.compile_cpu(["f4", "f4"]) for _ in range(2)] == [None, None]
    assert ["no such processor" in str(w.message) for w in caught] == [True]


def test_compiling_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("GPUGRAD_CPU_JIT", "0")
    assert ADD.compile_cpu(["f4", "f4"]) is None
    monkeypatch.delenv("GPUGRAD_CPU_JIT")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert ADD.compile_cpu(["f4", "f4"]) is None
