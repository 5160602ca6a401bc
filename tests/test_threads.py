"""Work that several threads share: every piece once, errors, nesting, forks, and the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.backends.threads import SHARED, count, share, spans

WAIT = 60  # seconds, until a thread that does not come is missed


@pytest.fixture(params=[1, 2, 3])
def several(request, monkeypatch):
    monkeypatch.setenv("GPUGRAD_THREADS", str(request.param))
    return request.param


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setenv("GPUGRAD_THREADS", "2")


def test_every_piece_is_done_once(several):
    done = []
    share(done.append, iter(range(1000)), SHARED)
    assert sorted(done) == list(range(1000))


def test_all_threads_take_part(several):
    meeting, names = threading.Barrier(several), set()

    def work(piece):
        meeting.wait(WAIT)
        names.add(threading.current_thread().name)

    share(work, range(several), several * SHARED)
    assert len(names) == several


@pytest.mark.parametrize("size, more", [(SHARED - 1, 0), (SHARED, 1)])
def test_only_large_arrays_are_shared(two, size, more):
    before = threading.current_thread()
    met, others = threading.Event(), set()

    def work(piece):
        if threading.current_thread() is not before:
            others.add(threading.current_thread())
            met.set()
        elif more:
            met.wait(WAIT)

    share(work, range(3), size)
    assert len(others) == more


@pytest.mark.parametrize("where", ["caller", "helper"])
def test_errors_surface_and_end_the_work(two, where):
    here, meeting, done = threading.current_thread(), threading.Barrier(2), []

    def work(piece):
        if piece < 2:
            meeting.wait(WAIT)
            if (threading.current_thread() is here) == (where == "caller"):
                raise ValueError(where)
        done.append(piece)

    with pytest.raises(ValueError, match=where):
        share(work, range(10**9), SHARED)
    share(done.append, [-1], SHARED)
    assert done[-1] == -1


def test_an_error_of_what_makes_the_pieces(several):
    def pieces():
        yield 1
        raise KeyError("piece")

    with pytest.raises(KeyError, match="piece"):
        share(lambda piece: None, pieces(), SHARED)


def test_work_within_work_is_done_by_one_thread(several):
    done = []

    def outer(i):
        inside = set()
        share(lambda j: (inside.add(threading.current_thread()), done.append((i, j))), range(4), SHARED)
        assert inside == {threading.current_thread()}

    share(outer, range(6), SHARED)
    assert sorted(done) == [(i, j) for i in range(6) for j in range(4)]


def test_a_caller_does_not_wait_for_a_thread_that_is_busy_elsewhere(two):
    busy, go = threading.Event(), threading.Event()
    here = threading.Barrier(2)

    def hold(piece):
        here.wait(WAIT)  # the helper and the first caller
        busy.set()
        go.wait(WAIT)

    first = threading.Thread(target=share, args=(hold, range(2), SHARED))
    first.start()
    try:
        assert busy.wait(WAIT)
        done = []
        share(done.append, range(5), SHARED)
        assert done == list(range(5))
    finally:
        go.set()
        first.join(WAIT)


def test_callers_of_several_threads(two):
    found = []

    def caller(k):
        out = np.zeros(300_000)
        share(lambda s: np.add(out[s], k, out=out[s]), spans(len(out), 1), len(out))
        found.append((out == k).all())

    callers = [threading.Thread(target=caller, args=(k,)) for k in range(1, 9)]
    for c in callers:
        c.start()
    for c in callers:
        c.join(WAIT)
    assert found == [True] * 8


def test_threads_have_the_error_settings_of_their_caller(two):
    meeting = threading.Barrier(2)

    def work(piece):
        meeting.wait(WAIT)
        if threading.current_thread() is not threading.main_thread():
            np.log(np.zeros(3))

    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        share(work, range(2), SHARED)


@pytest.mark.parametrize("length, each", [(7, 100_000), (5, 10**7), (600_000, 1), (3, 0), (0, 4)])
def test_spans_cover_an_axis(length, each):
    found = spans(length, each)
    assert [i for s in found for i in range(length)[s]] == list(range(length))
    assert all((s.stop - s.start) * each >= SHARED for s in found if each)


@pytest.mark.parametrize(
    "given, expected",
    [({"OMP_NUM_THREADS": "1"}, 1), ({"OMP_NUM_THREADS": "5,2"}, 5), ({"GPUGRAD_THREADS": "0"}, 1),
     ({"GPUGRAD_THREADS": "3", "OMP_NUM_THREADS": "1"}, 3)],
)  # fmt: skip
def test_the_environment_says_how_many(monkeypatch, given, expected):
    for name in ("GPUGRAD_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    alone = count()
    assert alone >= 1
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert count() == alone
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert count() == expected


SCRIPT = """
import os, threading
import numpy as np, gpugrad as gg
from gpugrad.backends.threads import share, spans
assert threading.active_count() == 1  # importing starts no thread
out = np.zeros(400_000)
def work():
    share(lambda s: np.add(out[s], 1, out=out[s]), spans(len(out), 1), len(out))
meeting = threading.Barrier(2)
share(lambda piece: meeting.wait(60), range(2), len(out))  # both threads run
child = os.fork()
if child == 0:
    import signal
    signal.alarm(60)
    meeting = threading.Barrier(2)
    share(lambda piece: meeting.wait(50), range(2), len(out))  # a helper of its own
    work()
    os._exit(0 if (out == 1).all() else 1)
assert os.waitpid(child, 0)[1] == 0
import atexit
atexit.register(lambda: (work(), print("done", out.min())))  # when no thread can be started
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_imports_forks_and_the_end_of_the_interpreter():
    surroundings = {**os.environ, "GPUGRAD_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=surroundings, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done", "1.0"]


def steps():
    """Large calls that are shared, as functions of nothing that give arrays."""
    rng = np.random.default_rng(0)
    f32 = lambda *shape: gg.asarray(rng.normal(size=shape).astype("float32"))
    columns, rows, w, x = f32(9, 300, 1), f32(9, 1, 200), f32(300_000), f32(300_000)
    chain = gg.replay(lambda x: (gg.tanh(x * w + 1.0) * x, gg.relu(w - x)))
    yield "outer", lambda: (gg.matmul(columns, rows),)
    yield "chain", lambda: chain(x)
    for form in ("none", "tanh"):
        yield f"gelu {form}", lambda form=form: gg.vjp(lambda x: gg.gelu(x, form), x)[1](w)
    queries, keys, values, upstream = f32(4, 8, 96, 16), f32(4, 4, 96, 16), f32(4, 4, 96, 16), f32(4, 8, 96, 16)
    attend = lambda *a: gg.nn.functional.scaled_dot_product_attention(*a, is_causal=True, enable_gqa=True)
    yield "attention", lambda: gg.vjp(attend, queries, keys, values)[1](upstream)
    convolve = lambda x, k: gg.nn.functional.conv2d(x, k, padding=2)
    for channels in (1, 8):  # of one the products are small
        images, kernels, slopes = f32(32, channels, 24, 24), f32(6, channels, 5, 5), f32(32, 6, 24, 24)
        yield "convolution", lambda a=(images, kernels, slopes): gg.vjp(convolve, *a[:2])[1](a[2])
    for kind in (gg.optim.SGD, gg.optim.Adam, gg.optim.Nadam, gg.optim.RMSprop, gg.optim.Adadelta):
        yield kind.__name__, lambda kind=kind: updated(kind, x[:3], gg.concat([w, x]))
    labels, wide, long = gg.asarray(rng.integers(0, 10, 30_000)), f32(1200, 300), f32(30_000, 10)
    loss = lambda x: gg.nn.functional.cross_entropy(x, labels[: len(x)])
    joined = gg.replay(lambda x: gg.value_and_grad(loss)(x))
    for logits in (wide, long):
        yield "cross-entropy", lambda logits=logits: gg.value_and_grad(loss)(logits)
        yield "replayed cross-entropy", lambda logits=logits: joined(logits)


def updated(kind, small, large):
    """A small and a large parameter after three steps."""
    params = [gg.tensor(a.numpy(), requires_grad=True) for a in (small, large)]
    optimizer = kind(params, lr=0.1, **({"momentum": 0.9} if kind is gg.optim.SGD else {}))
    for _ in range(3):
        optimizer.zero_grad()
        sum((p * p * p).sum() for p in params).backward()
        optimizer.step()
    return [p.detach() for p in params]


def test_results_have_the_same_bits_with_any_number_of_threads(monkeypatch):
    for name, run in steps():
        seen = []
        for n in (1, 2, 3, 1, 2):  # a replay is traced first
            monkeypatch.setenv("GPUGRAD_THREADS", str(n))
            seen.append([a.numpy().tobytes() for a in run()])
        assert all(s == seen[0] for s in seen), name
