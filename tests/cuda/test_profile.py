"""The profile on a GPU: device times between events, kernels counted."""

from __future__ import annotations

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
