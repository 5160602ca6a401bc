"""Programs: what a trace logs, how it reads, JSON, each pass, the memory plan, and the function that runs it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import compiler, nn, optim
from gpugrad.chain import Chain, Step
from gpugrad.errors import ReplayError
from gpugrad.execute import ALIGN, Host, Lives, plan
from gpugrad.fuse import forward_and_backward, fuse, schedule
from gpugrad.nn import functional as F
from gpugrad.ops.loss import softmax_xent
from gpugrad.program import (
    CONSTANT,
    Call,
    Program,
    Ref,
    Slot,
    common_subexpressions,
    constants,
    dead_code,
    decode,
    encode,
    without_copies,
)  # fmt: skip

needs_compiler = pytest.mark.skipif(not compiler.enabled(), reason="no C++ compiler")


def traced(f, *args):
    """The program of a function after its passes, and what it gives."""
    step = gg.replay(f)
    for _ in range(3):  # the third is proved
        step(*args)
    return step


def array(*shape, seed=0):
    return gg.asarray(np.random.default_rng(seed).normal(size=shape).astype("float32"))


def training():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    opt = optim.Adam(model.parameters())

    def step(x, y):
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        return loss

    return step, (array(4, 6), gg.asarray(np.array([0, 2, 1, 1])))


class Builder:
    """Programs by hand: float64 vectors of n elements."""

    def __init__(self, n=4):
        self.n, self.slots, self.calls, self.inputs, self.arrays = n, {}, [], [], {}

    def slot(self, kind, storage=None):
        i = len(self.slots)
        self.slots[i] = Slot((self.n,), np.dtype("float64"), (8,), kind, i if storage is None else storage)
        return i

    def input(self):
        self.inputs.append(self.slot("input"))
        return self.inputs[-1]

    def given(self, kind, values):
        i = self.slot(kind)
        self.arrays[i] = np.full(self.n, values, "float64")
        return i

    def call(self, op, *args, view_of=None, **attrs):
        out = self.slot("value", view_of)
        self.calls.append(Call(op, tuple(Ref(a) if type(a) is int else a for a in args), attrs, out))
        return out

    def write(self, target, value):
        self.calls.append(Call("assign", (Ref(target), Ref(value)), {"index": (...,)}, None, (target,)))

    def program(self, *results):
        return Program(self.slots, self.calls, self.inputs, list(results), self.arrays)


def ops(program):
    return [c.op for c in program.calls]


# --- listing and JSON -----------------------------------------------------------------------------------------


def test_a_program_reads_like_the_step():
    f, args = training()
    text = str(traced(f, *args).program)
    lines = text.split("\n")
    assert re.fullmatch(r"inputs: x float32\[4, 6\], y int64\[4\]", lines[0])
    assert lines[1].startswith("captures: %")
    assert re.search(r"%\d+ = affine\(x, %\d+, %\d+\) float32\[4, 8\] +test_program.py:\d+", text)
    assert re.search(r"advance\(%\d+, blocks=4\) +test_program.py:\d+", text)
    assert re.search(r"adam\(\[%\d+, %\d+, %\d+, %\d+\], .*beta1=0.9", text)
    assert re.fullmatch(r"return (%\d+, ){4}%\d+", lines[-1])


def test_json_there_and_back_runs_alike():
    f, args = training()
    gg.random.seed(4)
    step = traced(f, *args)
    program = step.program
    text = program.to_json()
    assert json.loads(text)["version"] == 1
    again = Program.from_json(text)
    assert again.to_json() == text
    assert str(again) == str(program)
    for _ in range(3):  # it goes on by itself: its parameters, moments and random counter are its own
        want = program.run(*(a.data for a in args))
        got = again.run(*(a.data for a in args))
        assert all(a.tobytes() == b.tobytes() for a, b in zip(got, want, strict=True))
    for i, a in program.arrays.items():
        assert again.arrays[i].tobytes() == a.tobytes()


@pytest.mark.parametrize(
    "value",
    [None, True, 3, -0.0, float("inf"), "tanh", (1, (2, None)), [Ref(3), None], slice(None, 4, -1), ...,
     (slice(0, 2), ...), np.dtype("float16"), np.dtype(bool), Ref(7)],
)  # fmt: skip
def test_values_of_calls_in_json(value):
    assert repr(decode(json.loads(json.dumps(encode(value, "op"))))) == repr(value)


def test_nan_scalars_and_what_json_cannot_hold():
    assert np.isnan(decode(json.loads(json.dumps(encode(float("nan"), "op")))))
    scalar = decode(json.loads(json.dumps(encode(np.float32(0.1), "op"))))
    assert (type(scalar), scalar) == (np.float32, np.float32(0.1))
    with pytest.raises(ReplayError, match=r"function .* has no JSON form"):
        encode(lambda: 0, "op")


# --- passes -----------------------------------------------------------------------------------------------------


def test_dead_code():
    b = Builder()
    x, state = b.input(), b.given("capture", 1)
    unused = b.call("exp", b.call("sin", x))
    temporary = b.call("cos", x)
    b.write(temporary, unused)  # changes only what nobody reads
    b.write(state, b.call("tanh", x))
    checked = b.call("assert_finite", x, view_of=x, what="x")
    y = b.call("square", x)
    program = dead_code(b.program(y))
    assert ops(program) == ["tanh", "assign", "assert_finite", "square"]
    assert unused not in program.slots
    assert checked in program.slots


def test_writes_to_what_a_result_shares_stay():
    b = Builder()
    x = b.input()
    y = b.call("exp", x)
    view = b.call("getitem", y, view_of=y, index=(slice(None),))
    b.write(view, x)
    program = dead_code(b.program(y))
    assert ops(program) == ["exp", "getitem", "assign"]
    given = np.arange(4.0)
    assert np.array_equal(program.run(given)[0], given)
    assert np.array_equal(Host(program).run(given)[0], given)


def test_common_subexpressions():
    b = Builder()
    x, state = b.input(), b.given("capture", 2)
    first, second = b.call("sin", x), b.call("sin", x)
    product = b.call("multiply", first, second)
    before = b.call("exp", state)
    b.write(state, x)
    after = b.call("exp", state)  # another value of the state
    total = b.call("add", b.call("add", before, after), product)
    program = common_subexpressions(b.program(total))
    assert ops(program).count("sin") == 1
    assert ops(program).count("exp") == 2
    given = np.arange(4.0)
    assert np.array_equal(program.run(given)[0], np.exp(2) + np.exp(given) + np.sin(given) ** 2)


def test_a_copy_of_what_nothing_else_keeps_is_that():
    b = Builder()
    x, held = b.input(), b.given("capture", 2)
    sines, cosines, roots = b.call("sin", x), b.call("cos", x), b.call("sqrt", x)
    view = b.call("reshape", sines, view_of=sines, shape=(4,))
    gradient, twice = b.call("positive", view), b.call("positive", sines)  # one of them is the value itself
    own, changed, outside = b.call("positive", cosines), b.call("positive", roots), b.call("positive", held)
    total = b.call("add", gradient, own)
    b.write(changed, x)
    program = b.program(gradient, twice, own, cosines, changed, outside, total)
    shorter = without_copies(program)
    assert ops(program).count("positive") == 5
    assert ops(shorter).count("positive") == 4
    assert shorter.results == [view, *program.results[1:]]
    given = np.arange(4.0)
    for got, wanted in zip(shorter.run(given), program.run(given)):
        np.testing.assert_array_equal(got, wanted)


def test_values_that_leave_or_are_written_are_not_shared():
    b = Builder()
    x = b.input()
    first, second = b.call("sin", x), b.call("sin", x)
    b.write(first, x)
    third, fourth = b.call("cos", x), b.call("cos", x)
    program = common_subexpressions(b.program(second, third, fourth))
    assert sorted(ops(program)) == ["assign", "cos", "cos", "sin", "sin"]
    given = np.arange(4.0)
    results = Host(program).run(given)
    assert np.array_equal(results[0], np.sin(given))
    assert results[1] is not results[2]


def test_constants_are_computed_once():
    b = Builder()
    x, c = b.input(), b.given(CONSTANT, 3)
    ones = b.call("ones_like", x)
    y = b.call("multiply", b.call("add", ones, b.call("exp", c)), x)
    program = constants(b.program(y))
    assert ops(program) == ["multiply"]
    given = np.arange(4.0)
    assert np.array_equal(program.run(given)[0], (1 + np.exp(np.float64(3))) * given)
    b = Builder()
    x, c = b.input(), b.given(CONSTANT, 3)
    grown = b.call("exp", c)
    b.write(grown, x)  # a constant no more
    assert ops(constants(b.program(grown, b.call("square", grown)))) == ["exp", "assign", "square"]


def test_fusion_keeps_runs_together_and_dependencies_apart():
    b = Builder()
    x, state = b.input(), b.given("capture", 5)
    a = b.call("sin", x)
    half = b.call("getitem", x, view_of=x, index=(slice(None),))
    s = b.call("roll", a, shift=(1,), axis=(0,))  # reads the run: comes after it
    c = b.call("multiply", b.call("exp", half), a)
    old = b.call("add", state, c)
    b.write(state, c)  # after the state was read
    new = b.call("add", state, s)
    program = fuse(b.program(old, new), lambda chain, dtypes, size: len(chain.steps) > 1)
    kinds = ["getitem", "chain0", "roll", "assign", "add"]
    assert sorted(ops(program), key=kinds.index) == kinds
    assert ops(program).index("chain0") < ops(program).index("assign") < ops(program).index("add")
    chain = program.chains["chain0"]
    assert [step.op for step in chain.steps] == ["sin", "exp", "multiply", "add"]
    given = np.linspace(0, 1, 4)
    want_c = np.exp(given) * np.sin(given)
    for _ in range(2):
        b.arrays[state][:] = 5
        got = Host(b.program(old, new)).run(given)
        assert np.array_equal(got[0], 5 + want_c)
        assert np.array_equal(got[1], want_c + np.roll(np.sin(given), 1))


def test_a_schedule_is_a_permutation_that_respects_reads_and_writes():
    rng = np.random.default_rng(0)
    for _ in range(30):
        b = Builder(3)
        values = [b.input(), b.given("capture", 1.0), b.given("capture", 2.0)]
        for _ in range(40):
            kind = rng.integers(0, 6)
            p, q = (values[i] for i in rng.integers(0, len(values), 2))
            if kind == 0:
                b.write(values[rng.integers(1, 3)], p)
            elif kind == 1:
                values.append(b.call("roll", p, shift=(1,), axis=(0,)))
            elif kind == 2:
                values.append(b.call("getitem", p, view_of=b.slots[p].storage, index=(slice(None),)))
            else:
                values.append(b.call(["add", "multiply", "maximum"][kind - 3], p, q))
        program = b.program(*values[-4:])
        runs = schedule(program)
        assert sorted(id(c) for run in runs for c in run) == sorted(id(c) for c in program.calls)
        start = {i: a.copy() for i, a in b.arrays.items()}
        outcomes = []
        for run in (program.run, Host(program).run, Host(fuse(program, lambda *_: False)).run):
            for i, a in start.items():
                b.arrays[i][:] = a
            with np.errstate(all="ignore"):
                results = run(np.linspace(0.1, 0.3, 3))
            outcomes.append([a.tobytes() for a in (*results, *b.arrays.values())])
        assert outcomes[0] == outcomes[1] == outcomes[2]


def test_a_loss_and_its_gradient_in_one_call():
    logits, labels = array(6, 5).requires_grad_(), gg.asarray(np.array([0, 1, 2, 3, 4, 0]))

    def step():
        logits.zero_grad()
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        return loss

    program = forward_and_backward(traced(step).program)
    assert [op for op in ops(program) if "xent" in op] == ["softmax_xent+softmax_xent_bwd"]
    weighted = traced(lambda: gg.grad(lambda v: F.cross_entropy(v, labels) ** 2)(logits.detach())).program
    assert [op for op in ops(forward_and_backward(weighted)) if "xent" in op] == ["softmax_xent", "softmax_xent_bwd"]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("rows, classes", [(5, 3), (33, 40), (1100, 300)])
@pytest.mark.parametrize("soft, smoothing", [(False, 0.0), (True, 0.0), (False, 0.1)])
def test_the_two_in_one_have_the_bits_of_each(dtype, rows, classes, soft, smoothing):
    rng = np.random.default_rng(7)
    x = gg.asarray((4 * rng.normal(size=(rows, classes))).astype(dtype))
    hard = np.where(rng.random(rows) < 0.2, -100, rng.integers(0, classes, rows))
    y = gg.softmax(gg.asarray(rng.normal(size=(rows, classes)).astype(dtype))) if soft else gg.asarray(hard)
    weight = gg.asarray(rng.random(classes).astype(dtype))
    loss = lambda v: softmax_xent(v, y, weight, smoothing=smoothing).mean()

    def step(x):
        kept, (value, slope) = gg.tanh(x), gg.value_and_grad(loss)(x)
        return value, kept * slope  # a gradient in planned memory

    replayed = traced(step, x)
    assert sum("xent" in op for op in ops(replayed.records[0].runner.program)) == 1
    for seed in range(2):
        x = gg.asarray((4 * np.random.default_rng(seed).normal(size=(rows, classes))).astype(dtype))
        for got, want in zip(replayed(x), step(x)):
            assert got.numpy().tobytes() == want.numpy().tobytes()


# --- memory -----------------------------------------------------------------------------------------------------


def test_values_that_live_at_once_have_places_of_their_own():
    rng = np.random.default_rng(1)
    for _ in range(20):
        b = Builder(int(rng.integers(1, 40)))
        values = [b.input()]
        for _ in range(60):
            p, q = (values[i] for i in rng.integers(max(0, len(values) - 6), len(values), 2))
            values.append(b.call("add", p, q))
        program = dead_code(b.program(values[-1]))
        lives = Lives(program)
        places, size = plan(program, lives, dict.fromkeys(range(len(program.calls)), True), set())
        spans = []
        for i, at in places.items():
            assert at % ALIGN == 0
            assert at + program.slots[i].nbytes <= size
            made = next(n for n, c in enumerate(program.calls) if i in c.makes())
            spans.append((made, lives.last[i], at, at + program.slots[i].nbytes))
        for first, last, low, high in spans:
            for first2, last2, low2, high2 in spans:
                if (first, low) != (first2, low2) and low < high2 and low2 < high:
                    assert last <= first2 or last2 <= first  # one may be written over the other's last use
        given = rng.normal(size=b.n)
        with np.errstate(all="ignore"):
            assert Host(program).run(given)[0].tobytes() == program.run(given)[0].tobytes()


def test_memory_is_reused_along_a_chain():
    n, steps = 1 << 14, 20

    def f(x):
        for _ in range(steps):
            x = gg.roll(gg.exp(x * 0.1), 1)
        return x.sum()

    step = traced(f, array(n))
    eager, planned = step.program.peak_bytes
    assert 2 * 4 * n <= eager <= 4 * 4 * n
    assert planned <= 2 * 4 * n + 1024
    assert sum(s.nbytes for s in step.program.slots.values()) > steps * 4 * n


def test_results_are_new_and_gradients_are_not():
    w = array(50, 40).requires_grad_()

    def f(x):
        w.zero_grad()
        y = gg.tanh(x @ w)
        y.sum().backward()
        return y, y.sum()

    step = traced(f, array(1000, 50))
    first = step(array(1000, 50, seed=1))
    grad, kept = w.grad.data, [t.numpy(copy=True) for t in first]
    second = step(array(1000, 50, seed=2))
    assert np.shares_memory(w.grad.data, grad)
    assert all(np.array_equal(t.numpy(), k) for t, k in zip(first, kept))
    assert not any(np.shares_memory(a.data, b.data) for a, b in zip(first, second))


def test_layouts_are_those_of_the_eager_step():
    """Bits may depend on the order of axes, so a planned place has the strides that the eager value had."""

    def f(x):
        y = gg.exp(x.T) * 2
        return (y @ x).sum(), y

    x = array(30, 20)
    step = traced(f, x)
    assert step(x)[1].data.strides == f(x)[1].data.strides


def test_what_looks_at_values_looks_at_every_run():
    """An op may give its argument itself, as assert_finite does; that it is a view must not be taken for granted."""
    state = gg.asarray([1.0, 2.0])
    step = traced(lambda x: gg.assert_finite(state) * x, array(2))
    state[0] = float("inf")
    with pytest.raises(gg.errors.DomainError, match="is inf at"):
        step(array(2))
    b = Builder()
    x = b.input()
    zeros = b.given("capture", 0)
    same = b.call("absorbed", b.call("multiply", x, zeros), zeros, infinite=False)
    b.slots[same].storage = same - 1  # as traced with finite values, where it is its argument
    program = Host(b.program(b.call("add", same, x)))
    for given in (np.arange(4.0), np.array([0, np.nan, 1, np.inf]), np.arange(4.0)):
        with np.errstate(invalid="ignore"):
            assert np.array_equal(program.run(given)[0], given, equal_nan=True)


# --- compiled -----------------------------------------------------------------------------------------------------


@needs_compiler
def test_compiled_steps_stay_close_to_eager_ones():
    outcomes = []
    for wrap in (lambda f: f, gg.replay(compiled=True)):
        gg.random.seed(2)
        f, args = training()
        step = wrap(f)
        outcomes.append([float(step(*args)) for _ in range(8)])
    assert step.replays == 5
    host = step.records[0].runner
    assert host.compiled
    assert host.routines
    np.testing.assert_allclose(outcomes[1], outcomes[0], rtol=1e-4)
    assert len(set(outcomes[0])) == 8


@needs_compiler
@pytest.mark.parametrize("total", [gg.sum, gg.mean])
def test_a_compiled_chain_with_its_sum_and_gradient_is_one_call(total):
    w, b = array(300), array(300, seed=1)

    def f(x):
        return gg.value_and_grad(lambda v: total(gg.tanh(v * w + b) * w))(x)

    step = gg.replay(f, compiled=True)
    x = array(300, seed=2)
    for _ in range(5):
        value, gradient = step(x)
    want, slope = f(x)
    np.testing.assert_allclose(float(value), float(want), rtol=1e-5)
    np.testing.assert_allclose(gradient.numpy(), slope.numpy(), rtol=1e-5, atol=1e-6)
    assert ops(step.records[0].runner.program) == ["chain0"]


@needs_compiler
def test_an_affine_layer_is_a_product_and_a_chain_with_what_follows():
    x, w, b = array(6, 4), array(5, 4, seed=1), array(5, seed=2)

    def f(x):
        return gg.relu(F.linear(x, w, b)) * 2.0

    step = gg.replay(f, compiled=True)
    for _ in range(4):
        got = step(x)
    np.testing.assert_allclose(got.numpy(), f(x).numpy(), rtol=1e-6)
    assert ops(step.program)[0] == "affine"
    assert ops(step.records[0].runner.program) == ["matrix_transpose", "matmul", "chain0"]
    half = [gg.tensor(a.numpy().astype("float16")) for a in (x, w, b)]
    program = traced(lambda x: F.linear(x, *half[1:]), half[0]).program
    assert ops(Host(program, compiled=True).program) == ["affine"]


@needs_compiler
def test_small_values_of_any_op_have_a_place_to_which_compiled_calls_are_bound():
    w = array(7, 3)

    def f(x):
        y = gg.sort(x @ w, axis=0)  # writes nowhere but to a new array
        return gg.exp(y) * 2.0 - y, gg.cumsum(x, axis=1)

    step = gg.replay(f, compiled=True)
    for seed in range(5):
        x = array(4, 7, seed=seed)
        for got, want in zip(step(x), f(x)):
            np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-6)
    lines = step.records[0].runner.source.split("\n")
    assert any(re.fullmatch(r" *b\d+\[\.\.\.\] = f\d+\(.*\)", line) for line in lines)
    assert any(re.fullmatch(r" *h\d+\(\)", line) for line in lines)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_memory_of_a_large_result_comes_back_once_nobody_holds_it(compiled):
    w = array(300, 100)

    def f(x):
        return gg.tanh(x * w) - w

    step = gg.replay(f, compiled=compiled)
    for _ in range(3):
        step(array(300, 100))

    places = {step(array(300, 100, seed=seed)).data.ctypes.data for seed in range(4)}
    assert len(places) == 1
    places, last = set(), None
    for seed in range(6):
        last = step(array(300, 100, seed=seed))  # held while the next is made
        places.add(last.data.ctypes.data)
    assert len(places) == 2
    kept = []  # a result, views of one, what only knows its memory
    for seed, part in enumerate(
        (lambda t: t, lambda t: t.data[1:, ::2], lambda t: t.data.T[3].reshape(-1, 2), memoryview_of)
    ):
        x = array(300, 100, seed=seed)
        kept.append((part(step(x)), part(f(x))))
    x = array(300, 100, seed=9)
    for _ in range(4):  # its own argument
        want, x = f(x), step(x)
        np.testing.assert_allclose(x.numpy(), want.numpy(), rtol=1e-5, atol=1e-6)
    for got, want in kept:
        np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=1e-5, atol=1e-6)
    result = step(x)
    assert result.data.base is None
    assert result.data.flags.owndata


def memoryview_of(t):
    return memoryview(t.data)


@needs_compiler
def test_the_proof_covers_compiled_code(monkeypatch):
    step = gg.replay(lambda x: gg.sin(gg.exp(x)) * x, compiled=True)
    x = array(50)
    for _ in range(2):
        step(x)
    wrong = Chain(1, (Step("sin", (0,)), Step("cos", (1,)), Step("exp", (2,))), (3,))
    host = step.records[0].runner
    compiled = wrong.compile_cpu([np.dtype("float32")])

    def run(*ins):
        out = np.empty(50, "float32")
        compiled([out], ins)
        return [out]

    monkeypatch.setattr(host, "standin", lambda n, call: run)
    with pytest.raises(ReplayError, match=r"the compiled code of .* differs from its ops"):
        step(x)


def test_without_a_compiler_numpy_does_it(monkeypatch):
    monkeypatch.setenv("GPUGRAD_CPU_JIT", "0")
    step = gg.replay(lambda x: gg.sin(gg.exp(x)) * x, compiled=True)
    x = array(50)
    for _ in range(4):
        got = step(x)
    assert got.numpy().tobytes() == (gg.sin(gg.exp(x)) * x).numpy().tobytes()
    assert not step.records[0].runner.compiled


def test_large_chains_run_in_pieces_with_the_same_bits():
    w = array(300_000)

    def f(x):
        y = gg.tanh(x * w + 1.0)
        return y * y - w, gg.relu(y - 0.5)

    step = traced(f, array(300_000, seed=1))
    assert any(op.startswith("chain") for op in ops(step.records[0].runner.program))
    x = array(300_000, seed=2)
    for got, want in zip(step(x), f(x)):
        assert got.numpy().tobytes() == want.numpy().tobytes()
