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
