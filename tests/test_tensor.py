"""Making tensors and getting values out: creation, conversion, dtype and device, repr, copies."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import gpugrad as gg

DTYPES = ["float16", "float32", "float64", "int32", "int64", "bool", "int8", "uint8"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_round_trip_is_bit_exact(dtype):
    rng = np.random.default_rng(0)
    a = (rng.normal(size=(3, 4)) * 3).astype(dtype)
    for made in (gg.tensor(a), gg.asarray(a), gg.tensor(a.tolist(), dtype=dtype)):
        assert made.dtype == dtype
        assert made.numpy().tobytes() == a.tobytes()
    for layout in (a.T, a[::-1, ::2], np.asfortranarray(a)):
        assert np.array_equal(gg.tensor(layout).numpy(), layout)


def test_tensor_copies_and_asarray_shares():
    a = np.ones(3)
    assert not np.shares_memory(gg.tensor(a).data, a)
    assert np.shares_memory(gg.asarray(a).data, a)


def test_default_dtypes():
    assert gg.tensor([1.0, 2.0]).dtype == gg.float32
    assert gg.tensor([1, 2]).dtype == gg.int64
    assert gg.tensor([True]).dtype == gg.bool_
    assert gg.zeros(2).dtype == gg.ones(2).dtype == gg.float32
    assert gg.tensor(np.float64(1.0).reshape(1)).dtype == gg.float64
    gg.set_default_dtype("float64")
    try:
        assert gg.tensor([1.0]).dtype == gg.zeros(1).dtype == gg.exp(gg.tensor([1])).dtype == gg.float64
    finally:
        gg.set_default_dtype("float32")


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


@pytest.mark.parametrize("bad", ["abc", [[1, 2], [3]], object(), [None], np.array(["a"]), np.array([1.0], ">f8")])
def test_what_is_no_array_is_refused(bad):
    with pytest.raises(gg.errors.GpugradError):
        gg.tensor(bad)


def test_python_conversions():
    x = gg.tensor([2.5])
    assert (float(x), int(x), bool(x), x.item()) == (2.5, 2, True, 2.5)
    assert [10, 20, 30][gg.tensor(1)] == 20
    assert f"{gg.tensor(1.23456):.2f}" == "1.23"
    assert len(gg.ones((3, 2))) == 3
    assert [r.tolist() for r in gg.tensor([[1, 2], [3, 4]])] == [[1, 2], [3, 4]]
    assert 2 in gg.tensor([1, 2])
    assert np.asarray(gg.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    with pytest.raises(TypeError):
        len(gg.tensor(1.0))
    with pytest.raises(TypeError):
        iter(gg.tensor(1.0))


def test_comparison_with_strangers():
    x = gg.tensor([1.0])
    assert (x == None) is False  # noqa: E711
    assert (x != "a") is True
    assert (x == 1.0).tolist() == [True]


def test_numpy_on_the_left():
    x = gg.tensor([1.0, 2.0], dtype=gg.float64)
    for y in (np.array([3.0, 4.0]) * x, np.float64(3) + x, np.array([3.0, 4.0]) - x, np.ones((2, 2)) @ x):
        assert type(y) is gg.Tensor


def test_to_changes_dtype_and_differentiates():
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    y = x.to(gg.float64)
    assert y.dtype == gg.float64
    (y * y).sum().backward()
    assert x.grad.dtype == gg.float32
    assert x.to("cpu") is x
    assert x.to(dtype="float32") is x


def test_cuda_says_why_it_is_not_there():
    if gg.is_available("cuda"):
        pytest.skip("there is a GPU")
    with pytest.raises(gg.errors.DeviceError, match=r"\[cuda\]|cuda"):
        gg.tensor([1.0]).cuda()
    with pytest.raises(gg.errors.DeviceError, match="unknown device"):
        gg.zeros(2, device="tpu")


def test_pickle_and_deepcopy():
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    (x * x).sum().backward()
    twin = copy.deepcopy(x)
    assert twin.requires_grad
    assert twin.grad.tolist() == x.grad.tolist()
    assert not np.shares_memory(twin.data, x.data)
    back = pickle.loads(pickle.dumps(x))
    assert back.requires_grad
    assert back.tolist() == [1.0, 2.0]
    with pytest.raises(gg.errors.GraphError, match="detach"):
        copy.deepcopy(x * 2)


def test_repr():
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    assert repr(gg.tensor([1, 2])) == "tensor([1, 2], dtype=int64)"
    assert repr(x) == "tensor([1., 2.], dtype=float32, requires_grad=True)"
    y = x * 2
    line = test_repr.__code__.co_firstlineno + 4
    assert repr(y) == f"tensor([2., 4.], dtype=float32, from=multiply at test_tensor.py:{line})"
    y.sum().backward()
    assert repr(y).endswith("spent)")
    assert "..." in repr(gg.zeros((100, 100)))
