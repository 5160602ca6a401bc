"""Whole training steps as CUDA graphs: recorded once, launched again and again, with the numbers of eager steps."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backends, optim
from gpugrad.nn import functional as F
from gpugrad.op import TABLE
from gpugrad.tensor import Tensor
from gpugrad.testing import fake_cupy
from gpugrad.testing.emulator import compiler

from ..ops.samples import collect
from .test_replay import clipped, perceptron

pytestmark = [pytest.mark.skipif(compiler() is None, reason="no C++ compiler"), pytest.mark.usefixtures("gpu")]
STEPS = 4


def make(kind):
    """(model, step) on the device: the same numbers at every call."""
    gg.random.seed(3)
    model = perceptron().to("cuda")
    return model, clipped(model, {"sgd": optim.SGD, "adam": optim.AdamW}[kind](model.parameters(), lr=0.05))


def batches():
    rng = np.random.default_rng(5)
    return [(rng.normal(size=(8, 12)).astype("float32"), rng.integers(0, 5, 8)) for _ in range(STEPS + 1)]


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_replayed_step_is_the_eager_step(kind):
    model, step = make(kind)
    want = [float(step(*(gg.asarray(a).to("cuda") for a in batch))) for batch in batches()]
    final = [p.numpy() for p in model.parameters()]

    model, step = make(kind)
    first, *rest = batches()
    x, y = (gg.asarray(a).to("cuda") for a in first)
    got = [float(step(x, y))]  # compiles and allocates
    backend = backends.get("cuda")
    fake_cupy.waited.clear()
    with backend.capture() as graph:
        loss = step(x, y)
    assert fake_cupy.waited == []
    for batch in rest:
        for target, value in zip((x, y), batch):
            target.data[...] = backend.asarray(value)
        graph.launch()
        got.append(float(loss))
    assert got == want
    assert len(set(want)) == len(want)
    for p, q in zip(model.parameters(), final):
        assert np.array_equal(p.numpy(), q)


def test_a_capture_does_nothing_until_it_is_launched():
    backend = backends.get("cuda")
    a = gg.asarray(np.ones(3, "float32")).to("cuda")
    F.relu(a * 2)
    with backend.capture() as graph:
        b = gg.relu(a * 2) + 1
    assert not np.isfinite(b.numpy()).all()  # whatever the memory held
    graph.launch()
    assert b.numpy().tolist() == [3, 3, 3]
    a.data[...] = backend.asarray(np.full(3, 5, "float32"))
    graph.launch()
    assert b.numpy().tolist() == [11, 11, 11]


@pytest.mark.parametrize("read", [lambda t: t.numpy(), float, lambda t: gg.asarray(np.ones(2)).to("cuda")])
def test_the_host_cannot_read_or_send_during_a_capture(double, read):
    a = gg.asarray(np.ones((), "float32")).to("cuda")
    with pytest.raises(fake_cupy.CUDARuntimeError, match="while a stream captures"), backends.get("cuda").capture():
        read(a)


# Ops that no stream can capture, and why. Everything else of the table can be part of a CUDA graph.
SOLVER = "CuPy calls cuSOLVER"
NOT_CAPTURED = {
    "det": SOLVER, "inv": SOLVER, "slogdet": SOLVER, "solve": SOLVER, "cholesky": SOLVER, "eigh": SOLVER, "svd": SOLVER,
    "qr": SOLVER, "eigvalsh": SOLVER, "matrix_rank": SOLVER, "pinv": SOLVER,
}  # fmt: skip


def cases():
    for name, samples in sorted(collect().items()):
        if name in TABLE and TABLE[name].kind != "update" and name != "to_device":
            for i, sample in enumerate(samples):
                yield pytest.param(name, sample, id=f"{name}-{i}")


@pytest.mark.parametrize("name, sample", cases())
def test_every_op_and_its_gradient_can_be_captured(name, sample):
    """Forward and gradients, recorded after one eager run; a launch gives the eager numbers.

    What is listed as impossible has to be refused, or it leaves the list. So has a boolean mask, which the host reads.
    """
    masked = name in ("gather", "put", "positions") and any(np.asarray(a).dtype == bool for a in sample.args)
    solved = name in NOT_CAPTURED and all(np.asarray(a).size for a in sample.args)  # nothing is solved if empty
    backend = backends.get("cuda")

    def leaf(a):
        if a is None:
            return None
        t = Tensor(backend.asarray(np.asarray(a).copy()))
        return t.requires_grad_() if t.dtype.kind == "f" else t

    args = [leaf(a) for a in sample.args]

    def run():
        out = TABLE[name].call(*args, **sample.attrs)
        outs = [o for o in (out if isinstance(out, tuple) else (out,)) if isinstance(o, Tensor)]
        live = [o for o in sample.chosen(tuple(outs)) if o.node is not None]
        leaves = [t for t in args if t is not None and t.node is not None]
        seeds = [gg.ones_like(o) for o in live]
        return outs + ([g for g in gg.gradients(live, leaves, seeds) if g is not None] if live else [])

    want = [t.numpy() for t in run()]
    if solved or masked:
        with pytest.raises(Exception, match="captur"), backend.capture():
            run()
        return
    with backend.capture() as graph:
        captured = run()
    graph.launch()
    for t, value in zip(captured, want):
        np.testing.assert_array_equal(t.numpy(), value)
