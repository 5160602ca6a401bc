"""Programs of Tensors on a GPU, real or pretended, give the CPU's gradients and go through the kernels."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backends
from gpugrad.backends.launch import Launch
from gpugrad.errors import DeviceError
from gpugrad.ops.loss import softmax_xent


@pytest.fixture
def device(backend, monkeypatch):
    """The device name, with this backend behind it for the time of a test."""
    monkeypatch.setattr(backends, "_by_name", {**backends._by_name, "cuda": backend})
    monkeypatch.setattr(backends, "_by_type", {**backends._by_type, backend.array_type: backend})
    return "cuda:0"


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels launched from here on."""
    names, tiles = [], Launch.tiles

    def log(self, name, *args, **kwargs):
        names.append(name)
        return tiles(self, name, *args, **kwargs)

    monkeypatch.setattr(Launch, "tiles", log)
    return names


def gradients(program, arrays, device):
    xs = [gg.tensor(a, device=device, requires_grad=a.dtype.kind == "f") for a in arrays]
    loss = program(*xs)
    loss.backward()
    assert loss.device.partition(":")[0] == device.partition(":")[0]
    return [loss.numpy(), *[x.grad.numpy() for x in xs if x.requires_grad]]


def classify(x, w, y):
    return softmax_xent(gg.relu(x @ w), y, smoothing=0.1).mean()


def embed(table, ids):
    rows = table[ids]
    return (rows * rows).sum()


def noisy(x, w):
    y = gg.random.dropout(x @ w, 0.4, generator=gg.random.Generator(11))
    return (y * y).sum()


@pytest.mark.parametrize(
    "program, shapes, integers, kernels",
    [
        (classify, [(7, 5), (5, 4)], (4, (7,)), ["softmax_xent", "softmax_xent_bwd", "relu_bwd"]),
        (embed, [(6, 3)], (6, (4, 5)), ["scatter_rows"]),
        (noisy, [(9, 4), (4, 5)], None, ["dropout", "dropout"]),
    ],
    ids=["classify", "embed", "noisy"],
)
def test_a_program_on_the_gpu_has_the_gradients_of_the_cpu(device, launched, program, shapes, integers, kernels):
    rng = np.random.default_rng(3)
    arrays = [rng.normal(size=s).astype("float32") for s in shapes]
    if integers is not None:
        arrays.append(rng.integers(0, *integers))
    want = gradients(program, arrays, "cpu")
    assert launched == []
    got = gradients(program, arrays, device)
    assert [name for name in launched if name in kernels] == kernels
    for g, w in zip(got, want):
        assert g.dtype == w.dtype
        np.testing.assert_allclose(g, w, rtol=1e-6, atol=1e-6)


def test_a_tensor_goes_to_the_gpu_and_back(device):
    x = gg.tensor([1.0, 2.0]).to(device=device)
    assert x.device == device
    assert (x * 2).to(device="cpu").tolist() == [2.0, 4.0]
    with pytest.raises(DeviceError, match="different devices: cpu, cuda:0"):
        x + gg.tensor([1.0, 2.0])
