"""Kernels of reductions against the NumPy twin in float64: on the emulator under several schedules, and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from gpugrad.launch.reduce import SLICES, extents, plan

from .kernel_checks import Pair, check, wide

rng = np.random.default_rng()
OPS = {
    "sum": {}, "mean": {}, "max": {}, "min": {}, "var": {"correction": 1}, "std": {"correction": 0.0}, "logsumexp": {},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _seed():
    """The same numbers for a test in whatever order tests run."""
    global rng
    rng = np.random.default_rng(7)


def reduced(backend, name, x, axis, keepdims=False, **attrs):
    """(kernel's result, twin's result in float64)."""
    pair, attrs = Pair(backend, name), {"axis": axis, "keepdims": keepdims, **OPS.get(name, {}), **attrs}
    got = pair.run(x, **attrs)
    attrs.pop("dtype", None)
    with np.errstate(all="ignore"):
        want = pair.twin(wide(x), **attrs)
    assert got.shape == np.shape(want)
    return got, want


def check_all(backend, x, axis, keepdims=False):
    for name in OPS:
        got, want = reduced(backend, name, x, axis, keepdims)
        assert got.dtype == x.dtype
        if name in ("max", "min"):
            np.testing.assert_array_equal(wide(got), want)
        else:
            check(got, want, x.dtype)
    if len(axis) == 1 or len(axis) == x.ndim:
        for name in ("argmax", "argmin"):
            got, want = reduced(backend, name, x, axis[0] if len(axis) == 1 else None, keepdims)
            assert got.dtype == "int64"
            np.testing.assert_array_equal(got, want)


CASES = [
    ((9, 16), (1,)), ((3, 33), (1,)), ((2, 3, 70), (1, 2)), ((2, 1025), (1,)), ((1, 8192), (1,)), ((2, 8201), (1,)),
    ((33, 4), (0,)), ((257, 12), (0,)), ((3, 40, 7), (1,)), ((1100, 31), (0,)), ((5, 4, 64), (0, 1)),
    ((2, 300, 33), (1,)), ((20, 301), (0,)),
]  # fmt: skip


@pytest.mark.parametrize("shape, axis", CASES)
def test_reductions(backend, dtype, shape, axis):
    check_all(backend, rng.normal(size=shape).astype(dtype), axis, keepdims=len(shape) == 3)


@pytest.mark.parametrize("shape, axis", [CASES[3], CASES[5], CASES[7], CASES[9]])
def test_reductions_under_schedules(backend, scheduled, shape, axis):
    x = rng.normal(size=shape).astype("float32")
    want = [reduced(backend, name, x, axis)[0] for name in OPS]
    with scheduled:
        check_all(backend, x, axis)
        for name, bits in zip(OPS, want):
            assert np.array_equal(reduced(backend, name, x, axis)[0], bits)


@pytest.mark.parametrize("shape", [(4, 40), (3, 9000)])
def test_nan_infinities_and_ties(backend, dtype, shape):
    inf, nan = np.inf, np.nan
    rows = [[1, nan, 3, nan], [-inf, inf, -inf, inf], [2, 5, 5, 2], [nan, inf, -inf, 0]][: shape[0]]
    for base in (-inf, 0.0):
        x = np.full(shape, base, dtype)
        x[:, -4:] = rows
        for array, axis in ((x, 1), (np.ascontiguousarray(x.T), 0)):
            for name in ("max", "min", "sum", "logsumexp"):
                np.testing.assert_allclose(*(wide(a) for a in reduced(backend, name, array, (axis,))), rtol=1e-2)
            for name in ("argmax", "argmin"):
                np.testing.assert_array_equal(*reduced(backend, name, array, axis))


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("shape, axis", [((2, 300), 1), ((40, 12), 0), ((40, 9), 0)])
def test_misaligned_views(backend, dtype, offset, shape, axis):
    n = shape[0] * shape[1]
    x = rng.normal(size=n + 8).astype(dtype)
    for name in OPS:
        pair, attrs = Pair(backend, name), {"axis": (axis,), "keepdims": False, **OPS[name]}
        (whole,) = pair.device(x)
        got = backend.to_numpy(pair.kernel(whole[offset : offset + n].reshape(shape), **attrs))
        check(got, pair.twin(wide(x[offset : offset + n].reshape(shape)), **attrs), dtype)


def test_ten_million_halves_are_summed_exactly(backend):
    got, want = reduced(backend, "sum", np.ones(10_000_000, "float16"), (0,), dtype=np.dtype("float32"))
    assert got.dtype == "float32"
    assert got == want == 1e7


@pytest.mark.parametrize("shape, axis", [((1 << 20,), 0), ((1 << 17, 4), 0), ((1 << 14, 24), 0)])
def test_the_error_of_a_sum_does_not_grow_with_its_length(backend, shape, axis):
    x = rng.random(shape).astype("float32")
    got, want = reduced(backend, "sum", x, (axis,))
    assert np.abs(got / want - 1).max() < 2e-7  # one by one: 1e-5 and more


@pytest.mark.parametrize("shape, axis", [((2, 9000), 1), ((9000, 4), 0)])
def test_variance_far_from_zero(backend, shape, axis):
    """Deviations of 1 around 10,000: the difference of two sums of squares would leave no digit."""
    x = (1e4 + rng.normal(size=shape)).astype("float32")
    got, want = reduced(backend, "var", x, (axis,))
    np.testing.assert_allclose(got, want, rtol=2e-6)


def test_a_row_is_summed_alike_however_many_there_are(backend):
    x = rng.normal(size=(5, 20_000)).astype("float32")
    whole, _ = reduced(backend, "sum", x, (1,))
    assert [reduced(backend, "sum", x[i : i + 1], (1,))[0][0] for i in range(5)] == whole.tolist()


@pytest.mark.parametrize(
    "shape, axis", [((6, 5, 4, 7), (0, 2, 3)), ((20, 1, 3, 17), (0, 1, 3)), ((4, 20, 5, 20), (1, 3))]
)
def test_axes_with_a_kept_one_between_them(backend, dtype, shape, axis):
    x = rng.normal(size=shape).astype(dtype)
    for name in ("sum", "mean", "max", "min"):
        got, want = reduced(backend, name, x, axis)
        assert got.dtype == dtype
        check(got, want, dtype)
    pair = Pair(backend, "var")
    with pytest.raises(TypeError):  # no kernel: the twin, absent here, takes it
        pair.run(x, axis=axis, keepdims=False, correction=0)


def test_sums_in_another_type(backend, dtype):
    x = rng.normal(size=(4, 50)).astype(dtype)
    half = dtype.itemsize == 2
    got, want = reduced(backend, "sum", x, (1,), dtype=np.dtype("float32" if half else dtype))
    check(got, want, np.dtype("float32") if half else dtype)
    assert got.dtype == ("float32" if half else dtype)
    if not half:
        with pytest.raises(TypeError):  # no kernel: the twin, absent here, takes it
            reduced(backend, "sum", x, (1,), dtype=np.dtype("float16"))


@pytest.mark.parametrize(
    "x, axis",
    [
        (np.ones((0, 5), "float32"), (0,)), (np.ones((5, 0), "float32"), (0,)), (np.ones((5, 3), "float32"), (1,)),
        (np.ones((5, 30), "float32").T, (1,)), (np.ones((5, 30), int), (1,)),
    ],
)  # fmt: skip
def test_what_is_left_to_the_twin(backend, x, axis):
    pair = Pair(backend, "sum")
    array = pair.device(np.ascontiguousarray(x.T))[0].T if x.flags.f_contiguous and x.ndim == 2 else pair.device(x)[0]
    with pytest.raises(TypeError):
        pair.kernel(array, axis=axis, keepdims=False)


def test_extents():
    assert extents((2, 3, 4), (1,)) == (2, 3, 4)
    assert extents((2, 3, 4), (2, 1)) == (2, 12, 1)
    assert extents((2, 3, 4), (0, 1, 2)) == (1, 24, 1)
    assert extents((2, 1, 4), (0, 2)) == (1, 8, 1)
    assert extents((2, 3, 4), (0, 2)) is None
    assert extents((2, 3), ()) == (6, 1, 1)
    assert extents((), ()) == (1, 1, 1)


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("inner", [1, 3, 64, 50257])
@pytest.mark.parametrize("reduced", [2, 8193, 10**7, 10**10])
def test_slices_cover_the_reduced_extent(itemsize, inner, reduced):
    cut = plan(reduced, inner, itemsize)
    assert 1 <= cut.slices <= SLICES
    assert (cut.slices - 1) * cut.span < reduced <= cut.slices * cut.span
    assert cut.span % 8 == 0
    assert cut.block[0] * cut.block[1] == 256
    assert (cut.tiles - 1) * cut.block[0] * 16 // itemsize < inner <= cut.tiles * cut.block[0] * 16 // itemsize
