"""Training through the CuPy double follows the CPU: same initial bits, same losses."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn, optim
from gpugrad.testing import fake_cupy
from gpugrad.testing.emulator import compiler

pytestmark = [pytest.mark.skipif(compiler() is None, reason="no C++ compiler"), pytest.mark.usefixtures("double")]


def mlp(g):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32, generator=g), nn.ReLU(), nn.Dropout(0.2, generator=g),
                         nn.Linear(32, 10, generator=g))  # fmt: skip


def lenet(g):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, generator=g), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, generator=g),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 10, generator=g),
    )  # fmt: skip


def run(build, device, steps):
    g = gg.random.Generator(0)
    model = build(g).to(device=device)
    optimizer = optim.Adam(model.named_parameters(), lr=1e-2)
    rng = np.random.default_rng(0)
    x = gg.tensor(rng.normal(size=(32, 1, 8, 8)).astype("float32"), device=device)
    y = gg.tensor(rng.integers(0, 10, 32), device=device)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss)
    assert all(p.device == ("cpu" if device == "cpu" else "cuda:0") for p in model.parameters())
    return [loss.item() for loss in losses]


@pytest.mark.parametrize("build", [mlp, lenet])
def test_same_losses_on_both_devices(build):
    cpu, cuda = run(build, "cpu", 12), run(build, "cuda", 12)
    assert cpu[-1] < 0.8 * cpu[0]
    np.testing.assert_allclose(cuda, cpu, rtol=1e-4)
    assert any("softmax_xent_bwd" in name for name in fake_cupy.launched)
    assert any("relu_bwd" in name for name in fake_cupy.launched)
