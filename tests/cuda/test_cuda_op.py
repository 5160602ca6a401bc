"""`cuda_op`: a user's CUDA text as a differentiable op, on the CPU by the emulator and on the device."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.check import GradientError
from gpugrad.errors import DeviceError, GraphError, ShapeError
from gpugrad.testing import fake_cupy
from gpugrad.testing.emulator import EmulatorError, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")

SOFT_CLIP = """
#include "common.cuh"
template <class T> __global__ void soft_clip(T* y, const T* x, const T* width, Acc<T> sharpness, long long n) {
    fill(whole_grid(), y, n, [=](long long, Acc<T> x, Acc<T> w) { return w * tanh(sharpness * x / w); }, x, width);
}
template <class T> __global__ void soft_clip_bwd(T* dx, T* dwidth, const T* t, const T* x, const T* width,
                                                 Acc<T> sharpness, long long n) {
    Team team = whole_grid();
    for (long long i = team.rank; i < n; i += team.size) {
        Acc<T> w = widen(width[i]), z = sharpness * widen(x[i]) / w, y = tanh(z), slope = 1 - y * y;
        dx[i] = narrow<T>(widen(t[i]) * sharpness * slope);
        dwidth[i] = narrow<T>(widen(t[i]) * (y - z * slope));
    }
}
"""
ROWS = """
#include "common.cuh"
template <class T> __global__ void demean(T* y, const T* x, long long rows, long long columns) {
    long long row = row_number();
    if (row >= rows) return;
    Acc<T> sum = 0;
    each(row_team(), columns, [&](long long, Acc<T> v) { sum += v; }, x + row * columns);
    Acc<T> mean = reduce_row(sum, Plus(), Acc<T>(0)) / columns;
    fill(row_team(), y + row * columns, columns, [=](long long, Acc<T> v) { return v - mean; }, x + row * columns);
}
"""
SQUARE = "__global__ void square(float* y, const float* x, int n) { int i = threadIdx.x; if (i < n) y[i] = %s; }"


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda":
        request.getfixturevalue("double")
    return request.param


def leaf(a, device):
    return gg.tensor(np.asarray(a, "float64"), device=device, requires_grad=True)


def test_values_and_gradients_with_broadcasting_and_a_number(device):
    rng = np.random.default_rng(0)
    op = gg.cuda_op(SOFT_CLIP)
    x, w = leaf(rng.normal(size=(3, 4)), device), leaf([[2.0], [0.5], [1.0]], device)
    y = op(x, w, sharpness=1.5)
    want = w.numpy() * np.tanh(1.5 * x.numpy() / w.numpy())
    np.testing.assert_allclose(y.numpy(), want, rtol=1e-14)
    assert y.device.partition(":")[0] == device
    reference = [leaf(v.numpy(), "cpu") for v in (x, w)]
    (reference[1] * gg.tanh(1.5 * reference[0] / reference[1])).sum().backward()
    y.sum().backward()
    for got, ref in zip((x, w), reference):
        np.testing.assert_allclose(got.grad.numpy(), ref.grad.numpy(), rtol=1e-12, atol=1e-14)


def test_one_text_serves_every_floating_type_and_integers_become_floats(device):
    op = gg.cuda_op(SOFT_CLIP)
    for dtype, tolerance in (("float32", 1e-6), ("float16", 1e-3)):
        x = gg.asarray(np.array([0.5, -2.0], dtype), device=device)
        y = op(x, x + 3, sharpness=1.0)
        assert y.dtype == dtype
        a = x.numpy().astype("float64")
        np.testing.assert_allclose(y.numpy(), (a + 3) * np.tanh(a / (a + 3)), rtol=tolerance)
    assert (
        op(gg.asarray([1, 2], device=device), gg.asarray([1.0, 1.0], device=device), sharpness=1.0).dtype == "float32"
    )


def test_a_team_of_threads_a_row(device):
    rng = np.random.default_rng(1)
    op = gg.cuda_op(ROWS)
    for shape in ((4, 7), (2, 3, 40), (2, 1500)):
        x = rng.normal(size=shape)
        got = op(gg.asarray(x, device=device)).numpy()
        np.testing.assert_allclose(got, x - x.mean(-1, keepdims=True), rtol=1e-12, atol=1e-12)
    with pytest.raises(GraphError, match="no kernel demean_bwd"):
        op(leaf(x, device))


def test_a_wrong_gradient_is_refused_at_the_first_call(device):
    wrong = SOFT_CLIP.replace("widen(t[i]) * (y - z * slope)", "widen(t[i]) * (y + z * slope)")
    x = leaf([0.3, -0.7], device)
    with pytest.raises(GradientError, match="backward is wrong for input 1"):
        gg.cuda_op(wrong)(x, leaf([1.0, 2.0], device), sharpness=1.0)
    gg.cuda_op(wrong, check=False)(x, leaf([1.0, 2.0], device), sharpness=1.0)


def test_an_element_left_out_or_raced_for_is_found_at_the_first_call():
    x = gg.asarray(np.ones(5, "float32"))
    short = SQUARE.replace("i < n", "i < n - 1") % "x[i] * x[i]"
    with pytest.raises(DeviceError, match=r"element \[4\] of y is not written"):
        gg.cuda_op(short)(x)
    raced = SQUARE % "0; y[0] = i"
    with pytest.raises(DeviceError, match=r"element \[0\] of y depends on the order of the threads"):
        gg.cuda_op(raced)(x)
    np.testing.assert_array_equal(gg.cuda_op(SQUARE % "x[i] * x[i]")(x + 1).numpy(), np.full(5, 4))


def test_second_derivatives_need_a_composition(device):
    x, w = leaf([0.3, -0.7], device), gg.asarray(np.array([1.0, 2.0]), device=device)
    (g,) = gg.gradients(gg.cuda_op(SOFT_CLIP)(x, w, sharpness=1.0).sum(), [x])
    with pytest.raises(GraphError, match="give via= for higher"):
        gg.gradients(gg.cuda_op(SOFT_CLIP)(x, w, sharpness=1.0).sum(), [x], create_graph=True)

    def via(t, x, w, sharpness):
        y = gg.tanh(sharpness * x / w)
        return t * sharpness * (1 - y * y), None

    op = gg.cuda_op(SOFT_CLIP, via=via)
    (first,) = gg.gradients(op(x, w, sharpness=1.0).sum(), [x], create_graph=True)
    np.testing.assert_allclose(first.numpy(), g.numpy(), rtol=1e-12)
    (second,) = gg.gradients(first.sum(), [x])
    y = np.tanh(x.numpy() / w.numpy())
    np.testing.assert_allclose(second.numpy(), -2 * y * (1 - y * y) / w.numpy(), rtol=1e-12)


def test_a_numpy_function_can_stand_in_on_the_cpu(monkeypatch):
    monkeypatch.setattr("gpugrad.kernel_op.emulated", lambda: pytest.fail("emulated"))
    op = gg.cuda_op(SQUARE % "x[i] * x[i]", cpu=lambda x: x * x)
    assert op(gg.asarray(np.arange(3, dtype="float32"))).numpy().tolist() == [0, 1, 4]


def test_integers_two_outputs_and_shapes_of_their_own(device):
    text = """
    template <class T> __global__ void pick(T* least, T* most, const T* x, const int* ids, int count, long long n) {
        for (long long i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
            T a = x[ids[i * count]], b = a;
            for (int k = 1; k < count; k++) {
                T v = x[ids[i * count + k]];
                a = v < a ? v : a, b = b < v ? v : b;
            }
            least[i] = a, most[i] = b;
        }
    }
    """
    op = gg.cuda_op(text, shape=lambda x, ids: [(ids[0],), (ids[0],)])
    ids = np.array([[0, 2], [1, 3], [3, 3]])
    least, most = op(gg.asarray([5.0, 1.0, -2.0, 8.0], device=device), gg.asarray(ids, device=device), count=2)
    assert least.numpy().tolist() == [-2, 1, 8]
    assert most.numpy().tolist() == [5, 8, 8]


def test_errors_say_what_is_expected():
    with pytest.raises(DeviceError, match=r"\['dz'\] are unknown"):
        gg.cuda_op(SQUARE % "1" + " __global__ void square_bwd(float* dz, const float* t, int n) {}")
    with pytest.raises(DeviceError, match=r"kernels \['a', 'b'\]; say which with name="):
        gg.cuda_op("__global__ void a(float* y, const float* x) {} __global__ void b(float* y, const float* x) {}")
    with pytest.raises(DeviceError, match="needs outputs"):
        gg.cuda_op("__global__ void a(const float* x) {}")
    op = gg.cuda_op(SOFT_CLIP)
    with pytest.raises(ShapeError, match=r"takes \(x, width, sharpness=\), got 1 arrays"):
        op(gg.ones(3))
    with pytest.raises(ShapeError, match="do not broadcast"):
        op(gg.ones(3), gg.ones(2), sharpness=1.0)
    with pytest.raises(EmulatorError, match=r"oops.cu:1"):
        gg.cuda_op("__global__ void oops(float* y, const float* x, int n) { y[0] = undeclared; }")(gg.ones(3))


def test_nothing_waits_on_the_device(double):
    op, x = gg.cuda_op(SOFT_CLIP, check=False), leaf([1.0, 2.0], "cuda")
    fake_cupy.waited.clear()
    op(x, x, sharpness=1.0).sum().backward()
    assert fake_cupy.waited == []
