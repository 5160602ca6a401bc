"""The profile: what it counts, that it adds up, and that nothing of it stays behind."""

from __future__ import annotations

import contextlib
import inspect
import threading

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import compiler
from gpugrad.chain import numpy_runner
from gpugrad.op import RAW, TABLE
from gpugrad.ops.guard import assert_finite
from gpugrad.profile import Profile, Row
from gpugrad.swap import Around

HERE = __file__.rpartition("/")[2]


def rows(p: Profile) -> dict[tuple[str, str], Row]:
    return {(r.op, r.phase): r for r in p.rows}


def test_calls_bytes_and_products_are_counted():
    x, w = gg.ones((32, 64)), gg.tensor(np.ones((64, 16), "f"), requires_grad=True)
    with gg.profile() as p:
        gg.exp(x @ w).sum().backward()
    found = rows(p)
    product = found["matmul", "forward"]
    assert (product.calls, product.flops) == (2, 2 * 2 * 32 * 64 * 16)  # forward, and the rule for w
    assert product.bytes == 4 * (32 * 64 + 64 * 16 + 32 * 16) * 2
    assert found["exp", "forward"].bytes == 2 * 4 * 32 * 16
    assert found["exp", "backward"].calls == 1
    assert found["matmul", "backward"].bytes == 0  # the products in it count theirs
    assert found["matrix_transpose", "forward"].bytes == 0  # a view


def test_times_add_up_to_the_whole():
    x = gg.tensor(np.full((768, 768), 1e-3, "float32"), requires_grad=True)

    def step() -> None:
        y = x
        for _ in range(4):
            y = gg.sin(y @ x)
        y.sum().backward()

    step()
    for _ in range(8):  # a neighbour may take the processor between two ops
        with gg.profile() as p:
            step()
        assert p.seconds == pytest.approx(p.outside + sum(r.seconds for r in p.rows))
        if p.outside < 0.05 * p.seconds:
            return
    pytest.fail(str(p))


def test_lines_are_the_users():
    with gg.profile(lines=True) as p:
        gg.exp(gg.ones(3))
        line = inspect.currentframe().f_lineno - 1
    (found,) = [r.line for r in p.rows if r.op == "exp"]
    assert f"{HERE}:{line}" in found


def test_everything_is_as_before_afterwards():
    ops = [(op, dict(op.impls), op.vjps, op.joint) for op in TABLE.values()]
    with pytest.raises(gg.errors.ShapeError), gg.profile() as p:
        gg.exp(gg.ones(3)) @ gg.ones(4)
    assert "exp" in [r.op for r in p.rows]
    for op, impls, vjps, joint in ops:
        assert impls.items() <= op.impls.items()
        assert op.vjps == vjps
        assert op.joint is joint
    assert RAW[np.ndarray].exp is TABLE["exp"].impls[np.ndarray]


def test_other_threads_are_not_measured():
    with gg.profile() as p:
        other = threading.Thread(target=lambda: gg.exp(gg.ones(3)))
        other.start()
        other.join()
    assert not p.rows


def test_results_and_second_order_are_the_same():
    def f(x: gg.Tensor) -> gg.Tensor:
        return (gg.sin(x) * x).sum()

    x = gg.tensor([0.3, 0.7], dtype=gg.float64)
    plain = gg.grad(lambda x: gg.grad(f)(x).sum())(x).numpy()
    with gg.profile() as p:
        watched = gg.grad(lambda x: gg.grad(f)(x).sum())(x).numpy()
    assert (plain == watched).all()
    assert ("sin", "backward") in rows(p)


def test_text_and_data():
    with gg.profile() as p:
        gg.ones((256, 256)) @ gg.ones((256, 256))
    assert p.roofline(p.rows[0]) is None
    p.calibrate()
    (data,) = [r for r in p.json()["rows"] if r["op"] == "matmul"]
    assert data["roofline"] > 0
    text = str(p)
    assert "matmul" in text
    assert "outside the ops" in text
    assert text.endswith("on cpu")


def test_attention_counts_its_products():
    q = gg.tensor(np.ones((2, 3, 8, 4), "f"), requires_grad=True)
    for causal in (False, True):
        with gg.profile() as p:
            gg.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=causal).sum().backward()
        two = 2 * 2 * 2 * 3 * 8 * 8 * 4 // (1 + causal)
        assert rows(p)["attention", "forward"].flops == two
        assert rows(p)["attention_bwd", "forward"].flops == 5 * two // 2


# --- replays ------------------------------------------------------------------------------------------------------


def training(compiled: bool = False):
    """A replayed step with dropout and Adam, and what it leaves."""
    gg.random.seed(5)
    model = gg.nn.Sequential(gg.nn.Linear(40, 32), gg.nn.ReLU(), gg.nn.Dropout(0.25), gg.nn.Linear(32, 3))
    opt = gg.optim.Adam(model.parameters(), lr=0.01)

    @gg.replay(compiled=compiled)
    def step(x, y):
        opt.zero_grad()
        loss = gg.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        return loss

    rng = np.random.default_rng(0)
    x, y = gg.asarray(rng.normal(size=(16, 40)).astype("float32")), gg.asarray(rng.integers(0, 3, 16))

    def once() -> list[bytes]:
        left = [step(x, y), *model.parameters(), *(p.grad for p in model.parameters())]
        return [t.numpy().tobytes() for t in left]

    return once, step


@pytest.mark.parametrize("compiled", [False, True])
def test_a_profiled_replay_has_the_bits_and_the_state_of_any_other(compiled):
    once, _ = training(compiled)
    wanted = [once() for _ in range(9)]
    once, step = training(compiled)
    assert [once() for _ in range(4)] == wanted[:4]  # eager, traced, proved, replayed
    for profiled, want in zip((True, True, False, True, False), wanted[4:]):
        with gg.profile() if profiled else contextlib.nullcontext() as p:
            assert once() == want
        if profiled:
            phases = {r.phase for r in p.rows}
            assert "replayed" in phases
            assert phases <= {"replayed", "compiled", "copied", "prepared"}
    assert step.replays == 6


def test_a_replay_is_told_call_by_call():
    w = gg.tensor(np.ones((64, 16), "f"), requires_grad=True)
    opt = gg.optim.SGD([w], lr=0.1)

    @gg.replay
    def step(x):
        opt.zero_grad()
        loss = gg.exp(x @ w).sum()
        loss.backward()
        opt.step()
        return loss

    line = inspect.getsourcelines(step.f)[1] + 3
    x = gg.ones((32, 64))
    for _ in range(3):
        step(x)
    with gg.profile() as p:
        for _ in range(5):
            step(x)
    with gg.profile(lines=True) as detailed:
        step(x)
    assert {r.op for r in detailed.rows if r.line.startswith(f"{__file__}:{line}")} == {"exp", "matmul", "sum"}
    found = {r.op: r for r in p.rows}
    product = found["matmul"]
    assert (product.phase, product.calls, product.flops) == ("replayed", 10, 5 * 2 * 2 * 32 * 64 * 16)
    assert product.bytes == 10 * 4 * (32 * 64 + 64 * 16 + 32 * 16)
    assert found["exp"].bytes == 5 * 4 * 2 * 32 * 16
    assert found["results"].phase == "copied"
    assert found["sgd"].bytes >= 5 * 4 * 3 * 64 * 16  # the parameter is read and written
    assert all(r.calls % 5 == 0 for r in p.rows)
    assert "exp replayed" in str(p)
    calls = [c.op for c in step.fused.calls]
    assert {r.op for r in p.rows if r.phase == "replayed"} <= set(calls)


def test_an_update_reads_and_writes_in_eager_steps_too():
    w = gg.tensor(np.ones((64, 16), "f"), requires_grad=True)
    opt = gg.optim.SGD([w], lr=0.1)
    w.sum().backward()
    with gg.profile() as p:
        opt.step()
    assert {r.op: r.bytes for r in p.rows}["sgd"] // (4 * 64 * 16) == 3


def test_pieces_are_called_after_their_ops():
    x = gg.tensor(np.linspace(-1, 1, 1 << 18, dtype="float32"))
    few = gg.replay(lambda x: gg.nn.functional.relu(x * 2 + 1))
    many = gg.replay(lambda x: gg.sin(gg.cos(gg.exp(x * 2 + 1))) * x)
    for _ in range(3):
        few(x), many(x)
    with gg.profile() as p:
        few(x), many(x)
    found = {r.op: r for r in p.rows if r.phase == "chained"}
    assert found.keys() == {"multiply+add+relu", "multiply+add+..+multiply (6)"}
    assert {r.bytes for r in found.values()} == {2 * x.data.nbytes}
    assert "multiply+add+..+multiply (6) chained" in str(p)


@pytest.mark.skipif(not compiler.enabled(), reason="no C++ compiler")
def test_compiled_pieces_say_so():
    x, w = gg.ones((64, 48)), gg.ones((48, 40))
    step = gg.replay(lambda x: gg.softmax(gg.nn.functional.relu(x @ w * 2 + 1)).sum(-1), compiled=True)
    for _ in range(3):
        step(x)
    with gg.profile() as p:
        step(x)
    found = {(r.op, r.phase) for r in p.rows}
    assert ("multiply+add+relu", "compiled") in found
    assert ("softmax", "compiled") in found


def test_times_of_a_replay_add_up():
    x = gg.tensor(np.full((512, 512), 1e-3, "float32"))
    step = gg.replay(lambda x: gg.sin(gg.sin(x @ x) @ x).sum())
    for _ in range(3):
        step(x)
    for _ in range(8):  # a neighbour may take the processor between two steps
        with gg.profile() as p:
            for _ in range(4):
                step(x)
        assert p.seconds == pytest.approx(p.outside + sum(r.seconds for r in p.rows))
        assert min(r.seconds for r in p.rows) >= 0
        if p.outside < 0.05 * p.seconds:
            return
    pytest.fail(str(p))


def test_nothing_is_in_the_way_of_replays_outside():
    from gpugrad.recorded import Recorded

    x = gg.ones(8)
    step = gg.replay(lambda x: gg.exp(x))
    for _ in range(3):
        step(x)
    plain = Recorded.run
    outer, inner = contextlib.ExitStack(), contextlib.ExitStack()
    a = outer.enter_context(gg.profile())
    b = inner.enter_context(gg.profile())
    assert Recorded.run is not plain
    step(x)
    outer.close()  # not in the order that they were opened
    step(x)
    other = threading.Thread(target=step, args=(x,))
    other.start()
    other.join()
    inner.close()
    assert Recorded.run is plain
    step(x)
    assert [rows(p)["exp", "replayed"].calls for p in (a, b)] == [1, 2]
    assert not [r for p in (a, b) for r in p.rows if r.phase == "forward"]


def test_a_step_that_is_traced_under_a_profile_stays_as_fast():
    def make():
        step = gg.replay(lambda x: gg.sin(gg.flip(x) * 2.5 + 1.5) * x)
        for _ in range(3):
            step(x)
        return step

    x = gg.tensor(np.linspace(-1, 1, 1 << 18, dtype="float32"))
    with gg.profile():
        step = make()
    runner = step.records[-1].runner
    assert runner.source == make().records[-1].runner.source
    assert not [v for v in runner.text.names.values() if isinstance(v, Around)]
    (chain,) = runner.program.chains.values()
    run, _ = numpy_runner(chain, (np.dtype("float32"),) * chain.inputs)
    plan = inspect.getclosurevars(run).nonlocals["plan"]
    assert [ufunc for _, _, ufunc, *_ in plan] == [True] * len(chain.steps)


def test_a_replay_that_raises_leaves_nothing_behind():
    step = gg.replay(lambda x: gg.exp(assert_finite(x)))
    x = gg.ones(4)
    for _ in range(3):
        step(x)
    with gg.profile() as p:
        with pytest.raises(gg.errors.DomainError):
            step(gg.tensor([1.0, np.nan, 0.0, 0.0]))
        step(x)
        gg.sin(x)
    found = {(r.op, r.phase): r.calls for r in p.rows if r.phase in ("replayed", "forward")}
    assert found == {("assert_finite", "replayed"): 1, ("exp", "replayed"): 1, ("sin", "forward"): 1}
