"""What a step holds: exact bytes of NumPy's arrays, as NumPy tells tracemalloc; and that nothing outlives its use."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.backends import threads
from gpugrad.backends.cpu import CPU
from gpugrad.bench import workloads
from gpugrad.bench.peers import PEERS
from gpugrad.layered import Level, levels, plain
from gpugrad.op import RAW, TABLE
from gpugrad.ops import optim
from gpugrad.ops.elementwise import blocked
from gpugrad.testing.emulator import compiler

from .cuda.conftest import cuda, fake_cupy, registered

ROWS = 2048


def alive(kind):
    gc.collect()
    return sum(isinstance(o, kind) for o in gc.get_objects())


def settled(step, calls):
    for _ in range(calls):
        step()


# --- a training step ----------------------------------------------------------------------------------------------


def peaks(column):
    """Bytes over the model's floor (parameters, batch, activations): held between later steps, and at their peak."""
    peer = PEERS[column].load()("cpu", "float32", 1)
    settled(peer.step(tiny := workloads.find("memory:8"), *tiny.arrays("float32")), 4)
    gc.collect()
    workload = workloads.find(f"memory:{ROWS}")
    tracemalloc.start()
    try:
        arrays = workload.arrays("float32")
        step = peer.step(workload, *arrays)
        del arrays
        settled(step, 4)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        settled(step, 2)
        return held / workload.floor, tracemalloc.get_traced_memory()[1] / workload.floor
    finally:
        tracemalloc.stop()


def test_an_eager_step_takes_no_more_memory_than_one_by_hand():
    """relu's gradient is written over relu's result, where the walk is the last to hold it."""
    _, ours = peaks("gpugrad")
    _, by_hand = peaks("numpy")
    assert ours < by_hand
    assert ours < 1.5


def test_a_replay_holds_what_its_fullest_moment_needs_and_nothing_of_the_steps_before():
    """That moment is the product that makes the gradient of the first hidden layer.

    It needs the second's gradient; the first's values are still wanted, for relu's slope and the next product.
    """
    workload, (first, *hidden, last) = workloads.find(f"memory:{ROWS}"), workloads.WIDTHS
    weights = 4 * sum(a.size for a in workload.arrays("float32")[0])
    done = 4 * (hidden[1] * last + last + hidden[0] * hidden[1])  # gradients of the later layers
    plan = 4 * ROWS * (2 * hidden[0] + hidden[1]) + done
    batch = ROWS * (4 * first + 8)
    held, peak = (ratio * workload.floor for ratio in peaks("gpugrad-replay"))
    assert held < 1.01 * (plan + batch + 2 * weights)  # the parameters and their momentum
    assert peak - held < 1.1 * threads.count() * 2 * 4 * optim.BLOCK  # room that the optimiser's threads work in


# --- what outlives its use ----------------------------------------------------------------------------------------


def test_a_finished_jvp_or_vmap_leaves_nothing():
    x = gg.asarray(np.ones(3))
    before = alive(Level)
    for _ in range(3):
        gg.jvp(lambda x: (x * x).sum(), (x,), (x,))
        gg.vmap(lambda x: gg.jvp(gg.exp, (x,), (x,))[1])(x)
    assert alive(Level) == before


def test_a_replayed_step_keeps_no_trace():
    w = gg.tensor(np.ones(3), requires_grad=True)
    before = alive(Level)

    @gg.replay
    def step():
        w.grad = None
        loss = (w * w).sum()
        loss.backward()
        return loss.detach()

    settled(step, 4)
    assert step.replays
    assert alive(Level) == before


def test_dtypes_of_a_level_that_is_gone_are_plain():
    level = Level()
    made = level.dtype(np.dtype("float32"))
    assert levels(made) == (level,)
    assert plain(made) is np.dtype("float32")
    del level
    gc.collect()
    assert levels(made) == ()
    assert plain(made).metadata is None
    assert made == np.float32


def test_memory_is_given_back_where_the_c_library_can(monkeypatch):
    CPU.release_memory()
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    CPU.release_memory()  # a library without malloc_trim


# --- rules that write over what the forward saved -----------------------------------------------------------------

BIG = (300, 1000)  # more than one piece


def network(keep, act):
    """Gradients of a net whose hidden values are held by the caller or not."""
    random = np.random.default_rng(0)
    w = [gg.tensor(random.normal(size=s).astype("float32"), requires_grad=True) for s in ((1000, 20), (20, 1000))]
    held, h = [], gg.asarray(random.normal(size=BIG).astype("float32"))
    for _ in range(2):
        z = h @ w[0] @ w[1]
        h = act(z)
        held += [z, h]
    loss = (h * h).sum()
    del z, h
    if not keep:
        held.clear()
    before = [h.numpy().copy() for h in held]
    loss.backward()
    for h, b in zip(held, before):
        np.testing.assert_array_equal(h.numpy(), b)
    return [v.grad.numpy() for v in w]


@pytest.mark.parametrize("name", ["relu", "gelu", "silu"])
def test_activations_give_the_same_bits_over_what_they_saved_and_beside_it(name, monkeypatch):
    lent = []
    run = TABLE[f"{name}_bwd"].impls[np.ndarray]

    def watched(*args, **attrs):
        lent.append(attrs.get("reuse", False))
        return run(*args, **attrs)

    monkeypatch.setattr(RAW[np.ndarray], f"{name}_bwd", watched, raising=False)
    over, beside = (network(keep, getattr(gg, name)) for keep in (False, True))
    assert lent == [True, True, False, False]
    for a, b in zip(over, beside):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("shape", [(3,), (70, 70), BIG])
def test_relu_bwd_writes_where_it_is_told(dtype, shape):
    random = np.random.default_rng(0)
    t, out = (random.normal(size=shape).astype(dtype) for _ in range(2))
    t.flat[1], out.flat[2] = -0.0, np.nan
    want, run = np.where(out <= 0, 0, t), TABLE["relu_bwd"].impls[np.ndarray]
    into = np.full(shape, 7, dtype)
    for got in (run(t, out), run(t, out, into=into), run(t, out.copy(), reuse=True)):
        assert got.dtype == dtype
        assert got.tobytes() == want.astype(dtype).tobytes()


@pytest.mark.skipif(compiler() is None, reason="the emulator needs a C++ compiler")
@pytest.mark.parametrize("name", ["relu", "gelu", "silu"])
def test_their_kernels_do_so_too(name):
    random = np.random.default_rng(0)
    x, m = (random.normal(size=(70, 70)).astype("float32") for _ in range(2))
    act = getattr(gg, name)
    with registered(cuda.load(fake_cupy)):
        v = gg.tensor(m, device="cuda", requires_grad=True)
        run, given = TABLE[f"{name}_bwd"].impls[type(v.data)], []

        def watched(t, saved, **attrs):
            made = run(t, saved, **attrs)
            given.append((attrs.get("reuse", False), made is saved))
            return made

        setattr(RAW[type(v.data)], f"{name}_bwd", watched)
        for held in (False, True):
            z = v * 2
            h = act(z)
            loss = (h * gg.tensor(x, device="cuda")).sum()
            if not held:
                del z, h
            loss.backward()
            got = v.grad.numpy().copy()
            if not held:
                first = got
        assert given == [(True, True), (False, False)]
        np.testing.assert_array_equal(got, 2 * first)


def test_pieces_are_written_over_the_last_array():
    @blocked
    def plain_sum(xp, t, x):
        return t + x

    @blocked
    def placed_sum(xp, t, x, into=None):
        return np.add(t, x, out=into)

    for f in (plain_sum, placed_sum):
        t, x, into = np.ones(BIG), np.ones(BIG), np.zeros(BIG)
        assert f(np, t, x, into=into) is into
        assert f(np, t, x, reuse=True) is x
        assert (into == 2).all()
        assert (x == 2).all()


def test_a_layered_cotangent_leaves_what_is_saved_alone():
    """The halves of a dual are computed one after the other, both from what was saved."""
    random = np.random.default_rng(0)
    w, x = random.normal(size=(4, 3)), gg.asarray(random.normal(size=(5, 4)))

    def slope(s):
        v = gg.tensor(w, requires_grad=True)
        return gg.gradients((gg.relu(x @ v) * s).sum(), v)

    s = gg.asarray(np.array(2.0))
    value, tangent = gg.jvp(slope, (s,), (gg.ones_like(s),))
    np.testing.assert_array_equal(value.numpy(), 2 * tangent.numpy())
    np.testing.assert_array_equal(value.numpy(), slope(s).numpy())
    rows = gg.vmap(slope)(gg.asarray(np.array([2.0, 1.0])))
    np.testing.assert_array_equal(rows.numpy()[0], 2 * rows.numpy()[1])
