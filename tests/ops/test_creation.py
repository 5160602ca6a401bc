"""Making tensors, and the dtype questions."""

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import DeviceError, DTypeError, RangeError, ShapeError


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool"])
def test_arrays_of_any_layout_round_trip_bit_for_bit(dtype):
    bits = np.random.default_rng(0).integers(0, 256, 8 * 6 * 4, dtype="uint8")  # NaN payloads and subnormals included
    x = (bits > 127)[: 6 * 4] if dtype == "bool" else bits.view(dtype)[: 6 * 4]
    x = x.reshape(6, 4)
    for a in (x, x.T, x[::2, ::-1], np.asfortranarray(x), x[:0], x[0, 0]):
        t = gg.tensor(a)
        assert t.dtype == dtype
        assert t.shape == a.shape
        assert t.numpy().tobytes() == np.asarray(a).tobytes()
        assert not np.shares_memory(t.data, x)


def test_numbers_and_lists_take_default_types():
    assert gg.tensor(1.5).dtype == gg.float32
    assert gg.tensor(2).dtype == gg.int64
    assert gg.tensor(True).dtype == gg.bool_
    assert gg.tensor([[1, 2.0]]).dtype == gg.float32
    assert gg.tensor([1, 2]).dtype == gg.int64
    assert gg.tensor([True, False]).dtype == gg.bool_
    assert gg.tensor([]).dtype == gg.float32
    assert gg.tensor(1j).dtype == gg.complex64
    assert gg.tensor(np.float64(1)).dtype == gg.float64
    assert gg.tensor([np.ones(2)]).dtype == gg.float64
    assert gg.tensor([1, 2], dtype="float16").dtype == gg.float16
    gg.set_default_dtype(gg.float64)
    try:
        assert gg.tensor([0.1]).item() == 0.1
        assert gg.zeros(2).dtype == gg.linspace(0, 1, 3).dtype == gg.arange(0.5, 2).dtype == gg.float64
    finally:
        gg.set_default_dtype(gg.float32)


def test_tensors_in_lists_are_stacked_with_their_history():
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    y = gg.tensor([[x[1], x[0] * 3.0], [4.0, 5]])
    assert y.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    y.sum().backward()
    assert x.grad.tolist() == [3.0, 1.0]


def test_tensor_copies_and_leaves_history_behind():
    x = gg.tensor([1.0], requires_grad=True)
    y = gg.tensor(x * 2.0)
    assert y.is_leaf
    assert not y.requires_grad
    a = np.ones(3)
    t = gg.tensor(a)
    a[0] = 5
    assert t.tolist() == [1, 1, 1]
    assert gg.tensor(t, requires_grad=True).requires_grad


def test_asarray_shares_where_it_can():
    a = np.ones(3)
    assert np.shares_memory(gg.asarray(a).data, a)
    assert not np.shares_memory(gg.asarray(a, copy=True).data, a)
    t = gg.asarray(a)
    assert gg.asarray(t) is t
    assert not np.shares_memory(gg.asarray(t, copy=True).data, a)
    x = gg.tensor(a, requires_grad=True)
    gg.asarray(x, dtype=gg.float32).sum().backward()
    assert x.grad.tolist() == [1, 1, 1]
    for obj, dtype in (([1.0], None), (a, "float32"), (t, "float32")):
        with pytest.raises(ShapeError, match="copy"):
            gg.asarray(obj, dtype=dtype, copy=False)


@pytest.mark.parametrize("call, kind, words", [
    (lambda: gg.tensor(np.ones(2, ">f8")), DTypeError, [">f8", "newbyteorder"]),
    (lambda: gg.tensor(np.array([object()])), DTypeError, ["object"]),
    (lambda: gg.tensor(["a"]), DTypeError, ["<U1"]),
    (lambda: gg.tensor(None), DTypeError, ["object"]),
    (lambda: gg.tensor(np.array(["2020-01-01"], "datetime64[D]")), DTypeError, ["datetime64"]),
    (lambda: gg.tensor([[1.0], [1.0, 2.0]]), ShapeError, ["ragged"]),
    (lambda: gg.tensor([1], requires_grad=True), DTypeError, ["floating-point", "int64"]),
    (lambda: gg.tensor([1.0], dtype="flaot32"), DTypeError, ["flaot32"]),
    (lambda: gg.tensor([1.0], dtype="U3"), DTypeError, ["<U3"]),
    (lambda: gg.tensor([1.0], device="tpu"), DeviceError, ["'tpu'"]),
    (lambda: gg.zeros((2, -1)), ShapeError, ["[zeros]", "[2, -1]"]),
    (lambda: gg.zeros(2.5), DTypeError, ["[zeros]", "2.5"]),
    (lambda: gg.arange(0, 5, 0), RangeError, ["[arange]", "step"]),
    (lambda: gg.linspace(0, 1, -2), ShapeError, ["[linspace]", "-2"]),
    (lambda: gg.meshgrid(gg.ones((2, 2))), ShapeError, ["[meshgrid]", "float32[2, 2]"]),
    (lambda: gg.set_default_device("tpu"), DeviceError, ["'tpu'"]),
])  # fmt: skip
def test_errors_name_op_and_this_line(call, kind, words):
    with pytest.raises(kind) as caught:
        call()
    for word in [*words, "test_creation.py:"]:
        assert word in str(caught.value)


def test_shapes_and_ranges():
    assert gg.zeros(3).tolist() == [0, 0, 0]
    assert gg.ones((2, 1), dtype=gg.int32).tolist() == [[1], [1]]
    assert gg.empty((2, 3)).shape == (2, 3)
    assert (gg.full(2, 7).dtype, gg.full((2,), 7.0).dtype, gg.full(2, True).dtype) == (gg.int64, gg.float32, gg.bool_)
    x = gg.ones((2, 3), dtype=gg.float16)
    for like in (gg.zeros_like(x), gg.ones_like(x), gg.empty_like(x), gg.full_like(x, 4)):
        assert (like.shape, like.dtype) == (x.shape, x.dtype)
    assert gg.zeros_like(x, dtype=gg.int64).dtype == gg.int64
    assert gg.arange(5).tolist() == [0, 1, 2, 3, 4]
    assert gg.arange(5).dtype == gg.int64
    assert gg.arange(1, 7, 2).tolist() == [1, 3, 5]
    np.testing.assert_array_equal(gg.arange(0, 1, 0.1).numpy(), np.arange(0, 1, 0.1).astype("float32"))
    np.testing.assert_array_equal(gg.linspace(0, 1, 7).numpy(), np.linspace(0, 1, 7).astype("float32"))
    assert gg.linspace(0, 4, 4, endpoint=False).tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(gg.eye(2, 3, k=1).numpy(), np.eye(2, 3, k=1))


def test_full_of_a_tensor_is_differentiable():
    x = gg.tensor(2.0, requires_grad=True)
    gg.full((2, 3), x).sum().backward()
    assert x.grad.item() == 6


@pytest.mark.parametrize("indexing", ["xy", "ij"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_meshgrid(indexing, n):
    xs = [np.arange(k + 2.0) for k in range(n)]
    for got, want in zip(gg.meshgrid(*map(gg.tensor, xs), indexing=indexing), np.meshgrid(*xs, indexing=indexing)):
        np.testing.assert_array_equal(got.numpy(), want)


def test_dtype_questions():
    assert gg.result_type(gg.float32, gg.int64) == gg.float32
    assert gg.result_type(gg.ones(2), 3.0, np.float64) == gg.float64
    assert gg.result_type(gg.int32, 2.5) == gg.float32
    assert gg.result_type(gg.int8, 2) == gg.int8
    assert gg.result_type(gg.bool_, 2) == gg.int64
    assert gg.result_type(gg.float32, 1j) == gg.complex64
    assert gg.can_cast(gg.float32, gg.float64)
    assert not gg.can_cast(gg.ones(2, dtype=gg.float64), gg.float32)
    assert not gg.can_cast(gg.int32, gg.float64)
    assert gg.finfo(gg.float32).eps == np.finfo("float32").eps
    assert gg.iinfo(gg.ones(2, dtype=gg.int8)).max == 127
    assert gg.isdtype(gg.float16, "real floating")
    assert gg.isdtype(gg.int8, ("bool", "integral"))
    assert gg.isdtype(gg.bool_, "bool")
    assert not gg.isdtype(gg.bool_, "numeric")
    assert gg.isdtype(gg.float32, np.float32)
    with pytest.raises(DTypeError):
        gg.result_type(1, 2.0)
