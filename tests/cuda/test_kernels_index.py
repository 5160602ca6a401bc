"""Kernels of indexing against NumPy's own indexing: on the emulator under several schedules, and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import RangeError
from gpugrad.launch.index import piece
from gpugrad.nn import functional as nnf
from gpugrad.testing import fake_cupy

from .kernel_checks import Pair, check

rng = np.random.default_rng()
ARRAY, FULL = "array", slice(None)


@pytest.fixture(autouse=True)
def _seed():
    """The same numbers for a test in whatever order tests run."""
    global rng
    rng = np.random.default_rng(7)


# --- adding rows up -------------------------------------------------------------------------------------------------


def loop(t, ids, rows):
    """The sum of rows by pieces of each number's rows, one after another, in at least single precision."""
    wider = np.result_type(t.dtype, "float32") if t.dtype.kind == "f" else np.dtype("float32")
    out = np.zeros((rows, *t.shape[ids.ndim :]), wider)
    t, flat, cut = t.reshape(ids.size, *out.shape[1:]), ids.reshape(-1), piece(ids.size)
    for r in np.unique(flat):
        places = np.flatnonzero(flat == r)
        sums = []
        for start in range(0, len(places), cut):
            sums.append(np.zeros(out.shape[1:], wider))
            for j in places[start : start + cut]:
                sums[-1] = sums[-1] + t[j].astype(wider)
        out[r] = sums[0]
        for s in sums[1:]:
            out[r] += s
    return out.astype(t.dtype)


SHAPES = [((1,), (1,), 1), ((50,), (7,), 9), ((20, 10), (), 13), ((0,), (3,), 4), ((9,), (0,), 4), ((33,), (2, 8), 100)]


@pytest.mark.parametrize("shape, rest, rows", SHAPES)
def test_scatter_rows_adds_in_order(backend, dtype, scheduled, shape, rest, rows):
    pair = Pair(backend, "scatter_rows")
    t, ids = rng.normal(size=(*shape, *rest)).astype(dtype), rng.integers(0, rows, shape)
    with scheduled:
        got = pair.run(t, ids, rows=rows, distinct=False)
    assert got.shape == (rows, *rest)
    assert np.array_equal(got, loop(t, ids, rows))  # to the last bit: the sum has one order


@pytest.mark.parametrize("ids", ["int8", "uint8", "int16", "int32", "uint32", "int64"])
def test_row_numbers_of_every_integer_type(backend, ids):
    t, numbers = rng.normal(size=(30, 3)).astype("float32"), rng.integers(0, 11, 30).astype(ids)
    want = loop(t, numbers, 11)
    assert np.array_equal(Pair(backend, "scatter_rows").run(t, numbers, rows=11, distinct=False), want)
    x = rng.normal(size=(11, 3)).astype("float32")
    assert np.array_equal(Pair(backend, "gather").run(x, numbers, index=(ARRAY,), distinct=False), x[numbers])


@pytest.mark.parametrize(
    "runs",
    [
        [700],
        [64],
        [65],
        [63, 65, 64, 128, 129, 1],
        [1] * 100 + [200] + [2] * 30,
        [128, 64, 192, 1, 65, 66],
        [96, 64],
        [32, 128],
    ],
    ids=["one", "piece", "longer", "borders", "between", "pieces", "a piece at the end", "pieces to the end"],
)
@pytest.mark.parametrize("width", [1, 3, 8])
def test_long_runs_are_cut_into_pieces(backend, scheduled, runs, width):
    ids = np.repeat(np.arange(len(runs)), runs)
    rng.shuffle(ids)
    t = rng.normal(size=(len(ids), width)).astype("float32")
    with scheduled:
        got = Pair(backend, "scatter_rows").run(t, ids, rows=len(runs) + 1, distinct=False)
    assert np.array_equal(got, loop(t, ids, len(runs) + 1))


def test_one_number_thousands_of_times_loses_no_digits(backend, dtype):
    n = 5000
    t, ids = rng.random((n, 2)).astype(dtype), np.zeros(n, "int64")
    ids[1234] = 3
    got = Pair(backend, "scatter_rows").run(t, ids, rows=4, distinct=False)
    want = np.zeros((4, 2))
    np.add.at(want, ids, t.astype("float64"))
    check(got, want, dtype)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_scatter_of_misaligned_views(backend, dtype, offset):
    pair = Pair(backend, "scatter_rows")
    t, ids = rng.normal(size=20 * 16 + offset).astype(dtype), rng.integers(0, 5, 20)
    device, numbers = pair.device(t, ids)
    got = pair.kernel(device[offset:].reshape(20, 16), numbers, rows=5, distinct=False)
    assert np.array_equal(backend.to_numpy(got), loop(t[offset:].reshape(20, 16), ids, 5))


def test_numbers_that_are_no_row_are_dropped(backend):
    t, ids = rng.normal(size=(200, 4)).astype("float32"), rng.integers(-2, 5, 200)
    valid = (ids >= 0) & (ids < 3)
    got = Pair(backend, "scatter_rows").run(t, ids, rows=3, distinct=False)
    np.testing.assert_allclose(got, loop(t[valid], ids[valid], 3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stranger", [-1, 3, 4])
def test_a_long_run_that_is_no_row_is_dropped(backend, stranger):
    ids = np.array([stranger] * 200 + [1] * 100)
    t = rng.normal(size=(300, 2)).astype("float32")
    got = Pair(backend, "scatter_rows").run(t, ids, rows=3, distinct=False)
    assert np.array_equal(got, loop(t[200:], ids[200:], 3))


def test_scatter_rows_to_distinct_places_needs_no_order(backend, dtype):
    pair = Pair(backend, "scatter_rows")
    for n, rows in ((6, 10), (150, 200)):
        t, ids = rng.normal(size=(n, 5)).astype(dtype), rng.permutation(rows)[:n].astype("int32")
        want = np.zeros((rows, 5), dtype)
        want[ids] = t
        assert np.array_equal(pair.run(t, ids, rows=rows, distinct=True), want)


# --- reading --------------------------------------------------------------------------------------------------------

PICKS = [
    ((6, 5), (ARRAY,), [(4,)]),
    ((6, 16), (ARRAY,), [(3, 2)]),
    ((6,), (ARRAY, ...), [()]),
    ((3, 4, 5), (FULL, ARRAY), [(2, 3)]),
    ((3, 4, 16), (FULL, ARRAY, FULL), [(7,)]),
    ((3, 4), (ARRAY, ARRAY), [(2, 1), (3,)]),
    ((2, 3, 4, 4), (FULL, ARRAY, ARRAY), [(5,), (5,)]),
    ((6, 5), (ARRAY,), [(0,)]),
    ((6, 0), (ARRAY,), [(2,)]),
    ((4, 5), (ARRAY, 1), [(3,)]),
    ((4, 5), (..., None, ARRAY), [(3,)]),
    ((4, 5, 3), (ARRAY, FULL, ARRAY), [(2,), (2,)]),
]


def axes_of(shape, index):
    """The axis of each array of a template."""
    left = [i for i, e in enumerate(e for e in index if e is not None) if e == ARRAY]
    return [len(shape) - 1] if index[0] is Ellipsis else left


def picks(shape, index, sizes, kind="int64"):
    return [rng.integers(-shape[a], shape[a], s).astype(kind) for a, s in zip(axes_of(shape, index), sizes)]


@pytest.mark.parametrize("shape, index, sizes", PICKS)
@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_gather_is_numpys(backend, shape, index, sizes, kind):
    pair = Pair(backend, "gather")
    pair.kernel.twin = lambda *a, **k: pair.twin.func(backend.xp, *a, **k)
    x, arrays = rng.normal(size=shape).astype("float32"), picks(shape, index, sizes, kind)
    rest = iter(arrays)
    want = x[tuple(next(rest) if isinstance(e, str) else e for e in index)]
    got = pair.run(x, *arrays, index=index, distinct=False)
    assert got.shape == want.shape
    assert np.array_equal(got, want)


@pytest.mark.parametrize("kind", ["float16", "float64", "int8", "bool", "int64", "uint16", "complex64"])
def test_gather_copies_every_type(backend, scheduled, kind):
    x, ids = rng.integers(0, 2, (9, 32)).astype(kind), rng.integers(-9, 9, 40)
    with scheduled:
        got = Pair(backend, "gather").run(x, ids, index=(ARRAY,), distinct=False)
    assert got.dtype == x.dtype
    assert np.array_equal(got, x[ids])


@pytest.mark.parametrize("offset", [1, 3])
def test_gather_from_misaligned_views(backend, dtype, offset):
    pair = Pair(backend, "gather")
    x, ids = rng.normal(size=8 * 16 + offset).astype(dtype), rng.integers(0, 8, 11)
    device, numbers = pair.device(x, ids)
    got = pair.kernel(device[offset:].reshape(8, 16), numbers, index=(ARRAY,), distinct=False)
    assert np.array_equal(backend.to_numpy(got), x[offset:].reshape(8, 16)[ids])


def test_a_strided_table_is_not_copied_first(backend):
    pair = Pair(backend, "gather")
    x, ids = pair.device(rng.normal(size=(4, 6)), np.array([1, 1]))
    with pytest.raises(TypeError):  # the twin's part, absent here
        pair.kernel(x.T, ids, index=(ARRAY,), distinct=False)


def test_nan_of_any_payload_is_copied_bit_by_bit(backend):
    x = np.arange(0x7F800001, 0x7F800041, dtype="uint32").view("float32").reshape(8, 8)
    got = Pair(backend, "gather").run(x, np.arange(7, -1, -1), index=(ARRAY,), distinct=False)
    assert np.array_equal(got.view("uint32"), x[::-1].view("uint32"))


# --- errors ---------------------------------------------------------------------------------------------------------

BAD = np.array([[0, 3], [4, -9]])
FIRST = r"index 4 at position \[1, 0\] is out of range for axis 0 of length 4"
PROGRAMS = {
    "take": (lambda x, i: gg.take(x, i, axis=0), FIRST),
    "take of axis 1": (lambda x, i: gg.take(x.T, i, axis=1), r"index 4 at position \[1, 0\] .* axis 1 of length 4"),
    "getitem": (lambda x, i: x[i], FIRST),
    "two arrays": (lambda x, i: x[i, [0, 1]], FIRST),
    "beside a number": (lambda x, i: x[i, 1], FIRST),
    "after an ellipsis": (lambda x, i: x.T[..., i], r"index 4 at position \[1, 0\] .* axis 1 of length 4"),
    "take_along_axis": (lambda x, i: gg.take_along_axis(x, i, 0), FIRST),
    "set": (lambda x, i: x.at[i].set(1.0), FIRST),
    "add": (lambda x, i: x.at[i].add(1.0), FIRST),
    "embedding": (lambda x, i: nnf.embedding(i, x), r"id is 4 at \[1, 0\], expected a row from 0 to 3"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_index_out_of_range_is_reported_at_the_next_read(gpu, name, monkeypatch):
    program, message = PROGRAMS[name]
    monkeypatch.setattr(gpu, "checked", False)  # which waits for every kernel
    x = gg.tensor(rng.normal(size=(4, 2)), dtype="float32", device="cuda", requires_grad=True)
    good, ids = (gg.tensor(i, device="cuda") for i in (np.abs(BAD) % 4, BAD))
    want = program(x, good).numpy()
    if gpu.xp is fake_cupy:
        fake_cupy.waited.clear()
    program(x, ids).sum().backward()
    if gpu.xp is fake_cupy:
        assert fake_cupy.waited == []  # no wait in forward or backward
    with pytest.raises(RangeError, match=message + r"(.|\n)*test_kernels_index"):
        x.grad.numpy()
    assert np.array_equal(program(x, good).numpy(), want)  # the context lives, the letter box is empty


def test_the_message_is_that_of_the_cpu(gpu):
    messages = []
    for device in ("cpu", "cuda"):
        x, ids = gg.tensor(np.eye(3), device=device), gg.tensor(np.array([0, 7, 5]), device=device)
        with pytest.raises(RangeError) as caught:
            x[ids].numpy()
        messages.append(str(caught.value).partition("\n")[0])
    assert messages[0] == messages[1] == "[gather] index 7 at position [1] is out of range for axis 0 of length 3"


def test_a_row_that_is_none_is_nan_and_the_others_are_right(gpu):
    x = gg.tensor(np.arange(6.0).reshape(3, 2), dtype="float32", device="cuda")
    got = x[gg.tensor(np.array([2, 3, 0]), device="cuda")]
    with pytest.raises(RangeError, match="index 3 at position"):
        got.numpy()
    assert np.isnan(got.numpy()).any(1).tolist() == [False, True, False]


# --- as programs ----------------------------------------------------------------------------------------------------


def embed(table, ids):
    rows = nnf.embedding(ids, table, padding_idx=-2)
    return (rows * rows * rows).sum()


def rows(table, ids):
    y = table.at[ids].add(2.0) * table.at[ids[:2, 0]].set(1.5)
    return (gg.take(y, ids, axis=1 if y.shape[0] < 3 else 0) * gg.sort(y, 0)[ids]).sum()


@pytest.mark.parametrize("program", [embed, rows])
def test_gradients_of_programs_are_those_of_the_cpu(gpu, program):
    table, ids = rng.normal(size=(6, 8)).astype("float32"), rng.integers(0, 6, (40, 5))
    found = []
    for device in ("cpu", "cuda"):
        leaf = gg.tensor(table, device=device, requires_grad=True)
        program(leaf, gg.tensor(ids, device=device)).backward()
        found.append(leaf.grad.numpy())
    np.testing.assert_allclose(found[1], found[0], rtol=2e-5, atol=2e-5 * np.abs(found[0]).max())


def test_the_padding_row_has_no_gradient(gpu):
    table = gg.tensor(np.ones((4, 3)), device="cuda", requires_grad=True)
    nnf.embedding(gg.tensor(np.array([0, 2, 2, 3]), device="cuda"), table, padding_idx=2).sum().backward()
    assert table.grad.numpy()[:, 0].tolist() == [1, 0, 0, 1]


def test_duplicates_give_the_same_bits_every_time(gpu):
    ids = gg.tensor(rng.integers(0, 3, 3000), device="cuda")
    grads = []
    for _ in range(3):
        table = gg.tensor(np.zeros((5, 7)), dtype="float32", device="cuda", requires_grad=True)
        weights = np.random.default_rng(3).normal(size=(3000, 7)).astype("float32")
        (table[ids] * gg.tensor(weights, device="cuda")).sum().backward()
        grads.append(table.grad.numpy())
    assert np.array_equal(grads[0], grads[1])
    assert np.array_equal(grads[0], grads[2])
