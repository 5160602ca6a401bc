"""The profile on a GPU: device times between events, kernels counted."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import gpugrad as gg


def test_kernels_are_counted_and_times_are_the_devices(gpu):
    x = gg.tensor([[1.0, 2.0, 4.0], [1.0, 1.0, 5.0]], device="cuda", requires_grad=True)
    start = gpu.launches
    with gg.profile("cuda") as p:
        gg.softmax(x).sum().backward()
    found = {(r.op, r.phase): r for r in p.rows}
    assert found["softmax", "forward"].kernels == 1
    assert sum(r.kernels for r in p.rows) == gpu.launches - start == 2
    assert 0 < found["softmax", "forward"].seconds <= p.seconds
    assert str(p).endswith("on cuda")


def test_products_say_what_they_were_computed_in(double):
    """True float32 unless asked otherwise; what cuBLASLt declines, here a bias in float64, is composed."""
    x = gg.ones((3, 4), device="cuda")
    with gg.profile("cuda") as p:
        x @ x.T
        with gg.matmul_precision("tf32"):
            x @ x.T
        gg.nn.functional.linear(x, x, gg.ones(3, device="cuda"))
        wide = x.astype("float64")
        gg.nn.functional.linear(wide, wide, gg.ones(3, dtype="float64", device="cuda"))
        gg.exp(x)
    found = {r.op: r.compute for r in p.rows if r.phase == "forward"}
    assert (found["matmul"], found["affine"], found["exp"]) == ("32F, 32F_FAST_TF32", "32F, composed", "")
    assert "  32F, 32F_FAST_TF32" in str(p)
    assert double.gemm.computed() == ["float32 in 32F", "float32 in 32F_FAST_TF32", "float64 in 64F",
                                      "float64 without cuBLASLt"]  # fmt: skip
    assert "float32 NT, 32F, epilogue bias: algorithm" in double.gemm.report()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_graph_is_told_call_by_call(gpu, compiled):
    """Outside the graph, but with its bits; the gradients, the state and the random numbers go on as they would."""

    def run(profiled):
        gg.random.seed(2)
        model = gg.nn.Sequential(gg.nn.Linear(8, 16), gg.nn.ReLU(), gg.nn.Dropout(0.5), gg.nn.Linear(16, 3)).to("cuda")
        opt = gg.optim.Adam(model.parameters())

        @gg.replay(compiled=compiled)
        def step(x, y):
            opt.zero_grad()
            loss = gg.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            opt.step()
            x *= 2
            return loss

        seen, x = [], gg.ones((4, 8), device="cuda")
        for i in range(8):
            y = gg.asarray(np.arange(i, i + 4) % 3).to("cuda")
            with gg.profile("cuda") if profiled and i in (4, 5, 7) else contextlib.nullcontext() as p:
                loss = step(x, y)
            left = [loss, x, *model.parameters(), *(w.grad for w in model.parameters())]
            seen.append([t.numpy().tobytes() for t in left])
        return seen, p, step

    wanted, _, _ = run(False)
    seen, p, step = run(True)
    assert seen == wanted
    runner = step.records[-1].runner
    assert runner.reason == ""
    found = {(r.op, r.phase): r for r in p.rows}
    assert found["arguments", "copied"].calls == found["results", "copied"].calls == 1
    assert found["adam", "replayed"].kernels == 1
    assert sum(r.calls for r in p.rows) == len(step.fused.calls) + 3  # the copies, and having it timed
    products = [r for r in p.rows if r.compute]
    assert {r.phase for r in products} == {"joined", "replayed"} if compiled else {"replayed"}
    assert {r.compute for r in products} == {"32F"}
    assert sum(r.flops for r in p.rows) == 2 * 4 * 16 * (8 + 8 + 3 + 3 + 3)
    assert p.seconds == pytest.approx(p.outside + sum(r.seconds for r in p.rows))


def test_what_cannot_be_captured_is_timed_as_it_runs(double):
    scale = gg.asarray(np.full(3, 2.0))
    step = gg.replay(lambda x: (x.to("cuda") + 1).to("cpu") * scale)
    x = gg.asarray(np.arange(3.0))
    for _ in range(3):
        step(x)
    with gg.profile("cuda") as p:
        assert step(x).numpy().tolist() == [2.0, 4.0, 6.0]
    assert step.records[0].runner.reason
    assert {("add", "replayed"), ("multiply", "replayed")} <= {(r.op, r.phase) for r in p.rows}
    assert not [r for r in p.rows if r.phase in ("copied", "forward")]
