"""NumPy's functions on tensors of a GPU, arrays shared with CuPy, and devices that do not mix."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import Tensor
from gpugrad.errors import DeviceError, GraphError
from gpugrad.testing import fake_cupy

A = np.random.default_rng(3).uniform(0.3, 1.7, (3, 4)).astype("float32")
PROGRAMS = [
    lambda x: np.sum(np.sin(x) * np.exp(x)),
    lambda x: np.mean(np.maximum(x, 1.0), axis=0),
    lambda x: np.concatenate([x, 2 * x], axis=1),
    lambda x: np.where(x > 1, x, [1.0, 2.0, 3.0, 4.0]),
    lambda x: np.var(x, axis=1, ddof=1),
    lambda x: np.add.outer(x[0], x[1]),
    lambda x: np.quantile(x, [0.2, 0.7], axis=1),
    lambda x: np.gradient(x, 0.5, axis=1),
    lambda x: np.convolve(x[0], [1.0, 2.0]),
    lambda x: np.stack([np.trapezoid(x, axis=0), np.ones_like(x[0])]),
    lambda x: np.interp(x, [0.0, 1.0, 2.0], [1.0, 3.0, 2.0]),
    lambda x: np.float64(2) * x,
    lambda x: np.maximum.accumulate(x, axis=1) * np.minimum.accumulate(x),
    lambda x: np.histogram(x, 4, weights=x)[0],
    lambda x: np.insert(x, [1, 3], 7.0, axis=1),
    lambda x: np.polyfit(np.cumsum(x[0]), x[1], 1),
    lambda x: np.unwrap(5 * x),
    lambda x: np.piecewise(x, [x < 0.8, x > 1.2], [np.sin, 2.0, np.cos]),
    lambda x: np.choose(np.array([0, 1, 2, 1]), x),
    lambda x: np.frexp(x)[0],
    lambda x: gg.linalg.expm(x[:, :3]),
    lambda x: gg.linalg.multi_dot([x.T, x, x[0]]),
    lambda x: gg.gather(x, 0, gg.asarray([[2, 0], [1, 1]], device=x.device)),
    lambda x: gg.scatter_add(x, 1, np.array([[2, 0], [1, 1]]), x),
    lambda x: gg.put_along_axis(x, np.array([[2], [0], [1]]), x[:, :1] * 2, 1),
    lambda x: gg.pad(x, 2, "linear_ramp") + gg.pad(x, 2, "mean"),
    lambda x: gg.special.gammainc(x, 2 * x) + gg.special.betainc(x, 2.0, x / 2) + gg.special.log_ndtr(-x),
    lambda x: gg.special.i0(x) + gg.special.i1(x) + gg.special.ndtri(x / 2) + gg.special.betaln(x, 3),
]


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_function_stays_on_the_device(double, program):
    near, far = gg.tensor(A, requires_grad=True), gg.tensor(A, device="cuda", requires_grad=True)
    want, got = program(near), program(far)
    assert got.device == "cuda:0"
    assert got.dtype == want.dtype == gg.float32
    np.testing.assert_allclose(got.detach().numpy(), want.detach().numpy(), rtol=2e-6)
    for y in (want, got):
        y.sum().backward()
    assert far.grad.device == "cuda:0"
    np.testing.assert_allclose(far.grad.numpy(), near.grad.numpy(), rtol=2e-6, atol=1e-6)


def test_devices_do_not_mix(double):
    x = gg.tensor(A, device="cuda", requires_grad=True)
    for call in (
        lambda: A + x, lambda: np.add(x, A), lambda: x @ A.T, lambda: A.T @ x, lambda: np.concatenate([x, A]),
        lambda: np.where(A > 1, x, 0.0), lambda: np.dot(A.T, x), lambda: np.maximum(gg.tensor(A), x),
    ):  # fmt: skip
        with pytest.raises(DeviceError, match="different devices: cpu, cuda:0; move one with") as caught:
            call()
        assert len(str(caught.value).splitlines()) == 2
        assert "test_protocols.py" in str(caught.value)
    with pytest.raises(DeviceError, match="on cuda:0"):
        np.asarray(x.detach())


@pytest.mark.parametrize("op", ["+", "-", "*", "/", "**", "@", "<", ">=", "==", ">>"])
def test_arrays_of_cupy_leave_operators_to_the_tensor(double, op):
    values = np.arange(12).reshape(3, 4) if op == ">>" else A
    array, x = fake_cupy.asarray(values), gg.tensor(values, device="cuda")
    left, right = (array, x.T) if op == "@" else (array, x)
    got = eval("left " + op + " right", {"left": left, "right": right})
    assert type(got) is Tensor
    other = values.T if op == "@" else values
    want = eval("a " + op + " b", {"a": values, "b": other})
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-6)


def test_cupy_and_tensors_share_memory_both_ways(double):
    array = fake_cupy.asarray(A)
    x = gg.from_dlpack(array)
    assert x.device == "cuda:0"
    assert x.data.data.ptr == array.data.ptr
    back = fake_cupy.from_dlpack(x)
    assert back.data.ptr == array.data.ptr
    assert x.__dlpack_device__() == (2, 0)
    x[0, 0] = 7.0
    assert array.get()[0, 0] == back.get()[0, 0] == 7.0
    assert gg.from_dlpack(x, copy=True).data.data.ptr != array.data.ptr
    assert gg.from_dlpack(array, device="cpu").device == "cpu"
    with pytest.raises(GraphError, match="detach"):
        fake_cupy.from_dlpack(gg.tensor(A, device="cuda", requires_grad=True))


def test_cuda_array_interface(double):
    x = gg.tensor(A, device="cuda")
    known = x.__cuda_array_interface__
    assert known["shape"] == (3, 4)
    assert known["typestr"] == "<f4"
    assert known["data"] == (x.data.data.ptr, False)
    assert known["strides"] is None
    assert known["version"] == 3
    assert x.T.__cuda_array_interface__["strides"] == (4, 16)
    with pytest.raises(GraphError, match="detach"):
        x.requires_grad_().__cuda_array_interface__  # noqa: B018
    assert not hasattr(gg.tensor(A, device="cpu"), "__cuda_array_interface__")
