"""Loss scaling: PyTorch's behaviour, on the CPU and, without anybody waiting, on the double of CuPy."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backends, optim
from gpugrad.backends import cuda
from gpugrad.errors import DeviceError, DomainError, GraphError
from gpugrad.testing import fake_cupy
from gpugrad.testing.emulator import compiler

from ..cuda.conftest import registered

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # values overflow: that is what this is about
DOUBLE = pytest.param("cuda", marks=pytest.mark.skipif(compiler() is None, reason="no C++ compiler"))
ALL = ["SGD", "Adagrad", "Adadelta", "RMSprop", "Adam", "AdamW", "Adamax", "Nadam"]


on_the_double = pytest.mark.parametrize("device", [DOUBLE], indirect=True)


@pytest.fixture(params=["cpu", DOUBLE])
def device(request):
    """Device names, 'cuda' being the double for the length of a test."""
    if request.param == "cpu":
        yield "cpu"
        return
    with registered(cuda.load(fake_cupy)):
        yield "cuda:0"


def leaf(values, device, dtype="float32"):
    return gg.tensor(np.asarray(values, dtype), device=device).requires_grad_()


def iterate(scaler, optimizer, loss, max_norm=None):
    optimizer.zero_grad()
    scaler.scale(loss()).backward()
    if max_norm:
        scaler.unscale_(optimizer)
        optim.clip_grad_norm(optimizer.param_groups[0]["params"], max_norm)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_steps_are_those_without_a_scale(device, max_norm):
    finals = []
    for enabled in (True, False):
        p = leaf([1.0, -2.0, 3.0], device)
        optimizer = optim.AdamW([p], lr=0.1)
        scaler = optim.GradScaler(init_scale=1024.0, enabled=enabled)
        for _ in range(4):
            if enabled:
                iterate(scaler, optimizer, lambda p=p: (p * p).sum(), max_norm)
            else:
                optimizer.zero_grad()
                (p * p).sum().backward()
                if max_norm:
                    optim.clip_grad_norm([p], max_norm)
                optimizer.step()
        finals.append(p.numpy())
    assert np.array_equal(*finals)  # a power of two costs no bit


def test_gradients_that_half_precision_cannot_hold_arrive(device):
    """1e-4 times 1e-4 is below the smallest float16."""
    found = {}
    for enabled in (False, True):
        w, x = leaf([1e-4], device, "float16"), gg.tensor(np.asarray([1e-4], "float16"), device=device)
        scaler = optim.GradScaler(init_scale=2.0**14, enabled=enabled)
        loss = ((w * x).astype("float32") * 1e-4).sum()
        scaler.scale(loss).backward()
        found[enabled] = float(w.grad.numpy()[0])
    assert found[False] == 0
    assert found[True] == pytest.approx(2.0**14 * 1e-8, rel=2e-3)


@pytest.mark.parametrize("name", ALL)
def test_a_step_with_an_overflow_is_left_out(device, name):
    p, q = leaf([1.0, 2.0, 3.0], device, "float16"), leaf(np.ones((2, 2)), device)
    optimizer = getattr(optim, name)([p, q], lr=0.1)
    scaler = optim.GradScaler(init_scale=2.0**16)
    before = optimizer.state_dict()

    def loss():
        return (p * p).sum().astype("float32") + (q * q).sum()

    iterate(scaler, optimizer, loss)  # 65536 is infinite in float16
    assert p.tolist() == [1, 2, 3]
    assert q.tolist() == [[1, 1], [1, 1]]
    for old, new in zip(before["groups"], optimizer.state_dict()["groups"]):
        for part in ("counters", "state"):
            for key, values in old[part].items():
                for a, b in zip(values, new[part][key]):
                    assert np.array_equal(a, b)
    assert scaler.get_scale() == 2.0**15
    for _ in range(6):
        iterate(scaler, optimizer, loss)
    assert scaler.get_scale() == 2.0**13  # 2 * 3 * 8192 is below 65504
    assert p.numpy()[0] < 1
    assert optimizer.param_groups[0].counters["step"].tolist() == [4, 4]


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_clipping_what_is_not_finite_does_no_harm(device, bad):
    p = leaf([1.0, 2.0], device)
    optimizer, scaler = optim.SGD([p], lr=0.1), optim.GradScaler(8.0)
    factor = gg.tensor(np.asarray([1.0, bad], "float32"), device=device)
    iterate(scaler, optimizer, lambda: (p * factor).sum(), max_norm=1.0)
    assert p.tolist() == [1, 2]
    assert scaler.get_scale() == 4


def test_the_scale_grows_after_an_interval(device):
    p = leaf([1.0], device)
    optimizer, scaler = optim.SGD([p], lr=0.0), optim.GradScaler(2.0, growth_factor=3.0, growth_interval=2)
    scales = []
    for _ in range(5):
        iterate(scaler, optimizer, lambda: p.sum())
        scales.append(scaler.get_scale())
    assert scales == [2, 6, 6, 18, 18]


def test_two_optimisers_share_a_scale_but_not_an_overflow(device):
    p, q = leaf([1.0], device), leaf([1.0], device)
    first, second, scaler = optim.SGD([p], lr=0.5), optim.SGD([q], lr=0.5), optim.GradScaler(4.0)
    a, b = scaler.scale([(p * np.inf).sum(), q.sum()])
    a.backward()
    b.backward()
    scaler.step(first)
    scaler.step(second)
    scaler.update()
    assert (p.item(), q.item(), scaler.get_scale()) == (1.0, 0.5, 2.0)


@on_the_double
def test_nobody_waits_and_a_captured_iteration_is_the_eager_one(device):

    def build():
        gg.random.seed(2)
        w = leaf([[0.5, -1.0], [2.0, 0.25]], device, "float16")
        optimizer, scaler = optim.Adam([w], lr=0.05), optim.GradScaler(2.0**17, growth_interval=3)
        x = gg.tensor(np.ones((3, 2), "float16"), device=device)

        def step():
            optimizer.zero_grad()
            scaler.scale((x @ w).astype("float32").mean()).backward()
            scaler.unscale_(optimizer)
            optim.clip_grad_norm([w], 1.0)
            scaler.step(optimizer)
            scaler.update()

        return w, scaler, step

    want, scaler, step = build()
    fake_cupy.waited.clear()
    for _ in range(9):
        step()
    assert fake_cupy.waited == []
    w, again, step = build()
    step()
    with backends.get("cuda").capture() as graph:
        step()
    for _ in range(8):
        graph.launch()
    assert np.array_equal(w.numpy(), want.numpy())
    assert again.get_scale() == scaler.get_scale() != 2.0**17


@on_the_double
def test_launches_of_an_iteration(device):
    params = [leaf(np.ones((3, 1 + i)), device) for i in range(50)]
    optimizer, scaler = optim.AdamW(params, lr=0.1), optim.GradScaler()
    for p in params:
        p.grad = gg.ones(p.shape, device=device)
    for _ in range(2):
        fake_cupy.launched.clear()
        fake_cupy.called.clear()
        scaler.unscale_(optimizer)
        optim.clip_grad_norm(params, 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert fake_cupy.launched == [
        "unscale_into<float>", "norm_parts<float, Squares>", "norm_total<float, Squares>", "scale_into<float, float>",
        "update<float, Adam>", "next_scale",
    ]  # fmt: skip
    assert fake_cupy.called == []


def test_state_goes_out_and_in(device):
    p = leaf([1.0], device)
    optimizer, scaler = optim.SGD([p], lr=0.0), optim.GradScaler(2.0, growth_interval=3)
    for _ in range(2):
        iterate(scaler, optimizer, lambda: p.sum())
    state = scaler.state_dict()
    assert state == {
        "scale": 2.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 3, "_growth_tracker": 2,
    }  # fmt: skip
    fresh, used = optim.GradScaler(), optim.GradScaler()
    used.scale(p.sum())
    for other in (fresh, used):
        other.load_state_dict(state)
        iterate(other, optimizer, lambda: p.sum())
        assert other.get_scale() == 4
        assert other.state_dict()["_growth_tracker"] == 0


def test_a_new_scale_is_taken(device):
    p = leaf([1.0], device)
    optimizer, scaler = optim.SGD([p], lr=0.0), optim.GradScaler()
    iterate(scaler, optimizer, lambda: p.sum())
    scaler.update(16.0)
    assert scaler.get_scale() == 16
    scaler.update(gg.tensor(np.asarray(32.0, "float32"), device=device))
    assert scaler.get_scale() == 32


def test_wrong_order_is_refused(device):
    p = leaf([1.0], device)
    optimizer, scaler = optim.SGD([p], lr=0.1), optim.GradScaler()
    with pytest.raises(GraphError, match="no gradients were unscaled"):
        scaler.update()
    scaler.scale(p.sum())
    with pytest.raises(GraphError, match=r"call backward\(\) first"):
        scaler.step(optimizer)
    scaler.scale(p.sum()).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(GraphError, match=r"unscale_\(\) was already called"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(GraphError, match="already called"):
        scaler.step(optimizer)
    with pytest.raises(GraphError, match=r"step\(\) was called"):
        scaler.unscale_(optimizer)
    scaler.update()
    iterate(scaler, optimizer, lambda: p.sum())


@pytest.mark.parametrize(
    "wrong", [{"init_scale": 0.0}, {"growth_factor": 1.0}, {"backoff_factor": 1.0}, {"growth_interval": 0}]
)
def test_options_out_of_range(wrong):
    with pytest.raises(DomainError, match=next(iter(wrong))):
        optim.GradScaler(**wrong)


def test_disabled_passes_through():
    p = leaf([1.0], "cpu")
    optimizer, scaler = optim.SGD([p], lr=0.5), optim.GradScaler(enabled=False)
    iterate(scaler, optimizer, lambda: p.sum(), max_norm=10.0)
    assert (p.item(), scaler.get_scale(), scaler.state_dict()) == (0.5, 1.0, {})
    scaler.load_state_dict({})
    with pytest.raises(DomainError, match="not enabled"):
        optim.GradScaler().load_state_dict({})


@pytest.mark.parametrize("device", [DOUBLE], indirect=True)
def test_one_scaler_one_device(device):
    scaler = optim.GradScaler()
    scaler.scale(gg.ones((), device="cpu"))
    with pytest.raises(DeviceError, match="it scales on cpu"):
        scaler.scale(gg.ones((), device=device))
