"""The Tensor itself: conversions, copies, devices, repr."""

import copy
import pickle

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backends
from gpugrad.errors import DeviceError, DTypeError, GraphError, ShapeError
from gpugrad.tensor import Tensor


def test_numbers():
    t = gg.tensor(3.0)
    assert (float(t), int(t), bool(t), complex(t)) == (3.0, 3, True, 3 + 0j)
    assert [10, 20, 30][gg.tensor(1)] == 20
    assert f"{t:.2f}" == "3.00"
    assert gg.tensor([[2.0]]).item() == 2.0
    for convert in (float, int, bool, lambda x: x.item()):
        with pytest.raises(ShapeError) as caught:
            convert(gg.ones(2))
        assert "float32[2]" in str(caught.value)
        assert "test_tensor.py:" in str(caught.value)


def test_numpy_views_are_read_only_and_copies_are_not():
    t = gg.ones(3)
    view = t.numpy()
    assert np.shares_memory(view, t.data)
    with pytest.raises(ValueError):
        view[0] = 2
    mine = t.numpy(copy=True)
    mine[0] = 2
    assert t.tolist() == [1, 1, 1]
    assert np.asarray(t).dtype == np.float32
    assert np.asarray(t, dtype="float64").dtype == np.float64
    assert np.sin(np.asarray(t)).shape == (3,)


def test_length_iteration_membership():
    t = gg.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    a, b = t
    (a * b).sum().backward()
    assert t.grad.tolist() == [[3.0, 4.0], [1.0, 2.0]]
    assert len(t) == 2
    assert 3.0 in t
    assert 5.0 not in t
    for bad in (len, iter):
        with pytest.raises(TypeError):
            bad(gg.tensor(1.0))


def test_tensors_are_hashed_by_identity_and_compared_by_value():
    t, u = gg.ones(2), gg.ones(2)
    assert len({t, u, t}) == 2
    assert (t == u).tolist() == [True, True]
    assert (t == None) is False  # noqa: E711
    assert (t != "a") is True


def test_numpy_operators_defer():
    t = gg.ones(2, dtype=gg.float64)
    out = np.array([1.0, 2.0]) * t
    assert type(out) is Tensor
    assert type(np.float64(2) * t) is Tensor
    assert type(np.ones((2, 2)) @ t) is Tensor
    assert (np.array([3.0, 5.0]) - t).tolist() == [2.0, 4.0]


def test_float32_is_never_widened_by_scalars():
    t = gg.ones(2)
    for other in (np.float64(2), 2.0, 2, np.int64(2), True, gg.tensor([1, 2])):
        assert (t * other).dtype == gg.float32
        assert (other * t).dtype == gg.float32
    assert (t * gg.ones(2, dtype=gg.float64)).dtype == gg.float64


@pytest.mark.parametrize(
    "a, b, want",
    [
        ("float32", "float32", "float32"), ("float32", "float64", "float64"), ("float16", "float32", "float32"),
        ("int64", "float32", "float32"), ("int8", "float16", "float16"), ("bool", "float32", "float32"),
        ("int32", "int64", "int64"), ("uint8", "int8", "int16"), ("bool", "int32", "int32"), ("bool", "bool", "bool"),
    ],
)  # fmt: skip
def test_promotion_table(a, b, want):
    x, y = gg.ones(2, dtype=a), gg.ones(2, dtype=b)
    assert gg.concat([x, y]).dtype == want
    assert gg.maximum(x, y).dtype == want
    assert gg.maximum(y, x).dtype == want
    assert gg.result_type(x, y) == want


@pytest.mark.parametrize("requires_grad", [True, False])
def test_pickle_and_deepcopy(requires_grad):
    t = gg.tensor([1.0, 2.0], requires_grad=requires_grad)
    for twin in (pickle.loads(pickle.dumps(t)), copy.deepcopy(t)):
        assert twin.tolist() == [1.0, 2.0]
        assert twin.requires_grad is requires_grad
        assert not np.shares_memory(twin.data, t.data)
    with pytest.raises(GraphError, match="detach"):
        copy.deepcopy(gg.tensor([1.0], requires_grad=True) * 2.0)


def test_deepcopy_keeps_the_gradient_apart():
    t = gg.tensor([1.0], requires_grad=True)
    (t * 3.0).sum().backward()
    twin = copy.deepcopy({"w": t, "again": t})
    assert twin["w"] is twin["again"]
    assert twin["w"].grad.tolist() == [3.0]
    assert twin["w"].grad is not t.grad


def test_to_changes_dtype_and_keeps_identity_when_nothing_changes():
    t = gg.tensor([1.0], requires_grad=True)
    assert t.to("cpu") is t
    assert t.to(gg.float32) is t
    wide = t.to("float64")
    assert wide.dtype == gg.float64
    wide.sum().backward()
    assert t.grad.dtype == gg.float32
    assert gg.ones(2).to(device="cpu", dtype=gg.int32).dtype == gg.int32


def test_cuda_says_why_it_is_not_there():
    if gg.is_available("cuda"):
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match="cuda"):
        gg.tensor([1.0]).cuda()
    with pytest.raises(DeviceError, match="unknown device"):
        gg.zeros(2, device="tpu")


class Far(np.ndarray):
    """An array on another device, which refuses to be mixed with arrays of the CPU."""

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if any(isinstance(x, np.ndarray) and type(x) is not Far and x.ndim for x in inputs):
            raise TypeError("far and near arrays do not mix")
        near = [x.view(np.ndarray) if type(x) is Far else x for x in inputs]
        return np.asarray(getattr(ufunc, method)(*near, **kwargs)).view(Far)


class FarNumpy:
    """NumPy's functions, with results on the other device."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: np.asarray(getattr(np, name)(*args, **kwargs)).view(Far)


class FarBackend(type(backends.get("cpu"))):
    name, array_type, xp = "far", Far, FarNumpy()

    def implement(self, fwd, special):
        run = super().implement(fwd, special)

        def checked(*args, **attrs):
            assert np.ndarray not in map(type, args), "an array of the CPU in code for the other device"
            return run(*args, **attrs)

        return checked

    def asarray(self, value, dtype=None, *, device=None, copy=None):
        return np.array(value, dtype=dtype, copy=copy).view(Far)

    def to_numpy(self, array):
        return np.asarray(array).view(np.ndarray)

    def device_of(self, array):
        return "far"


@pytest.fixture
def far(monkeypatch):
    monkeypatch.setattr(backends, "_by_name", dict(backends._by_name))
    monkeypatch.setattr(backends, "_by_type", dict(backends._by_type))
    backends.register(FarBackend())
    return "far"


def test_gradients_come_back_from_another_device(far):
    """Branches on two devices meet; each rule must run where its arrays are."""
    x = gg.tensor([0.5, 2.0], requires_grad=True)
    there = gg.exp(x * 2.0).to(device=far)
    assert there.device == far
    near = x * 3.0
    total = (there * there).to(device="cpu") + near * x
    total.sum().backward()
    assert type(x.grad.data) is np.ndarray
    want = 4 * np.exp(4 * x.numpy()) + 6 * x.numpy()
    np.testing.assert_allclose(x.grad.numpy(), want, rtol=1e-6)


def test_a_leaf_on_one_device_and_a_result_on_another(far):
    x = gg.tensor([1.0, 2.0], device=far, requires_grad=True)
    (x * x).to(device="cpu").sum().backward()
    assert x.grad.device == far
    assert x.grad.tolist() == [2.0, 4.0]
    y = gg.tensor([1.0, 2.0], requires_grad=True)
    (y * y).to(device=far).sum().backward()
    assert y.grad.device == "cpu"
    assert y.grad.tolist() == [2.0, 4.0]


def test_default_device(far):
    gg.set_default_device(far)
    try:
        assert gg.zeros(2).device == gg.tensor([1.0]).device == gg.arange(3).device == gg.get_default_device() == far
        assert gg.zeros(2, device="cpu").device == "cpu"
    finally:
        gg.set_default_device("cpu")
    assert gg.zeros(2).device == "cpu"


def test_operands_on_different_devices_are_named(far):
    with pytest.raises(DeviceError, match="different devices: cpu, far"):
        gg.ones(2) + gg.ones(2, device=far)


# --- repr -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, text", [
    (lambda: gg.tensor([1.0, 2.5]), "tensor([1. , 2.5], dtype=float32)"),
    (lambda: gg.tensor(3), "tensor(3, dtype=int64)"),
    (lambda: gg.tensor([True]), "tensor([ True], dtype=bool)"),
    (lambda: gg.zeros((0, 2)), "tensor([], shape=(0, 2), dtype=float32)"),
    (lambda: gg.tensor([[1, 2], [3, 4]]), "tensor([[1, 2],\n        [3, 4]], dtype=int64)"),
    (lambda: gg.tensor([1.0], requires_grad=True), "tensor([1.], dtype=float32, requires_grad=True)"),
])  # fmt: skip
def test_repr_of_leaves(make, text):
    assert repr(make()) == text


def test_repr_names_the_line_that_made_it():
    x = gg.tensor([1.0], requires_grad=True)
    y = x * 2.0
    line = test_repr_names_the_line_that_made_it.__code__.co_firstlineno + 2
    assert repr(y) == f"tensor([2.], dtype=float32, from=multiply at test_tensor.py:{line})"
    y.sum().backward()
    assert repr(y) == f"tensor([2.], dtype=float32, from=multiply at test_tensor.py:{line}, spent)"


def test_repr_never_fetches_a_large_array_from_a_device(far, monkeypatch):
    def refuse(self, array):
        raise AssertionError("a copy to the host")

    small, large = gg.ones(1000, device=far), gg.ones((2, 501), device=far)
    assert repr(small).endswith("device=far)")
    monkeypatch.setattr(FarBackend, "to_numpy", refuse)
    assert repr(large) == "tensor(<shape [2, 501]>, dtype=float32, device=far)"
    assert "..." in repr(gg.ones(2000))


def test_requires_grad_of_integers_is_refused():
    with pytest.raises(DTypeError, match="int64"):
        gg.tensor([1]).requires_grad_()


def test_bytes():
    x = gg.zeros((3, 4), dtype="float16")
    assert (x.itemsize, x.nbytes) == (2, 24)


def test_numpy_cannot_cut_a_gradient_in_silence():
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(gg.errors.GraphError, match="part of a graph, which NumPy would cut"):
        np.asarray(x * 2)
    assert np.asarray((x * 2).detach()).tolist() == [2, 4]
    with gg.no_grad():
        assert np.asarray(x).tolist() == [1, 2]
    y = (x * x).sum()
    y.backward()
    assert np.asarray(y) == 5  # spent: there is nothing left to cut
