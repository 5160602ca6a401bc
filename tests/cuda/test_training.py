"""Training through the CuPy double follows the CPU: same initial bits, same losses."""

from __future__ import annotations

import collections

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import data, nn, optim
from gpugrad.testing import fake_cupy
from gpugrad.testing.emulator import compiler
from gpugrad.train import models

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


BATCH, MEAN, DEVIATION = 32, 4.9, 6.0  # of the digits' pixels


def train_lenet(device, steps):
    """(losses, kernels of the last step, functions of CuPy in it) of `gpugrad train`'s LeNet on real digits."""
    images, labels, *_ = data.digits()
    gg.random.seed(0)
    model = models.lenet((1, 8, 8), 10).to(device=device)
    optimizer, losses = optim.Adam(model.named_parameters(), lr=1e-2), []
    for i in range(steps):
        part = slice(i * BATCH, (i + 1) * BATCH)
        x = gg.tensor(((images[part, None] - MEAN) / DEVIATION).astype("float32"), device=device)
        y = gg.tensor(labels[part].astype("int64"), device=device)
        fake_cupy.launched.clear()
        fake_cupy.called.clear()
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss)
    kernels = collections.Counter(name.partition("<")[0] for name in fake_cupy.launched)
    return [loss.item() for loss in losses], kernels, len(fake_cupy.called)


def test_lenet_on_digits_follows_the_cpu_in_few_launches(capsys):
    pytest.importorskip("sklearn")
    (cpu, *_), (cuda, kernels, functions) = train_lenet("cpu", 20), train_lenet("cuda", 20)
    assert np.mean(cpu[-3:]) < 0.6 * cpu[0]
    np.testing.assert_allclose(cuda, cpu, rtol=1e-4)
    with capsys.disabled():
        print(f"\nLeNet step: {sum(kernels.values())} kernels {dict(kernels)}, {functions} functions of CuPy")
    convolution = {"im2col": 4, "col2im": 1}  # forward and weights of two layers; images need no gradient
    expected = {**convolution, "max_pool2d": 2, "max_pool2d_bwd": 2, "softmax_xent": 1, "softmax_xent_bwd": 1}
    assert {name: kernels[name] for name in expected} == expected
    assert sum(kernels.values()) <= 34
    assert functions <= 24
