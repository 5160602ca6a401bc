"""Matrix products through cuBLASLt: on its double, on a GPU, and the descriptors on the real library without one."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpugrad as gg
from gpugrad import backends
from gpugrad.backends import cublaslt, cuda
from gpugrad.errors import DeviceError, DomainError, ShapeError
from gpugrad.op import TABLE
from gpugrad.testing import fake_cublaslt, fake_cupy

EPS = {"float64": 2.3e-16, "float32": 1.2e-7, "float16": 1e-3, "bfloat16": 8e-3}


@pytest.fixture
def double():
    """A backend on the double, with products of its own to report."""
    return cuda.load(fake_cupy)


@pytest.fixture
def gemm(double):
    return double.gemm


def floats(rng, shape, dtype="float32"):
    return rng.normal(size=shape).astype(dtype)


def near(got, want, dtype, size):
    """Equal but for `size` roundings of numbers as large as the largest wanted."""
    want = np.asarray(want, "float64")
    assert got.shape == want.shape
    scale = max(1.0, np.abs(want[np.isfinite(want)]).max(initial=0))
    np.testing.assert_allclose(got.astype("float64"), want, rtol=0, atol=4 * EPS[str(dtype)] * scale * size)


def product(*arrays):
    return np.matmul(*(a.astype("float64") for a in arrays))


# --- values ---------------------------------------------------------------------------------------------------------

SHAPES = [
    ((3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,)), ((1, 1), (1, 1)), ((33, 65), (65, 31)),
    ((2, 3, 4), (4, 5)), ((2, 3, 4), (4,)), ((4,), (2, 4, 5)), ((3, 4), (2, 4, 5)), ((6, 3, 4), (6, 4, 5)),
    ((2, 1, 3, 4), (6, 4, 5)), ((2, 3, 5, 4), (2, 3, 4, 6)), ((1, 3, 4), (7, 4, 1)), ((2, 3, 4), (1, 4, 5)),
    ((5, 600), (600, 3)), ((0, 4), (4, 5)), ((3, 0), (0, 5)), ((2, 3, 0), (0,)), ((0, 3, 4), (4, 5)), ((4,), (4, 0)),
]  # fmt: skip


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_values_are_those_of_matmul(backend, dtype, shapes):
    rng = np.random.default_rng(0)
    a, b = (floats(rng, s, dtype) for s in shapes)
    out = backend.gemm(backend.asarray(a), backend.asarray(b))
    assert out.dtype == dtype
    near(backend.to_numpy(out), product(a, b), dtype, np.sqrt(a.shape[-1] + 1))


@pytest.mark.parametrize("library", [True, False], ids=["library", "composed"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_alpha_bias_and_accumulation_for_every_shape(backend, shapes, library):
    gemm = backend.gemm if library else cublaslt.Gemm(backend, "taken away for a test")
    rng = np.random.default_rng(0)
    a, b = (floats(rng, s) for s in shapes)
    exact = product(a, b)
    out, bias = floats(rng, exact.shape), floats(rng, b.shape[-1] if b.ndim > 1 else 1)
    x, y, z, into = map(backend.asarray, (a, b, bias, out))
    near(backend.to_numpy(gemm(x, y, alpha=-0.5)), -exact / 2, "float32", 20)
    assert gemm(x, y, out=into, alpha=2.0, addend=into) is into
    near(backend.to_numpy(into), 2 * exact + out, "float32", 20)
    wanted = exact + (bias if b.ndim > 1 else bias[0])
    near(backend.to_numpy(gemm(x, y, bias=z, epilogue="relu")), np.maximum(wanted, 0), "float32", 20)


def lying(rng, how, shape):
    """An array of this shape that lies in memory in one of many ways, as a function of a larger one."""
    axes, gaps, starts, flips = how
    order = sorted(range(len(shape)), key=lambda i: axes[i])
    lengths = [shape[i] * gaps[i] + starts[i] for i in order]
    back = tuple(order.index(i) for i in range(len(shape)))

    def view(x):
        x = x.transpose(back)
        cut = tuple(slice(s, s + n * g, g) for s, n, g in zip(starts, shape, gaps))
        return x[cut][tuple(slice(None, None, -1 if f else 1) for f in flips)]

    return floats(rng, lengths), view


@st.composite
def lay(draw, ndim):
    some = st.lists(st.integers(0, 9), min_size=ndim, max_size=ndim)
    gaps = draw(st.lists(st.sampled_from([1, 1, 1, 2]), min_size=ndim, max_size=ndim))
    flips = draw(st.lists(st.sampled_from([False] * 7 + [True]), min_size=ndim, max_size=ndim))
    return draw(some), gaps, [s % 3 for s in draw(some)], flips


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_any_view_gives_the_same_product(data):
    gemm, rng = SHARED.gemm, np.random.default_rng(1)
    batch = data.draw(st.lists(st.integers(1, 3), max_size=2))
    m, k, n = (data.draw(st.integers(1, 5)) for _ in "mkn")
    left = [1 if data.draw(st.booleans()) else x for x in batch][data.draw(st.integers(0, len(batch))) :]
    right = [x if len(left) < len(batch) or left[i] == 1 else data.draw(st.sampled_from([1, x]))
             for i, x in enumerate(batch)]  # fmt: skip
    shapes = [*left, m, k], [*right, k, n], [*batch, m, n]
    (a, see_a), (b, see_b), (c, see_c) = (lying(rng, data.draw(lay(len(s))), s) for s in shapes)
    if data.draw(st.booleans()):
        b, see_b = np.ascontiguousarray(b), see_b
    x, y, memory = (fake_cupy.asarray(v) for v in (a, b, c))
    want = product(see_a(a), see_b(b))
    near(gemm(see_a(x), see_b(y)).get(), want, "float32", 10)
    out = see_c(memory)
    before, accumulate = see_c(c).copy(), data.draw(st.booleans())
    wanted = np.matmul(see_a(a), see_b(b)).shape
    if out.shape == wanted:
        assert gemm(see_a(x), see_b(y), out=out, addend=out if accumulate else None) is out
        near(out.get(), want + accumulate * before, "float32", 10)
        untouched = np.ones(c.shape, bool)
        see_c(untouched)[...] = False
        assert np.array_equal(memory.get()[untouched], c[untouched])  # nothing beside the view was written


SHARED = cuda.load(fake_cupy)


def test_transposes_and_padded_rows_are_read_as_they_lie(gemm):
    rng = np.random.default_rng(0)
    a, b = (fake_cupy.asarray(floats(rng, s)) for s in ((6, 3, 4), (6, 5, 4)))
    fake_cupy.called.clear()
    for x, y in [
        (a[0], b[0].T), (a[0].T, a[0]), (a, b.swapaxes(-1, -2)), (a[:, :, :3].swapaxes(1, 2), a), (a[0], b[0, :, :].T),
        (a[::2], b[1::2].swapaxes(1, 2)), (a, b[0].T), (a[:, 0, 1:], b[0, :, 1:].T), (a[0, 1:], b[3].T),
        (a[0, 1], b[0].T),
    ]:  # fmt: skip
        gemm(x, y)
    assert "ascontiguousarray" not in fake_cupy.called
    assert reasons(gemm) == []
    gemm(a[:, :, ::2], b[:, :2, ::2].swapaxes(1, 2))
    assert fake_cupy.called.count("ascontiguousarray") == 2


def reasons(gemm):
    return [p.reason for p in gemm.paths() if p.reason]


def test_overlapping_rows_are_copied(gemm):
    row = fake_cupy.asarray(floats(np.random.default_rng(0), (4,)))
    window = fake_cupy.lib.stride_tricks.as_strided(row, (3, 2), (4, 4))
    for a, b in [(fake_cupy.broadcast_to(row, (3, 4)), row), (window, window.T), (window.T, window)]:
        near(gemm(a, b).get(), product(a.get(), b.get()), "float32", 4)
    assert reasons(gemm) == []


def test_results_are_written_where_they_lie(gemm):
    rng = np.random.default_rng(0)
    a, b = (fake_cupy.asarray(floats(rng, (2, 3, 3))) for _ in "ab")
    want = product(a.get(), b.get())
    for axes in itertools.permutations(range(3)):
        memory = fake_cupy.empty([(2, 3, 3)[i] for i in axes], "float32")
        out = memory.transpose(np.argsort(axes).tolist())
        near(gemm(a, b, out=out).get(), want, "float32", 4)
        assert bool(reasons(gemm)) is (axes[-1] != 2)  # columns that are not contiguous are copied
        gemm.chosen.clear()
        gemm.mine.__dict__.clear()


def test_one_matrix_of_a_stack_is_copied_alone(gemm):
    a, b = (fake_cupy.asarray(floats(np.random.default_rng(0), s)) for s in ((4, 3, 3), (3, 10)))
    a, b = a.swapaxes(1, 2), b[:, ::2]
    near(gemm(a, b).get(), product(a.get(), b.get()), "float32", 4)
    (path,) = gemm.paths()
    assert (path.problem.batch, path.problem.b.stride) == (4, 0)


def test_heads_of_attention_are_copied_once(gemm):
    q = fake_cupy.asarray(floats(np.random.default_rng(0), (2, 5, 3, 4)))
    heads = q.swapaxes(1, 2)  # (batch, heads, length, width), in steps that no single stride makes
    fake_cupy.called.clear()
    got = gemm(heads, heads.swapaxes(-1, -2), alpha=0.5).get()
    host = heads.get()
    near(got, product(host, host.swapaxes(-1, -2)) / 2, "float32", 2)
    assert fake_cupy.called.count("ascontiguousarray") == 2


def test_a_stack_times_one_matrix_is_one_product(gemm):
    a, b = (fake_cupy.asarray(np.ones(s, "float32")) for s in ((2, 3, 4, 5), (5, 6)))
    gemm(a, b)
    gemm(fake_cupy.asarray(np.ones((3, 2, 4, 5), "float32")).swapaxes(0, 1), b)  # after a copy
    (path,) = gemm.paths()
    assert (path.problem.batch, path.problem.m) == (1, 24)


def test_sixteen_bits_add_up_in_float32(backend):
    """Also where an algorithm splits the sum: the halves, 2049 and -2048, are not both numbers of float16."""
    a = np.ones((1, 4098), "float16")
    b = np.where(np.arange(4098) < 2049, 1, -1).astype("float16")[:, None]
    b[-1] = 0
    assert backend.to_numpy(backend.gemm(backend.asarray(a), backend.asarray(b))) == 1


def test_a_float32_result_of_sixteen_bits(backend, dtype):
    rng = np.random.default_rng(0)
    a, b = floats(rng, (5, 7), dtype), floats(rng, (7, 3), dtype)
    out = backend.asarray(np.ones((5, 3), "float32"))
    assert backend.gemm(backend.asarray(a), backend.asarray(b), out=out, addend=out) is out
    near(backend.to_numpy(out), product(a, b) + 1, "float32", 4)


def test_mixed_types_take_their_common_one(gemm):
    a, b = np.ones((2, 3), "float32"), np.ones((3, 4), "float64")
    out = gemm(fake_cupy.asarray(a), fake_cupy.asarray(b))
    assert out.dtype == "float64"
    assert (out.get() == 3).all()


# --- epilogues ------------------------------------------------------------------------------------------------------


def gelu(x):
    c = np.sqrt(2 / np.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)


@pytest.fixture(params=["library", "composed"])
def either(request, backend, dtype):
    """Products by the library, and without it."""
    library = request.param == "library"
    gemm = cublaslt.Gemm(backend, cuda.cublaslt(backend.xp) if library else "taken away for a test")
    yield gemm
    declined = {p.reason for p in gemm.paths()} - {""}
    assert bool(declined) is (not library or dtype == "float64") or backend.xp is not fake_cupy


@pytest.mark.parametrize("columns", [1, 8, 37, 130])
@pytest.mark.parametrize("lead", [(6,), (2, 3)], ids=["matrix", "stack"])
def test_activations_with_bias_and_their_slopes(backend, dtype, either, columns, lead):
    rng = np.random.default_rng(columns)
    a, b, bias, t, w = (floats(rng, s, dtype) for s in ((*lead, 5), (5, columns), columns, (*lead, 4), (4, columns)))
    x, y, z, u, v = map(backend.asarray, (a, b, bias, t, w))
    host, tolerance = backend.to_numpy, 8
    pre, pull = product(a, b) + bias.astype("float64"), product(t, w)
    near(host(either(x, y, bias=z)), pre, dtype, tolerance)
    for name, value, slope in (("relu", np.maximum(pre, 0), pre > 0), ("gelu", *gelu(pre))):
        near(host(either(x, y, bias=z, epilogue=name)), value, dtype, tolerance)
        out, aux = either(x, y, bias=z, epilogue=f"{name}_aux")
        near(host(out), value, dtype, tolerance)
        if name == "relu":
            slope = host(out) > 0
        near(host(either(u, v, epilogue=f"d{name}", aux=aux)), pull * slope, dtype, tolerance)
        grad, sums = either(u, v, epilogue=f"d{name}_bgrad", aux=aux)
        near(host(grad), pull * slope, dtype, tolerance)
        near(host(sums), (pull * slope).reshape(-1, columns).sum(0), dtype, tolerance)
    bare = product(a, b)
    near(host(either(x, y, epilogue="relu")), np.maximum(bare, 0), dtype, tolerance)
    near(host(either(x, y, epilogue="gelu_aux")[0]), gelu(bare)[0], dtype, tolerance)


def test_sums_over_the_inner_axis(backend, dtype, either):
    rng = np.random.default_rng(0)
    a, b = floats(rng, (9, 6), dtype), floats(rng, (9, 5), dtype)
    x, y = backend.asarray(a).T, backend.asarray(b)  # as in the gradient of a weight
    for name, want in (("bgrad_a", a), ("bgrad_b", b)):
        out, sums = either(x, y, epilogue=name)
        near(backend.to_numpy(out), product(a.T, b), dtype, 4)
        near(backend.to_numpy(sums), want.astype("float64").sum(0), dtype, 4)


def test_a_stack_that_does_not_lie_as_one_is_copied_for_an_epilogue_over_its_rows(gemm):
    a, b = (fake_cupy.asarray(floats(np.random.default_rng(0), s)) for s in ((2, 4, 3), (4, 5)))
    out, sums = gemm(a.swapaxes(1, 2), b, epilogue="bgrad_a")
    near(out.get(), product(a.get().swapaxes(1, 2), b.get()), "float32", 4)
    near(sums.get(), a.get().swapaxes(1, 2).sum(-1).reshape(-1), "float32", 4)
    assert reasons(gemm) == []


@pytest.mark.parametrize("bias", [np.arange(10, dtype="float16")[::2], np.arange(5, dtype="float32")], ids=str)
def test_a_bias_that_the_library_cannot_read(gemm, bias):
    a, b = (floats(np.random.default_rng(i), (5, 5), "float16") for i in (0, 1))
    moved = (
        fake_cupy.asarray(np.arange(10, dtype="float16"))[::2] if bias.dtype == "float16" else fake_cupy.asarray(bias)
    )
    near(gemm(fake_cupy.asarray(a), fake_cupy.asarray(b), bias=moved).get(), product(a, b) + bias, "float16", 4)
    (reason,) = reasons(gemm)
    assert "bias" in reason


def test_the_bit_mask_is_one_bit_an_element(gemm):
    a = fake_cupy.asarray(floats(np.random.default_rng(0), (3, 4)))
    _, aux = gemm(a, fake_cupy.asarray(floats(np.random.default_rng(1), (4, 130))), epilogue="relu_aux")
    assert (aux.dtype, aux.shape) == ("uint8", (3, 32))


MISUSED = {
    "a combination that there is not": {"epilogue": 2 | 8}, "bits in rows of 64": {"epilogue": 130, "aux_ld": 64},
    "rows longer than the mask's": {"epilogue": 130, "aux_ld": 128, "n": 200},
    "a mask without a place": {"epilogue": 130, "aux_ld": 128, "aux": 0},
    "an aux off its boundary": {"epilogue": 160, "aux_ld": 8, "aux": 24}, "no bias": {"epilogue": 6, "bias": 0},
    "a bias off its boundary": {"epilogue": 6, "bias": 18}, "sums of a stack": {"epilogue": 512, "batch": 2},
    "a mask of a stack": {"epilogue": 130, "aux_ld": 128, "batch": 2},
}  # fmt: skip


@pytest.mark.parametrize("case", [None, *MISUSED])
def test_the_double_refuses_what_the_library_refuses(gemm, case):
    given = {"epilogue": 134, "aux_ld": 128, "n": 5, "batch": 1, "aux": 256, "bias": 256, **MISUSED.get(case, {})}
    n = given["n"]
    matrices = cublaslt.Matrix(False, 4, 12), cublaslt.Matrix(False, n, 4 * n), cublaslt.Matrix(False, n, 3 * n)
    problem = cublaslt.Problem(
        3,
        n,
        4,
        given["batch"],
        "float32",
        "float32",
        *matrices,
        given["epilogue"],
        68,
        (16, 16, 16),
        given["aux_ld"],
        0,
    )
    owner = threading.Event()  # any object that weak references take
    descriptors = gemm.library.describe(problem, owner)
    gemm.library.set("MatmulDesc", descriptors[0], cublaslt.BIAS_POINTER, ctypes.c_void_p(given["bias"]))
    gemm.library.set("MatmulDesc", descriptors[0], cublaslt.AUX_POINTER, ctypes.c_void_p(given["aux"]))
    reason = gemm.library.choose(problem, descriptors).reason
    assert (reason == "") if case is None else ("INVALID_VALUE" in reason or "NOT_SUPPORTED" in reason)


def test_what_the_library_declines_is_composed(gemm):
    """The double does no epilogue in float64."""
    a, b, bias = (np.random.default_rng(0).normal(size=s) for s in ((3, 4), (4, 5), 5))
    got = gemm(fake_cupy.asarray(a), fake_cupy.asarray(b), bias=fake_cupy.asarray(bias), epilogue="relu").get()
    near(got, np.maximum(a @ b + bias, 0), "float64", 4)
    declined, done = gemm.paths()
    assert "NOT_SUPPORTED" in declined.reason
    assert (done.reason, done.compute) == ("", "64F")


# --- precision ------------------------------------------------------------------------------------------------------


def bits_of(x, bits):
    """x rounded to a significand of so many bits."""
    m, e = np.frexp(x.astype("float64"))
    return np.ldexp(np.rint(np.ldexp(m, bits)), e - bits)


@pytest.mark.parametrize("name, bits", [("highest", 24), ("tf32", 11), ("bf16", 8), ("fp16", 11)])
@pytest.mark.parametrize("shape", [(64, 64), (3, 64, 64)], ids=["matrix", "stack"])
def test_float32_factors_are_rounded_as_asked(backend, name, bits, shape):
    a, b = (floats(np.random.default_rng(i), shape) for i in (0, 1))
    with gg.matmul_precision(name):
        got = backend.to_numpy(backend.gemm(backend.asarray(a), backend.asarray(b)))
    exact = product(a, b)
    error = np.abs(got - exact).max()
    if backend.xp is fake_cupy:
        near(got, product(bits_of(a, bits), bits_of(b, bits)), "float32", 4)
    assert error < 2.0 ** (9 - bits)
    assert name == "highest" or error > 2.0 ** -(bits + 3)


def test_the_setting_is_the_processs_and_the_blocks_is_the_threads():
    seen = []
    assert gg.get_matmul_precision() == "highest"
    gg.set_matmul_precision("tf32")
    try:
        with gg.matmul_precision("bf16"):
            other = threading.Thread(target=lambda: seen.append(gg.get_matmul_precision()))
            other.start()
            other.join()
            with gg.matmul_precision("fp16"):
                seen.append(gg.get_matmul_precision())
            seen.append(gg.get_matmul_precision())
        assert [*seen, gg.get_matmul_precision()] == ["tf32", "fp16", "bf16", "tf32"]
    finally:
        gg.set_matmul_precision("highest")


@pytest.mark.parametrize("choose", [gg.set_matmul_precision, lambda name: gg.matmul_precision(name).__enter__()])
def test_an_unknown_precision_is_refused(choose):
    with pytest.raises(DomainError, match=r"'half' is no precision; expected one of.*tf32"):
        choose("half")
    assert gg.get_matmul_precision() == "highest"


def test_the_cpu_takes_no_notice():
    a = floats(np.random.default_rng(0), (8, 8))
    with gg.matmul_precision("bf16"):
        assert np.array_equal(gg.matmul(gg.tensor(a), gg.tensor(a)).numpy(), a @ a)


def test_only_float32_depends_on_it(gemm):
    for dtype in ("float16", "float32", "float64"):
        for name in ("highest", "tf32"):
            with gg.matmul_precision(name):
                a = fake_cupy.asarray(np.ones((2, 2), dtype))
                gemm(a, a)
    assert [(p.problem.dtype, p.compute) for p in gemm.paths()] == [
        ("float16", "32F"), ("float32", "32F"), ("float32", "32F_FAST_TF32"), ("float64", "64F"),
    ]  # fmt: skip


# --- what a call costs, and when it may happen ----------------------------------------------------------------------


@contextlib.contextmanager
def frames():
    """Names of the Python functions of the package that are called meanwhile, the doubles excepted."""
    names = []

    def note(frame, event, _):
        file = frame.f_code.co_filename
        if event == "call" and "gpugrad" in file and "testing" not in file and "tests" not in file:
            names.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        yield names
    finally:
        sys.setprofile(None)


def test_a_hot_product_is_one_foreign_call(double):
    a, b, bias = (fake_cupy.asarray(np.ones(s, "float32")) for s in ((4, 4), (4, 4), 4))
    gemm, calls = double.gemm, fake_cupy.cublaslt.calls
    run = double.implement(TABLE["matmul"].fwd, TABLE["matmul"].impls.special)
    run(a, b), gemm(a, b, bias=bias, epilogue="relu")
    gc.collect()  # descriptors of earlier tests, left in cycles, are destroyed now and not in between
    calls.clear()
    fake_cupy.called.clear()
    with frames() as names:
        run(a, b)
    assert calls == ["Matmul"]
    assert fake_cupy.called == []
    assert names == ["__call__", "_matmul", "gemm", "__call__", "device", "get_matmul_precision"]
    calls.clear()
    gemm(a, b, bias=bias, epilogue="relu")  # the same bias: its address is already set
    gemm(b, a, bias=bias + 0, epilogue="relu")
    assert calls == ["Matmul", "MatmulDescSetAttribute", "Matmul"]


def test_one_workspace_a_stream_is_enough(gemm):
    pool, a = fake_cupy.get_default_memory_pool(), fake_cupy.asarray(np.ones((4, 600), "float32"))
    gemm(a, a.T)
    before = pool.count
    for _ in range(3):
        gemm(a, a.T)
    assert pool.count == before + 3  # the results
    assert [w.nbytes for w in gemm.workspaces.values()] == [32 << 20]


@pytest.fixture
def stream():
    """A stream to capture, with a pool of its own."""
    with fake_cupy.cuda.using_allocator(fake_cupy.cuda.MemoryPool().malloc), fake_cupy.cuda.Stream() as made:
        yield made
        if made.is_capturing():
            made.end_capture()


def test_a_warm_product_is_captured_and_replayed(gemm, stream):
    rng = np.random.default_rng(0)
    a, b, bias = (fake_cupy.asarray(floats(rng, s)) for s in ((3, 700), (700, 4), 4))

    def work():
        y, aux = gemm(a, b, bias=bias, epilogue="relu_aux")
        dx, sums = gemm(y, b[:4, :].T, epilogue="bgrad_b")
        return y, dx, sums, gemm(y, y, epilogue="drelu", aux=aux) if y.shape[0] == y.shape[1] else aux

    work()
    stream.begin_capture()
    y, dx, *_ = work()
    graph = stream.end_capture()
    assert np.isnan(y.get()).all()  # nothing has run yet
    for scale in (1, 2):
        a[...] = fake_cupy.asarray(floats(np.random.default_rng(scale), a.shape))
        graph.launch(stream)
        want = np.maximum(product(a.get(), b.get()) + bias.get(), 0)
        near(y.get(), want, "float32", 20)
        near(dx.get(), product(y.get(), b.get()[:4, :].T), "float32", 8)


def test_a_cold_product_is_not_captured(gemm, stream):
    a = fake_cupy.asarray(np.ones((3, 3), "float32"))
    stream.begin_capture()
    with pytest.raises(RuntimeError, match="created while a stream captures"):
        gemm(a, a)


def test_threads_have_descriptors_of_their_own_and_share_algorithms(gemm):
    a = fake_cupy.asarray(np.eye(3, dtype="float32"))
    calls, results = fake_cupy.cublaslt.calls, []
    gemm(a, a)
    gc.collect()  # what earlier tests left
    calls.clear()
    thread = threading.Thread(target=lambda: results.append(gemm(a, a)))
    thread.start()
    thread.join()
    assert (results[0].get() == np.eye(3)).all()
    assert calls.count("MatmulDescCreate") == 1
    assert "MatmulAlgoGetHeuristic" not in calls
    assert calls.count("MatrixLayoutDestroy") == 3  # with the thread
    assert len(gemm.paths()) == 1


def test_descriptors_go_with_their_plans(gemm, monkeypatch):
    monkeypatch.setattr(cublaslt, "PLANS", 2)
    library = fake_cupy.cublaslt
    gc.collect()
    before = len(library.records)
    for n in range(1, 8):
        a = fake_cupy.asarray(np.ones((n, n), "float32"))
        gemm(a, a)
        assert len(library.records) <= before + 2 * 4 + 1  # and a handle
        assert len(gemm.paths()) <= 3


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how, kind, match",
    [
        (lambda g, a: g(a, a), ValueError, r"shapes \(3, 4\) and \(3, 4\): the inner lengths"),
        (lambda g, a: g(a[0, 0], a), ValueError, "inner lengths"),
        (lambda g, a: g(a.reshape(3, 2, 2), a.reshape(2, 3, 2).swapaxes(1, 2)), ValueError, "broadcast"),
        (lambda g, a: g(a.T, a, out=a), ValueError, r"out has shape \(3, 4\), the product \(4, 4\)"),
        (lambda g, a: g(a.T, a, addend=a), ShapeError, r"addend float32\[3, 4\] for a product of shape \[4, 4\]"),
        (lambda g, a: g(a.T, a, epilogue="tanh"), DomainError, "no epilogue 'tanh'"),
        (lambda g, a: g(a.T, a, bias=a[0, :3]), ShapeError, r"bias float32\[3\] for 4 columns"),
        (lambda g, a: g(a.T, a, epilogue="drelu"), ShapeError, r"'drelu' needs aux uint8\[4, 16\]"),
        (lambda g, a: g(a[None], a[None].swapaxes(1, 2).repeat(2, 0), epilogue="relu_aux"), ShapeError, "one matrix b"),
    ],
)  # fmt: skip
def test_wrong_operands_are_named(gemm, how, kind, match):
    with pytest.raises(kind, match=match):
        how(gemm, fake_cupy.asarray(np.ones((3, 4), "float32")))


def test_integers_and_complex_numbers_go_to_the_array_module_and_are_reported(gemm):
    for dtype in ("int64", "complex64"):
        a = np.arange(6).reshape(2, 3).astype(dtype)
        out = gemm(fake_cupy.asarray(a), fake_cupy.asarray(a.T))
        assert out.dtype == dtype
        assert np.array_equal(out.get(), a @ a.T)
    assert gemm.report().split("\n") == [f"cuBLASLt is not asked for {t} by {t}" for t in ("int64", "complex64")]


def test_without_the_library_the_reason_is_reported(double):
    gemm = cublaslt.Gemm(double, "cuBLASLt cannot be loaded: no such file")
    a = floats(np.random.default_rng(0), (2, 3, 4), "float16")
    out = gemm(fake_cupy.asarray(a), fake_cupy.asarray(a).swapaxes(1, 2), alpha=2.0)
    near(out.get(), 2 * product(a, a.swapaxes(1, 2)), "float16", 4)
    assert gemm.report() == "cuBLASLt cannot be loaded: no such file"


def test_a_product_that_is_turned_down_late_is_composed_from_then_on(gemm):
    a = fake_cupy.asarray(np.eye(2, dtype="float32"))
    tries = []
    gemm.matmul = lambda *_: tries.append(1) or 15
    for _ in range(2):
        assert (gemm(a, a).get() == np.eye(2)).all()
    assert tries == [1]
    assert [p.reason for p in gemm.paths()] == ["cublasLtMatmul: CUBLAS_STATUS_NOT_SUPPORTED"]


def test_a_product_that_fails_raises(gemm):
    a = fake_cupy.asarray(np.eye(2, dtype="float32"))
    gemm.matmul = lambda *_: 13
    with pytest.raises(DeviceError, match="cublasLtMatmul: CUBLAS_STATUS_EXECUTION_FAILED"):
        gemm(a, a)


def test_a_report_names_what_ran(gemm):
    a = fake_cupy.asarray(np.ones((2, 3, 600), "float32"))
    with gg.matmul_precision("tf32"):
        gemm(a, a.swapaxes(1, 2))
    assert gemm.report() == "2 x (3, 600) @ (600, 3) float32 NT, 32F_FAST_TF32: algorithm 1, 65536 bytes of workspace"


def test_a_misaligned_operand_gets_an_algorithm_that_may_read_it(gemm):
    memory = fake_cupy.asarray(np.ones(17, "float32"))
    odd = memory[1:].reshape(4, 4)
    assert (gemm(odd, odd).get() == 4).all()
    assert [p.algorithm for p in gemm.paths()] == [0]


def test_every_kernel_is_waited_for_when_checked(double):
    double.checked = True
    a = fake_cupy.asarray(np.ones((2, 2), "float32"))
    fake_cupy.waited.clear()
    double.gemm(a, a)
    assert fake_cupy.waited == ["Stream.synchronize"]


# --- programs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def device(double, monkeypatch):
    """The double as device 'cuda', for the length of a test."""
    monkeypatch.setattr(backends, "_by_name", {**backends._by_name, "cuda": double})
    monkeypatch.setattr(backends, "_by_type", {**backends._by_type, fake_cupy.ndarray: double})
    before = {name: op.impls.pop(fake_cupy.ndarray, None) for name, op in TABLE.items()}
    yield "cuda"
    for name, op in TABLE.items():
        op.impls.pop(fake_cupy.ndarray, None)
        if before[name] is not None:
            op.impls[fake_cupy.ndarray] = before[name]


PROGRAMS = {
    "matmul": lambda x, y: x @ y.T, "einsum": lambda x, y: gg.einsum("ij,kj->ki", x, y),
    "tensordot": lambda x, y: gg.tensordot(x, y, ((1,), (1,))), "dot": lambda x, y: gg.dot(x, y.T),
    "vecdot": lambda x, y: gg.vecdot(x[0], y[0]), "linear": lambda x, y: gg.nn.functional.linear(x, y),
    "affine": lambda x, y: gg.nn.functional.linear(gg.stack([x, x]), y, y.sum(axis=1)),
    "stack": lambda x, y: gg.stack([x, x]) @ y.T, "power": lambda x, y: gg.linalg.matrix_power(x @ x.T, 3),
}  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_products_of_every_kind_and_their_gradients_go_to_the_library(device, program, double):
    rng = np.random.default_rng(0)
    arrays, results = [floats(rng, (3, 4)), floats(rng, (5, 4))], []
    for where in ("cpu", device):
        xs = [gg.tensor(a, device=where, requires_grad=True) for a in arrays]
        fake_cupy.called.clear()
        y = program(*xs)
        (y * y).sum().backward()
        results.append([y.numpy(), *[x.grad.numpy() for x in xs if x.grad is not None]])
    for a, b in zip(*results):
        near(b, a, "float32", 20)
    assert not {"matmul", "dot", "tensordot"} & set(fake_cupy.called)
    assert double.gemm.paths()
    assert reasons(double.gemm) == []


def test_the_bias_of_a_linear_layer_is_added_by_the_library(device, double):
    layer = gg.nn.Linear(4, 3).to(device=device)
    x = gg.tensor(np.ones((2, 5, 4), "float32"), device=device)
    fake_cupy.called.clear()
    layer(x)
    assert fake_cupy.called == []
    assert [(p.problem.m, p.problem.epilogue) for p in double.gemm.paths()] == [(10, 4)]


def test_a_mismatch_is_named_as_on_the_cpu(device):
    messages = []
    for where in ("cpu", device):
        x = gg.tensor(np.ones((2, 3), "float32"), device=where)
        with pytest.raises(ShapeError) as caught:
            x @ x
        messages.append(str(caught.value).split("\n")[0])
    assert messages[0] == messages[1]


# --- the real library -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    """libcublasLt, which describes products without a GPU too."""
    pathfinder = pytest.importorskip("cuda.pathfinder", reason="cuda-pathfinder is not installed")
    try:
        return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path)
    except pathfinder.DynamicLibNotFoundError:
        pytest.skip("cuBLAS is not installed: pip install nvidia-cublas-cu12")


GETTERS = {"MatmulDesc": "MatmulDescGetAttribute", "MatrixLayout": "MatrixLayoutGetAttribute"}


def attribute(library, kind, made, number, ctype):
    value, written = ctype(), ctypes.c_uint64()
    status = getattr(library, f"cublasLt{GETTERS[kind]}")(
        made, ctypes.c_int(number), ctypes.byref(value), ctypes.c_uint64(ctypes.sizeof(value)), ctypes.byref(written)
    )
    assert status == 0
    return value.value


@pytest.mark.parametrize("dtype", cublaslt.DATA_TYPE)
@pytest.mark.parametrize("code", [0, 4, 6, 36, 134, 164, 152, 208, 256, 512])
def test_the_real_library_reads_what_was_described(real, dtype, code):
    matrix = cublaslt.Matrix
    compute = 70 if dtype == "float64" else 68
    problem = cublaslt.Problem(
        3, 5, 4, 7, dtype, dtype, matrix(True, 9, 100), matrix(False, 8, 0), matrix(False, 6, 50), code, compute,
        (16, 16, 256), 128 if code & 128 else 0, 0,
    )  # fmt: skip
    owner = threading.Event()  # any object that weak references take
    library = cublaslt.Library(real)
    desc, *layouts = library.describe(problem, owner)
    wanted = [(0, compute), (1, 1 if compute == 70 else 0), (3, 0), (4, 1), (7, code or 1)]
    assert [(n, attribute(real, "MatmulDesc", desc, n, ctypes.c_int32)) for n, _ in wanted] == wanted
    assert attribute(real, "MatmulDesc", desc, 12, ctypes.c_int64) == problem.aux_ld
    library.set("MatmulDesc", desc, cublaslt.BIAS_POINTER, ctypes.c_void_p(0x7F0000001000))
    assert attribute(real, "MatmulDesc", desc, 8, ctypes.c_void_p) == 0x7F0000001000
    assert [
        [attribute(real, "MatrixLayout", x, 0, ctypes.c_uint32), attribute(real, "MatrixLayout", x, 1, ctypes.c_int32),
         *(attribute(real, "MatrixLayout", x, n, ctypes.c_uint64) for n in (2, 3)),
         attribute(real, "MatrixLayout", x, 4, ctypes.c_int64), attribute(real, "MatrixLayout", x, 5, ctypes.c_int32),
         attribute(real, "MatrixLayout", x, 6, ctypes.c_int64)]
        for x in layouts
    ] == [[cublaslt.DATA_TYPE[dtype], 0, *rest] for rest in
          ([5, 4, 8, 7, 0], [3, 4, 9, 7, 100], [5, 3, 6, 7, 50])]  # fmt: skip


def test_the_double_takes_what_the_real_library_takes(real):
    assert all(hasattr(real, f"cublasLt{name}") for name in fake_cublaslt.PROTOTYPES)
    number = {ctypes.c_int32: 1, ctypes.c_uint32: 2, ctypes.c_int64: 128, ctypes.c_uint64: 128, ctypes.c_void_p: 128}
    made_of = {
        "MatmulDesc": (ctypes.c_int(68), ctypes.c_int(0)), "MatmulPreference": (),
        "MatrixLayout": (ctypes.c_int(0), ctypes.c_uint64(3), ctypes.c_uint64(4), ctypes.c_int64(5)),
    }  # fmt: skip
    for library, (kind, arguments) in itertools.product((real, fake_cupy.cublaslt), made_of.items()):
        bound = cublaslt.Library(library)
        made = bound.create(kind, *arguments)
        for attribute, (_, ctype) in fake_cublaslt.ATTRIBUTES[kind].items():
            bound.set(kind, made, attribute, ctype(number[ctype]))
            with pytest.raises(cublaslt.Refused, match="INVALID_VALUE"):
                bound.set(kind, made, attribute, (ctypes.c_char * 3)())
        bound.call(f"cublasLt{kind}Destroy", made)
    assert ctypes.sizeof(cublaslt.Heuristic) == 96


def test_the_real_library_takes_the_arguments_of_a_call(real):
    """Without a handle, the only status that it can answer with before it touches a device."""
    matrix = cublaslt.Matrix
    layouts = matrix(False, 4), matrix(False, 5), matrix(False, 5)
    problem = cublaslt.Problem(3, 5, 4, 1, "float32", "float32", *layouts, 0, 68, (16, 16, 16), 0, 0)
    library = cublaslt.Library(real)
    library.handles[0] = ctypes.c_void_p()
    plan = cublaslt.Plan(cublaslt.arrange((3, 4), (4, 1), (4, 5), (5, 1)), np.dtype("float32"))
    descriptors = library.describe(problem, plan)
    path = library.choose(problem, descriptors)
    assert path.reason == "cublasLtMatmulAlgoGetHeuristic: CUBLAS_STATUS_NOT_INITIALIZED"
    plan.bind(library.handles[0], descriptors, path._replace(algo=bytes(64)))
    assert cublaslt.STATUS[library.matmul(*plan.arguments)] == "NOT_INITIALIZED"


def test_a_machine_without_a_driver_says_so(real, double):
    gemm = cublaslt.Gemm(double, real)
    a = fake_cupy.asarray(np.eye(3, dtype="float32"))
    try:
        cublaslt.Library(real).handle(0)
    except cublaslt.Refused:
        assert (gemm(a, a).get() == np.eye(3)).all()
        assert gemm.paths()[0].reason == "cublasLtCreate: CUBLAS_STATUS_NOT_INITIALIZED"
    else:
        pytest.skip("there is a GPU")
