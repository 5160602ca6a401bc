"""Programs of Tensors on a GPU, real or pretended, give the CPU's gradients and go through the kernels."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backends
from gpugrad.backends.launch import Launch
from gpugrad.errors import DeviceError
from gpugrad.nn import init
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


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "int64", "bool", "uint8", "complex64"])
def test_arrays_of_any_layout_round_trip_bit_for_bit(device, dtype):
    """There and back, NaN payloads and subnormals included."""
    bits = np.random.default_rng(0).integers(0, 256, 8 * 6 * 4, dtype="uint8")
    x = (bits > 127)[: 6 * 4] if dtype == "bool" else bits.view(dtype)[: 6 * 4]
    x = x.reshape(6, 4)
    for a in (x, x.T, x[::2, ::-1], np.asfortranarray(x), x[:0], x[0, 0]):
        for t in (gg.tensor(a, device=device), gg.asarray(a).to(device=device)):
            assert (t.device, t.dtype, t.shape) == (device, a.dtype, a.shape)
            assert t.numpy().tobytes() == t.to("cpu").numpy().tobytes() == np.asarray(a).tobytes()


def test_one_seed_gives_the_bits_of_the_cpu(device):
    """Initial weights, uniform, normal and integer draws, and the mask of dropout with its gradient."""

    def everything(place):
        g = gg.random.Generator(7, device=place)
        x = gg.ones((33, 20), device=place).requires_grad_()
        y = gg.random.dropout(x, 0.3, generator=g)
        y.sum().backward()
        made = [
            getattr(init, name)((33, 20), generator=g, device=place) for name in ("glorot_uniform", "glorot_normal")
        ]
        drawn = [g.uniform((5, 3)), g.normal((5, 3)), g.integers(0, 100, (7,)), g.bernoulli(0.4, (9,))]
        return [t.numpy().tobytes() for t in (y, x.grad, *made, *drawn, g.permutation(10))]

    assert everything(device) == everything("cpu")
    assert len(set(everything(device))) > 6


def test_a_tensor_goes_to_the_gpu_and_back(device):
    x = gg.tensor([1.0, 2.0]).to(device=device)
    assert x.device == device
    assert (x * 2).to(device="cpu").tolist() == [2.0, 4.0]
    with pytest.raises(DeviceError, match="different devices: cpu, cuda:0"):
        x + gg.tensor([1.0, 2.0])
