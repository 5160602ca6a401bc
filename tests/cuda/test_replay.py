"""replay on a GPU: the traced step as one CUDA graph, with the bits of eager steps."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn, optim
from gpugrad.chain import Chain
from gpugrad.graph import Graph
from gpugrad.nn import functional as F
from gpugrad.testing import fake_cupy
from gpugrad.testing.emulator import compiler

pytestmark = [pytest.mark.skipif(compiler() is None, reason="no C++ compiler"), pytest.mark.usefixtures("gpu")]
CALLS = 8


def perceptron():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.25), nn.Linear(16, 5))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3 * 2 * 2, 5)
    )


def batch(shape, i):
    rng = np.random.default_rng(i)
    x, y = rng.normal(size=(6, *shape)).astype("float32"), rng.integers(0, 5, 6)
    return gg.asarray(x).to("cuda"), gg.asarray(y).to("cuda")


def clipped(model, opt):
    """A training step of a classifier."""

    def step(x, y):
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optim.clip_grad_norm(model.parameters(), 1.0)
        opt.step()
        return loss

    return step


def train(make, optimizer, shape, wrap):
    gg.random.seed(3)
    model = make().to("cuda")
    opt = optimizer(model.parameters())
    step, seen = wrap(clipped(model, opt)), []
    for i in range(CALLS):
        opt.lr = 0.05 / (1 + i)
        losses = step(*batch(shape, i))
        tensors = [losses, *model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
        seen.append([t.numpy().tobytes() for t in tensors])
    return seen, step


@pytest.mark.parametrize(
    "make, optimizer, shape",
    [
        (perceptron, lambda p: optim.Adam(p), (12,)),
        (perceptron, lambda p: optim.SGD(p, momentum=0.9), (12,)),
        (convolutions, lambda p: optim.AdamW(p), (1, 6, 6)),
    ],
    ids=["adam", "momentum", "convolutions"],
)
def test_a_replayed_step_is_the_eager_step(make, optimizer, shape):
    want, _ = train(make, optimizer, shape, lambda f: f)
    got, step = train(make, optimizer, shape, gg.replay)
    assert got == want
    assert len({row[0] for row in want}) == CALLS
    assert step.replays == CALLS - 3
    (recorded,) = step.records
    assert isinstance(recorded.runner, Graph)
    assert recorded.runner.reason == ""


def test_a_replay_waits_for_nothing_and_launches_once(double):
    _, step = train(perceptron, lambda p: optim.Adam(p), (12,), gg.replay)
    x, y = batch((12,), 0)
    fake_cupy.waited.clear()
    result = step(x, y)
    assert fake_cupy.waited == []
    assert np.isfinite(float(result))


def test_results_are_new_arrays_and_written_arguments_are_written():
    @gg.replay
    def step(x):
        with gg.no_grad():
            x[0] = x.sum()
        return x * 2

    results = []
    for i in range(6):
        x = gg.asarray(np.arange(3, dtype="float32") + i).to("cuda")
        results.append(step(x))
        assert x.numpy().tolist() == [3 + 3 * i, 1 + i, 2 + i]
    assert [r.numpy().tolist() for r in results] == [[2 * (3 + 3 * i), 2 * (1 + i), 2 * (2 + i)] for i in range(6)]


def test_gradients_of_arguments_alone_stay_on_the_device():
    step = gg.replay(gg.value_and_grad(lambda x: gg.sum(gg.tanh(x) * x)))
    for i in range(5):
        x = np.linspace(-1, 1, 5) + i
        value, gradient = step(gg.asarray(x).to("cuda"))
        assert gradient.device == "cuda:0"
        np.testing.assert_allclose(float(value), (np.tanh(x) * x).sum(), rtol=1e-12)
        np.testing.assert_allclose(gradient.numpy(), np.tanh(x) + x * (1 - np.tanh(x) ** 2), atol=1e-12)
    assert step.records[0].runner.reason == ""


def test_steps_on_both_devices_run_call_by_call():
    scale = gg.asarray(np.full(3, 2.0))

    @gg.replay
    def step(x):
        return (x.to("cuda") + 1).to("cpu") * scale, gg.ones_like(x)

    for i in range(5):
        out, ones = step(gg.asarray(np.arange(3.0) + i))
        assert out.numpy().tolist() == [2.0 * (k + i + 1) for k in range(3)]
        assert ones.numpy().tolist() == [1, 1, 1]
    assert step.records[0].runner.reason
    assert step.replays == 2


def test_what_cannot_be_captured_runs_call_by_call():
    @gg.replay
    def step(x):
        return gg.linalg.inv(x) * 2

    for i in range(5):
        x = np.eye(3) * (i + 1)
        assert np.allclose(step(gg.asarray(x).to("cuda")).numpy(), 2 * np.linalg.inv(x), atol=1e-12)
    assert "captur" in step.records[0].runner.reason
    assert step.replays == 2


def test_compiled_runs_are_one_kernel_each(double):
    """Bias, ReLU and dropout: one launch, in forward and backward; what it computes is checked beside the ops."""
    gg.random.seed(1)
    bias = gg.asarray(np.linspace(-1, 1, 8, dtype="float32")).to("cuda").requires_grad_()

    def f(x):
        bias.zero_grad()
        y = F.dropout(gg.relu(x + bias), 0.25)
        loss = gg.sum(y * y)
        loss.backward()
        return loss

    rng = np.random.default_rng(0)
    batches = [gg.asarray(rng.normal(size=(16, 8)).astype("float32")).to("cuda") for _ in range(7)]
    state = gg.random.default.state_dict()
    outcomes = []
    for wrap in (lambda f: f, gg.replay(compiled=True)):
        gg.random.default.load_state_dict(state)
        step = wrap(f)
        outcomes.append([(float(step(x)), bias.grad.numpy(copy=True)) for x in batches])
    for (a, da), (b, db) in zip(*outcomes):
        np.testing.assert_allclose(b, a, rtol=1e-5)
        np.testing.assert_allclose(db, da, rtol=1e-5, atol=1e-6)
    runner = step.records[0].runner
    assert runner.reason == ""
    (first, *_) = [c for c in runner.program.calls if c.op in runner.program.chains]
    assert {s.op for s in runner.program.chains[first.op].steps} >= {"add", "relu", "dropout"}


def ended(step):
    """The ops that end a chain, by chain, in the program of a compiled step."""
    return [[e.op for e in chain.ends] for chain in step.fused.chains.values()]


@pytest.mark.parametrize("width, ends", [(40, [["sum"]]), (4, [[]])], ids=["wide", "narrow"])
def test_a_chain_takes_the_sum_along_that_ends_it(double, width, ends):
    """Where a row keeps a warp busy; one launch then gives the rows and their sums, masks included."""

    def f(x, y, keep):
        d = gg.where(keep, x - y, 0)
        return gg.sum(d * d, axis=-1, keepdims=True), d, x > y

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6, width)).astype("float32")
    keep = rng.random((6, width)) < 0.5
    given = [gg.asarray(a).to("cuda") for a in (x, y, keep)]
    step = gg.replay(f, compiled=True)
    for _ in range(4):
        total, d, more = step(*given)
    assert ended(step) == ends
    runner = step.records[0].runner
    assert (runner.reason, len(runner.graph.graph.work)) == ("", 1 if ends[0] else 2)
    wanted = np.where(keep, x - y, 0)
    assert total.shape == (6, 1)
    np.testing.assert_allclose(total.numpy(), (wanted**2).sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(d.numpy(), wanted)
    np.testing.assert_array_equal(more.numpy(), x > y)


def test_a_mean_of_squares_with_its_gradient_is_one_chain(double):
    rng = np.random.default_rng(0)
    x, y = (gg.asarray(rng.normal(size=(90, 100)).astype("float32")).to("cuda") for _ in "xy")
    f = gg.value_and_grad(lambda x, y: gg.mean((gg.tanh(x) - y) ** 2))
    step = gg.replay(f, compiled=True)
    wanted = [t.numpy() for t in f(x, y)]
    for _ in range(4):
        for got, want in zip(step(x, y), wanted):
            np.testing.assert_allclose(got.numpy(), want, rtol=2e-5, atol=1e-9)
    assert step.records[0].runner.reason == ""
    assert ended(step) == [["mean"]]
    assert len(step.records[0].runner.graph.graph.work) == 2  # all but the mean of the slices' means is one kernel


@pytest.mark.parametrize("op", [gg.sum, gg.mean, gg.max])
def test_a_chain_without_a_kernel_runs_op_by_op(double, monkeypatch, op):
    monkeypatch.setattr(Chain, "launch_cuda", lambda *_: False)
    x = gg.asarray(np.random.default_rng(0).normal(size=(6, 40)).astype("float32")).to("cuda")
    step = gg.replay(lambda x: op(gg.tanh(x) * x, axis=1, keepdims=True), compiled=True)
    for _ in range(4):
        got = step(x)
    np.testing.assert_array_equal(got.numpy(), op(gg.tanh(x) * x, axis=1, keepdims=True).numpy())
    assert ended(step) == [[op.__name__]]
