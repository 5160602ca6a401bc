"""Streams, events and copies that do not wait, on a double that does work as late and as oddly as a GPU may.

Each test runs under many orders. Where a wait is left out on purpose, some order must give a wrong number: that shows
that the others would be seen as well.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backends, data, nn, optim
from gpugrad.errors import DomainError
from gpugrad.nn import functional as F
from gpugrad.op import TABLE
from gpugrad.testing import fake_cupy
from gpugrad.testing.emulator import compiler
from gpugrad.train import Trainer

from .test_double import CASES, arguments

pytestmark = [pytest.mark.skipif(compiler() is None, reason="no C++ compiler"), pytest.mark.usefixtures("double")]
SEEDS = range(20)


def outcomes(work):
    """What `work` gives under each order."""
    for seed in SEEDS:
        with fake_cupy.late(seed), np.errstate(all="ignore"):
            try:
                found = work()
            except (gg.errors.RangeError, DomainError) as error:  # labels that were never written
                found = error
        yield found


def always(work, expected):
    assert [seed for seed, got in zip(SEEDS, outcomes(work)) if got != expected] == []


def sometimes_wrong(work, expected):
    """Whether a fault is seen under one of the orders."""
    return any(got != expected for got in outcomes(work))


def on_gpu(values, dtype="float32"):
    return gg.asarray(np.asarray(values, dtype)).to("cuda")


# --- the order of two streams -------------------------------------------------------------------------------------


def test_one_stream_needs_no_waits():
    def work():
        x = on_gpu([1, 2, 3])
        for _ in range(5):
            x = gg.exp(x) - 1
            x = x / gg.sum(x)
        return x.tolist()

    always(work, work())


def produce_and_consume(order):
    side = gg.Stream()
    x = on_gpu([1, 2, 3])
    side.wait(gg.current_stream()) if "before" in order else None
    with side:
        y = gg.cumulative_sum(x * 2)
    gg.current_stream().wait(side if "stream" in order else side.record()) if "after" in order else None
    return (y + 1).tolist()


@pytest.mark.parametrize("order", ["before after", "before after stream"])
def test_two_streams_wait_for_each_other(order):
    always(lambda: produce_and_consume(order), [3, 7, 13])


@pytest.mark.parametrize("order", ["", "before", "after"])
def test_a_missing_wait_is_seen(order):
    assert sometimes_wrong(lambda: produce_and_consume(order), [3, 7, 13])


def test_the_host_waits_for_the_current_stream_only():
    def work(wait):
        side, out = gg.Stream(), on_gpu([0, 0])
        gg.synchronize()
        with side, gg.no_grad():
            out[...] = on_gpu([1, 2])
            event = side.record()
        {"stream": side.synchronize, "event": event.synchronize, "all": gg.synchronize, "": lambda: None}[wait]()
        assert side.done >= bool(wait)
        return out.tolist()

    for wait in ("stream", "event", "all"):
        always(lambda wait=wait: work(wait), [1, 2])
    assert sometimes_wrong(lambda: work(""), [1, 2])


def test_a_wait_is_for_what_was_given_until_then():
    """Work of the other stream after the event is not waited for; nor does a later record move the event."""

    def work():
        side, x = gg.Stream(), on_gpu([1])
        side.wait(gg.current_stream())
        with side:
            y = x + 1
            event = side.record()
            for _ in range(10):
                z = gg.exp(x)
        gg.current_stream().wait(event)
        value = (y * 3).item()
        return value, side.done, z is not None

    found = list(outcomes(work))
    assert {value for value, _, _ in found} == {6.0}
    assert {done for _, done, _ in found} == {True, False}


def test_streams_nest_and_are_restored():
    first, second = gg.Stream(), gg.Stream("cuda:0")
    outer = gg.current_stream()
    with first:
        assert gg.current_stream().raw is first.raw
        with second, first:
            assert gg.current_stream().raw is first.raw
        assert gg.current_stream().raw is first.raw
    with contextlib.suppress(KeyError), second:
        raise KeyError
    assert gg.current_stream().raw is outer.raw
    assert repr(first) == f"Stream('cuda:0', {first.raw.ptr:#x})"
    assert first.device == outer.device == "cuda:0"


def test_time_between_events():
    def work():
        start = gg.current_stream().record()
        x = gg.exp(on_gpu(np.ones(1000)))
        end = gg.current_stream().record()
        was_done = end.done
        end.synchronize()
        assert end.done
        assert end.seconds_since(start) > 0
        del x
        return was_done

    assert set(outcomes(work)) == {True, False}
    with fake_cupy.late(seed_of_rate(0.0)):
        start = gg.current_stream().record()
        with pytest.raises(fake_cupy.CUDARuntimeError, match="NotReady"):
            gg.current_stream().record().seconds_since(start)


def seed_of_rate(rate):
    """A seed under which the device is that quick while the host goes on."""
    from gpugrad.testing.fake_streams import Late

    return next(seed for seed in range(100) if Late(seed).rate == rate)


def test_a_stream_of_another_library_is_used_as_it_is():
    """As PyTorch's: both libraries' work in one order, and memory from one pool; see also test_devices."""
    theirs = fake_cupy.cuda.Stream()

    class Foreign:
        def __cuda_stream__(self):
            return 0, theirs.ptr

    def work(external):
        with theirs:
            a = fake_cupy.arange(4.0) * 2  # the other library's
        with gg.Stream(external=external):
            b = gg.asarray(a) + 1
        with theirs:
            return fake_cupy.asnumpy(b.data * 10).tolist()

    for external in (theirs.ptr, Foreign(), theirs):
        if external is not theirs or hasattr(theirs, "__cuda_stream__"):
            always(lambda external=external: work(external), [10, 30, 50, 70])
    assert sometimes_wrong(lambda: work(fake_cupy.cuda.Stream().ptr), [10, 30, 50, 70])


# --- memory -------------------------------------------------------------------------------------------------------


def test_memory_of_another_stream_is_kept_while_it_is_read():
    def work(keep):
        side = gg.Stream()
        with side:
            x = on_gpu(np.arange(3)) * 2
        here = gg.current_stream()
        here.wait(side)
        y = gg.exp(x) * 0 + x
        here.keep(x) if keep else None
        del x
        with side:
            on_gpu(np.zeros(3))  # which may lie there
        return y.tolist()

    always(lambda: work(True), [0, 2, 4])
    assert sometimes_wrong(lambda: work(False), [0, 2, 4])


def test_kept_memory_is_let_go():
    backend = backends.get("cuda")
    backend.kept.clear()
    used = gg.memory()["used"]
    for _ in range(3):
        x = on_gpu(np.ones(1000))
        gg.current_stream().keep(x)
        del x
        gg.synchronize()
    assert gg.memory()["used"] - used <= 4096
    with fake_cupy.late(seed_of_rate(0.0)):
        for _ in range(3):
            gg.current_stream().keep(on_gpu(np.ones(1000)))
        assert len(backend.kept) == 3  # two of them were kept before
        gg.synchronize()
        gg.current_stream().keep()
        assert len(backend.kept) == 1


# --- copies -------------------------------------------------------------------------------------------------------


def test_ordinary_copies_may_forget_their_source():
    """NumPy arrays, pinned or not, are read before the call returns; values of the device when they are there."""

    def work(pinned):
        host = np.arange(4, dtype="float32")
        source = gg.asarray(host).pin_memory() if pinned else gg.asarray(host)
        x = source.to("cuda")
        source.data[...] = -1
        return (x + 1).to("cpu").tolist()

    for pinned in (False, True):
        always(lambda pinned=pinned: work(pinned), [1, 2, 3, 4])


def test_pinned_memory_may_be_dropped_while_it_is_copied(monkeypatch):
    def work():
        there = [gg.asarray(np.full(8, i, "float32")).pin_memory().to("cuda", non_blocking=True) for i in range(4)]
        return [gg.sum(x).item() for x in there]

    always(work, [0, 8, 16, 24])
    monkeypatch.setattr(backends.get("cuda"), "keep", lambda *_: None)
    assert sometimes_wrong(work, [0, 8, 16, 24])


def test_a_copy_that_does_not_wait_reads_its_source_later():
    def work(wait):
        source = gg.asarray(np.arange(4, dtype="float32")).pin_memory()
        x = source.to("cuda", non_blocking=True)
        gg.current_stream().synchronize() if wait else None
        source.data[...] = -1
        return x.tolist()

    always(lambda: work(True), [0, 1, 2, 3])
    assert sometimes_wrong(lambda: work(False), [0, 1, 2, 3])


def test_values_come_back_without_waiting(monkeypatch):
    def work(wait=True):
        x = on_gpu(np.arange(4))
        fake_cupy.waited.clear()
        host = (x * 2).to("cpu", non_blocking=True)
        other = (x * 3).to("cpu", non_blocking=True)
        del x
        assert fake_cupy.waited == []
        gg.current_stream().synchronize() if wait else None
        return host.tolist(), other.tolist()

    always(work, ([0, 2, 4, 6], [0, 3, 6, 9]))
    assert sometimes_wrong(lambda: work(False), ([0, 2, 4, 6], [0, 3, 6, 9]))


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_copies_of_every_shape_and_layout(shape):
    a = np.arange(np.prod(shape, dtype=int), dtype="float32").reshape(shape)
    for x in (a, a.T, np.asfortranarray(a)) if a.ndim else (a,):
        there = gg.asarray(x).pin_memory().to("cuda", non_blocking=True)
        back = there[..., ::-1].to("cpu", non_blocking=True) if a.ndim else there.to("cpu", non_blocking=True)
        gg.synchronize()
        assert np.array_equal(back.numpy(), x[..., ::-1] if a.ndim else a)
        assert backends.get("cuda").is_pinned(back.data)


def test_copies_are_differentiable():
    def work():
        x = gg.asarray(np.arange(3.0)).requires_grad_()
        y = gg.sum((x.to("cuda", non_blocking=True) ** 2).to("cpu", non_blocking=True))
        gg.current_stream().synchronize()
        y = gg.sum(x.to("cuda", non_blocking=True) ** 2)
        y.backward()
        return x.grad.tolist()

    always(work, [0, 2, 4])


def test_pin_memory():
    x = gg.asarray(np.arange(6.0).reshape(2, 3).T).requires_grad_()
    pinned = x.pin_memory()
    assert pinned.numpy().tolist() == x.numpy().tolist()
    assert pinned.device == "cpu"
    assert not pinned.requires_grad
    assert pinned.pin_memory() is pinned
    with pytest.raises(gg.errors.DeviceError, match="only memory of the host"):
        on_gpu([1]).pin_memory()


# --- the product's own paths --------------------------------------------------------------------------------------


def test_every_op_and_its_gradient():
    """None reads early what the device has yet to do, or has its temporaries taken away."""

    def work(name, sample, state):
        gg.random.default.load_state_dict(state)
        args, op = arguments(sample, "cuda", "float32"), TABLE[name]
        out = op.call(*args, **sample.attrs)
        outs = out if isinstance(out, tuple) else (out,)
        roots = [o for o in sample.chosen(outs) if o.node is not None]
        leaves = [t for t in args if t is not None and t.node is not None]
        grads = gg.gradients(roots, leaves, [gg.exp(o.detach() * 0) for o in roots]) if roots else []
        return [t.numpy().tobytes() for t in (*outs, *grads) if t is not None]

    state, wrong = gg.random.default.state_dict(), []
    with np.errstate(all="ignore"):
        for seed, case in enumerate(CASES):
            want = work(*case.values, state)
            with fake_cupy.late(seed):
                got = work(*case.values, state)
            wrong += [case.id] if got != want else []
    assert wrong == []


def model():
    gg.random.seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.BatchNorm1d(16), nn.Linear(16, 4)).to("cuda")


def blobs():
    x, y = data.blobs(28, classes=4, features=6, spread=4.0, seed=0)
    return gg.asarray(x), gg.asarray(y)


def train(loader, replay=False, in_stream=False):
    """Bits of all parameters and buffers after two epochs, and the logged numbers."""
    net = model()
    stream = gg.Stream() if in_stream else gg.current_stream()
    stream.wait(gg.current_stream())
    with stream:
        trainer = Trainer(net, optim.Adam(net.parameters(), lr=0.05), log_every=5, replay=replay)
        records = trainer.fit(loader, 2)
        bits = [t.numpy().tobytes() for t in net.state_dict().values()]
    return bits, [(r["train_loss"], r["train_accuracy"]) for r in records]


@pytest.mark.parametrize("replay, in_stream", [(False, False), (False, True), (True, True)])
def test_training_on_the_device(replay, in_stream):
    def work():
        return train(data.ArrayLoader(*blobs(), batch_size=14, device="cuda"), replay, in_stream)

    always(work, work())


def fetched(ahead):
    return train(data.Prefetch(data.ArrayLoader(*blobs(), batch_size=7), ahead=ahead))


@pytest.mark.parametrize("ahead", [1, 4])
def test_batches_that_are_copied_ahead(ahead):
    expected = train(data.ArrayLoader(*blobs(), batch_size=7, device="cuda"))
    assert fetched(ahead) == expected
    always(lambda: fetched(ahead), expected)


@pytest.mark.parametrize("fault", ["take", "send", "keep"])
def test_batches_that_are_copied_ahead_need_each_of_their_waits(monkeypatch, fault):
    expected, wait = fetched(1), gg.Stream.wait
    if fault == "keep":
        monkeypatch.setattr(backends.get("cuda"), "keep", lambda *_: None)
    monkeypatch.setattr(gg.Stream, "wait", lambda self, other: wait(self, other) if used(other) else None)

    def used(other):
        return fault == "keep" or isinstance(other, gg.Event) == (fault == "send")

    assert sometimes_wrong(lambda: fetched(1), expected)


def test_a_replay_called_in_two_streams():
    """A function of its argument alone needs no waits between streams when eager; its program has memory of its own."""

    def work(wrap):
        f = wrap(lambda x: gg.exp(x) * x + gg.sum(x))
        streams = gg.Stream(), gg.Stream()
        results = []
        for i in range(8):
            with streams[i % 2]:
                results.append(f(on_gpu(np.full(3, i / 8))))
        gg.synchronize()
        return [r.tolist() for r in results]

    always(lambda: work(lambda f: f), work(lambda f: f))
    always(lambda: work(gg.replay), work(gg.replay))


def test_copies_that_do_not_wait_in_a_replay():
    """They are not captured; the step runs call by call."""

    def work():
        step, rows = gg.replay(lambda x: (x.to("cuda", non_blocking=True) * 2).to("cpu", non_blocking=True)), []
        for i in range(5):
            x = gg.asarray(np.full(3, i, "float32")).pin_memory()
            y = step(x)
            gg.synchronize()
            rows.append(y.tolist())
        return rows, step.replays

    always(work, ([[2 * i] * 3 for i in range(5)], 2))


def test_what_a_kernel_reports_comes_with_its_stream():
    def work(second):
        labels, side = on_gpu([0, 9], "int64"), gg.Stream()
        logits = on_gpu(np.zeros((2, 3)))
        side.wait(gg.current_stream())
        with side:
            F.cross_entropy(logits, labels)
        if second:
            gg.assert_finite(on_gpu([1, np.nan]))
        with pytest.raises((gg.errors.RangeError, DomainError)) as caught:
            side.synchronize()
        gg.synchronize()
        return type(caught.value).__name__

    always(lambda: work(False), "RangeError")
    assert set(outcomes(lambda: work(True))) == {"RangeError", "DomainError"}  # whichever launch was first


def test_captured_work_and_its_memory():
    def work():
        backend, x = backends.get("cuda"), on_gpu([1, 2, 3])
        gg.softmax(x * 2)
        with backend.capture() as graph:
            y = gg.softmax(x * 2) * 6
        side, rows = gg.Stream(), []
        for i in range(3):
            with gg.no_grad():
                x[...] = on_gpu([i, i, i])
            side.wait(gg.current_stream())
            with side:
                graph.launch()
            gg.current_stream().wait(side)
            rows.append(y.tolist())
        return rows

    always(work, [[2, 2, 2]] * 3)


def test_profiles_read_events_that_are_done():
    def work():
        x = on_gpu(np.ones((4, 5)))
        with gg.profile("cuda") as p:
            gg.sum(gg.exp(x))
        return [r.op for r in p.rows if r.seconds > 0], p.seconds > 0

    for ops, positive in outcomes(work):
        assert sorted(ops) == ["exp", "sum"]
        assert positive


def test_the_null_stream_and_blocking_streams_wait_for_each_other():
    """Why arrays of a user's CuPy code need no events: the streams made here are blocking ones."""

    def work(non_blocking):
        a = fake_cupy.arange(3.0)  # in our stream
        null = fake_cupy.cuda.Stream(null=True)
        side = fake_cupy.cuda.Stream(non_blocking=non_blocking)
        gg.synchronize()
        with side:
            b = a * 2
        with null:
            c = b + 1
        with side:
            return (c * 10).get().tolist()

    always(lambda: work(False), [10, 30, 50])
    assert sometimes_wrong(lambda: work(True), [10, 30, 50])
