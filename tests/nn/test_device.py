"""Networks and losses on a pretended GPU: the CPU's numbers, no host read on the way, value checks only on demand."""

import contextlib

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backends, losses, nn
from gpugrad.backends import cuda
from gpugrad.errors import DomainError, RangeError
from gpugrad.testing import fake_cupy
from gpugrad.testing.emulator import compiler

X = np.random.default_rng(0).normal(size=(5, 1, 6, 6)).astype("float32")
LABELS = np.array([0, 1, 2, 1, 0])
ROWS = np.eye(3, dtype="float32")[LABELS]


@pytest.fixture
def device(monkeypatch):
    if compiler() is None:
        pytest.skip("the emulator needs a C++ compiler")
    backend = cuda.load(fake_cupy)
    monkeypatch.setattr(backends, "_by_name", {**backends._by_name, "cuda": backend})
    monkeypatch.setattr(backends, "_by_type", {**backends._by_type, backend.array_type: backend})
    return "cuda:0"


@contextlib.contextmanager
def deaf():
    """Every host read of device memory is an error inside."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("the host read device memory")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("get", "item", "__bool__", "__int__", "__float__", "__index__"):
            patch.setattr(fake_cupy.ndarray, name, refuse)
        yield


def network(device):
    g = gg.random.Generator(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, generator=g), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Dropout(0.3, generator=gg.random.Generator(1, device)), nn.LayerNorm(16),
        nn.Residual(nn.Linear(16, 16, generator=g), nn.GELU()), nn.Linear(16, 3, generator=g),
    ).to(device=device)  # fmt: skip


def test_a_training_step_has_the_numbers_of_the_cpu_and_never_waits(device):
    host, there = network("cpu"), network(device)
    data = {d: (gg.tensor(X, device=d), gg.tensor(LABELS, device=d)) for d in ("cpu", device)}
    want = nn.functional.cross_entropy(host(data["cpu"][0]), data["cpu"][1])
    want.backward()
    with deaf():
        got = nn.functional.cross_entropy(there(data[device][0]), data[device][1])
        got.backward()
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-5)
    for (name, p), q in zip(host.named_parameters(), there.parameters()):
        assert q.grad.device == device, name
        np.testing.assert_allclose(q.grad.numpy(), p.grad.numpy(), rtol=1e-3, atol=1e-6, err_msg=name)
    for p, q in zip(host.buffers(), there.buffers()):
        np.testing.assert_allclose(q.numpy(), p.numpy(), rtol=1e-5)


def test_state_moves_between_devices(device):
    host, there = network("cpu"), network(device).to(dtype=gg.float64)
    saved = there.state_dict()
    assert {t.device for t in saved.values()} == {device}
    host.load_state_dict(saved)
    for a, b in zip(host.state_dict().values(), network("cpu").state_dict().values()):
        assert a.device == "cpu"
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("name", losses.TABLE)
def test_losses_have_the_numbers_of_the_cpu_and_never_wait(name, device):
    rows = np.random.default_rng(1).dirichlet(np.ones(3), size=5).astype("float32")
    target = LABELS if name in ("sce", "sce_logits", "categorical_hinge") else ROWS
    want = losses.TABLE[name](gg.tensor(rows), gg.tensor(target), reduction="none").numpy()
    p, t = gg.tensor(rows, device=device, requires_grad=True), gg.tensor(target, device=device)
    with deaf():
        out = losses.TABLE[name](p, t, reduction="none")
        out.sum().backward()
    np.testing.assert_allclose(out.numpy(), want, rtol=1e-5, atol=1e-6)


def test_values_are_checked_inside_the_block_only(device):
    p, t = gg.tensor([0.5], device=device), gg.tensor([3.0], device=device)
    logits, labels = gg.zeros((1, 2), device=device), gg.tensor([5], device=device)
    assert losses.binary_cross_entropy(p, t).shape == ()
    with losses.checked():
        with pytest.raises(DomainError, match=r"target is 3\.0"):
            losses.binary_cross_entropy(p, t)
        with pytest.raises(RangeError, match="target is 5"):
            nn.functional.cross_entropy(logits, labels)
    assert losses.binary_cross_entropy(p, t).shape == ()
