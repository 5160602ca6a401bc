"""Kernels of the optimisers against the NumPy twins in float64: on the emulator and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from gpugrad.backends.launch import Launch
from gpugrad.launch.optim import chunk_size
from gpugrad.op import TABLE
from gpugrad.ops import optim as _optim  # noqa: F401 - fills the table

from .kernel_checks import SIZES, Pair, check, wide

COMMON = {"weight_decay": 0.1, "eps": 1e-6}
BETAS = {**COMMON, "beta1": 0.9, "beta2": 0.99}
SGD = {"weight_decay": 0.1, "momentum": 0.0, "dampening": 0.0, "nesterov": False}
RMSPROP = {**COMMON, "alpha": 0.9, "momentum": 0.0}

# functor: (op, which of its lists of states are used, vectors beside step, constants)
STEPS = {
    "Sgd": ("sgd", [0], 0, SGD),
    "Momentum": ("sgd", [1], 0, {**SGD, "momentum": 0.9, "dampening": 0.2}),
    "Nesterov": ("sgd", [1], 0, {**SGD, "momentum": 0.9, "nesterov": True}),
    "Adagrad": ("adagrad", [1], 0, {**COMMON, "lr_decay": 0.1}),
    "Adadelta": ("adadelta", [1, 1], 0, {**COMMON, "rho": 0.9}),
    "RmsProp": ("rmsprop", [1, 0, 0], 0, RMSPROP),
    "RmsPropMomentum": ("rmsprop", [1, 0, 1], 0, {**RMSPROP, "momentum": 0.5}),
    "RmsPropCentered": ("rmsprop", [1, 1, 0], 0, RMSPROP),
    "RmsPropBoth": ("rmsprop", [1, 1, 1], 0, {**RMSPROP, "momentum": 0.5}),
    "Adam": ("adam", [1, 1, 0], 0, {**BETAS, "decoupled": False}),
    "AdamW": ("adam", [1, 1, 0], 0, {**BETAS, "decoupled": True}),
    "AmsGrad": ("adam", [1, 1, 1], 0, {**BETAS, "weight_decay": 0.0, "decoupled": False}),
    "Adamax": ("adamax", [1, 1], 0, BETAS),
    "Nadam": ("nadam", [1, 1], 1, {**BETAS, "momentum_decay": 0.004}),
}
FLOAT32, FLOAT64 = np.dtype("float32"), np.dtype("float64")


def state_type(dtype):
    return dtype if dtype.itemsize > 2 else FLOAT32


def make(name, shapes, dtype, without=(), seed=3):
    """The arguments of a step as NumPy arrays: parameters, states, counters, gradients, learning rate."""
    _, used, vectors, _ = STEPS[name]
    rng = np.random.default_rng(seed)
    params = [np.asarray(rng.normal(size=s), dtype) for s in shapes]
    grads = [None if i in without else np.asarray(rng.normal(size=s), dtype) for i, s in enumerate(shapes)]
    lows = (1.0, 0.2, 0.5)  # a mean below the root of the mean square
    states = [
        [np.asarray(rng.uniform(low, 1.5 * low, s), state_type(dtype)) for s in shapes] if on else []
        for on, low in zip(used, lows)
    ]
    counters = [np.arange(len(shapes)) % 3.0, *(np.full(len(shapes), 0.9) for _ in range(vectors))]
    return [params, *states, *counters, grads, np.asarray(0.05)]


def flat(x):
    return [v for part in x for v in flat(part)] if isinstance(x, list) else [] if x is None else [x]


def each(f, x):
    return [each(f, v) for v in x] if isinstance(x, list) else None if x is None else f(x)


def copies(x):
    return each(np.copy, x)


def to_device(backend, x):
    return each(lambda a: backend.asarray(a.copy()), x)


def compare(backend, device, host, want):
    """Everything that a step may have written, and the gradients, against the twin's values in double precision."""
    for got, before, w in zip(flat(device), flat(host), flat(want)):
        got = backend.to_numpy(got)
        assert got.dtype == before.dtype
        check(got, w, got.dtype)


def check_steps(backend, name, shapes, dtype, without=(), steps=2):
    pair, constants = Pair(backend, STEPS[name][0]), STEPS[name][3]
    host = make(name, shapes, dtype, without)
    device, want = to_device(backend, host), each(wide, copies(host))
    for _ in range(steps):
        assert pair.kernel(*device, **constants) is None
        pair.twin(*want, **constants)
    compare(backend, device, host, want)
    for g, before in zip(device[-2], host[-2]):
        assert g is None or np.array_equal(backend.to_numpy(g), before)


@pytest.fixture
def launches(monkeypatch):
    """(kernel, blocks) of the launches from here on."""
    seen, tiles = [], Launch.tiles

    def log(self, name, types, args, grid, block, shared=0):
        seen.append((name, grid[0]))
        return tiles(self, name, types, args, grid, block, shared)

    monkeypatch.setattr(Launch, "tiles", log)
    return seen


@pytest.mark.parametrize("name", STEPS)
def test_steps_in_double_precision(backend, name):
    check_steps(backend, name, [(n,) for n in (0, 1, 3, 32, 33, 257)], FLOAT64, without=(2,))


@pytest.mark.parametrize("name", ["Sgd", "Momentum", "AdamW", "AmsGrad"])
def test_steps_of_all_types_and_sizes(backend, dtype, name):
    steps = 2 if dtype.itemsize > 2 else 1  # the states of a second one see how the first one's parameters were rounded
    check_steps(backend, name, [*((n,) for n in SIZES), (), (3, 4, 5)], dtype, without=(4,), steps=steps)


def test_a_large_tensor_is_shared_out(backend, launches):
    check_steps(backend, "Momentum", [(7,), (21003,)], FLOAT32, steps=1)
    assert launches == [("update", 1 + 11)]


def test_pieces_follow_from_the_sizes_alone():
    assert [chunk_size(n) for n in (0, 1, 1 << 21, (1 << 21) + 1, 1 << 26, 1 << 40)] == [
        2048, 2048, 2048, 4096, 65536, 65536,
    ]  # fmt: skip


@pytest.mark.parametrize("name, most", [("Sgd", 124), ("Momentum", 99), ("Adam", 82), ("AmsGrad", 70)])
@pytest.mark.parametrize("count", [1, 50, 400])
def test_launches_of_many_tensors(backend, launches, name, most, count):
    shapes = [(i % 5, 1 + i % 3) for i in range(count)]
    check_steps(backend, name, shapes, FLOAT32, steps=1)
    assert len(launches) == -(-count // most)
    launches.clear()
    check_steps(backend, name, shapes, FLOAT32, without=range(0, count - 1, 2), steps=1)
    assert len(launches) == -(-(count // 2 + count % 2) // most)


@pytest.mark.parametrize("name", ["AdamW", "Nadam"])
def test_schedules_leave_no_trace_in_the_bits(backend, scheduled, name):
    shapes, pair, constants = [(5000,), (3,), (0,), (2100,)], Pair(backend, STEPS[name][0]), STEPS[name][3]
    host = make(name, shapes, FLOAT32)
    natural, device = to_device(backend, host), to_device(backend, host)
    for _ in range(3):
        pair.kernel(*natural, **constants)
    with scheduled:
        for _ in range(3):
            pair.kernel(*device, **constants)
    for a, b in zip(flat(natural), flat(device)):
        assert np.array_equal(backend.to_numpy(a), backend.to_numpy(b))
    assert backend.to_numpy(device[-3 - STEPS[name][2]]).tolist() == [3, 4, 5, 3]


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("moved", [[0], [1], [2], [-2], [0, 1, 2, -2]], ids=["p", "m", "v", "g", "all"])
@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_views_that_are_not_aligned(backend, kind, offset, moved):
    """And what lies beside them stays: a table of addresses tells the emulator nothing of where arrays end."""
    pair, constants, n = Pair(backend, "adam"), STEPS["AdamW"][3], 101
    host = make("AdamW", [(n,)], np.dtype(kind))
    device, want = to_device(backend, host), each(wide, copies(host))
    bases = []
    for group in [device[i] for i in moved]:
        base = backend.xp.full(n + 8, 7.0, dtype=group[0].dtype)
        base[offset : offset + n] = group[0]
        group[0] = base[offset : offset + n]
        bases.append(base)
    pair.kernel(*device, **constants)
    pair.twin(*want, **constants)
    compare(backend, device, host, want)
    for base in map(backend.to_numpy, bases):
        assert (base[:offset] == 7).all()
        assert (base[offset + n :] == 7).all()


def test_neighbours_of_aligned_tensors_stay(backend):
    pair, constants = Pair(backend, "adam"), STEPS["AdamW"][3]
    for n in (1, 4, 31, 2047, 2048, 2049):
        host = make("AdamW", [(n,)], FLOAT32)
        device, bases = to_device(backend, host), []
        for group in device[:3]:
            base = backend.xp.full(n + 4, 7.0, dtype="float32")
            base[:n] = group[0]
            group[0] = base[:n]
            bases.append(base)
        pair.kernel(*device, **constants)
        assert all((backend.to_numpy(base)[n:] == 7).all() for base in bases)


@pytest.mark.parametrize("name", ["Momentum", "AmsGrad", "Adamax", "RmsPropCentered"])
def test_values_that_are_not_finite(backend, name):
    pair, constants = Pair(backend, STEPS[name][0]), STEPS[name][3]
    host = make(name, [(9,)], FLOAT64)
    host[-2][0][:4] = [np.nan, np.inf, -np.inf, 1e200]
    host[1][0][5] = np.nan
    host[0][0][6] = np.inf
    device, want = to_device(backend, host), copies(host)
    pair.kernel(*device, **constants)
    with np.errstate(all="ignore"):
        pair.twin(*want, **constants)
    for a, b in zip(flat(device), flat(want)):
        np.testing.assert_allclose(backend.to_numpy(a), b, rtol=1e-12)


def test_a_step_that_is_skipped_does_nothing_and_the_next_one_counts(backend):
    pair, constants = Pair(backend, "nadam"), STEPS["Nadam"][3]
    host = make("Nadam", [(5000,), (3,)], FLOAT32)
    device, want = to_device(backend, host), each(wide, copies(host))
    for skip in (1, 0, 1, 0):
        pair.kernel(*device, backend.asarray(np.asarray(skip, "int32")), **constants)
        pair.twin(*want, np.asarray(skip, "int32"), **constants)
        compare(backend, device, host, want)
    assert backend.to_numpy(device[3]).tolist() == [2, 3]


@pytest.mark.parametrize("skip", [0, 1, None])
def test_layouts_without_a_kernel_go_to_the_twin(backend, launches, skip):
    name, constants = "nadam", STEPS["Nadam"][3]
    pair = Pair(backend, name)
    host = make("Nadam", [(4, 6), (5,)], FLOAT64)
    device, want = to_device(backend, host), copies(host)
    device[0][0] = backend.xp.ascontiguousarray(device[0][0].T).T
    pair.kernel.twin = backend.implement(TABLE[name].fwd, {})
    more = [] if skip is None else [np.asarray(skip, "int32")]
    pair.kernel(*device, *map(backend.asarray, more), **constants)
    pair.twin(*want, *more, **constants)
    assert launches == []
    for a, b in zip(flat(device), flat(want)):
        np.testing.assert_allclose(backend.to_numpy(a), b, rtol=1e-12)


def test_a_group_of_several_types_takes_a_launch_each(backend, launches):
    pair, constants = Pair(backend, "adam"), STEPS["AdamW"][3]
    host = make("AdamW", [(5,), (40,), (0,), (7,)], FLOAT32)
    for part in (host[0], host[4 + 1]):
        part[1] = part[1].astype("float16")
        part[2] = part[2].astype("float64")
    for part in host[1:3]:
        part[2] = part[2].astype("float64")
    host[5][3] = host[5][3].astype("float64")  # a gradient of another type than its parameter's
    device, want = to_device(backend, host), each(wide, copies(host))
    pair.kernel(*device, **constants)
    pair.twin(*want, **constants)
    compare(backend, device, host, want)
    assert launches == [("update", 2), ("update", 1), ("update", 1)]


def test_gradients_in_another_order(backend):
    pair, constants = Pair(backend, "sgd"), STEPS["Momentum"][3]
    host = make("Momentum", [(4, 6)], FLOAT64)
    device, want = to_device(backend, host), copies(host)
    device[-2][0] = backend.xp.ascontiguousarray(device[-2][0].T).T
    pair.kernel(*device, **constants)
    pair.twin(*want, **constants)
    compare(backend, device, host, want)


@pytest.mark.parametrize("decay", [0.9, None])
def test_averages(backend, dtype, decay, launches):
    pair, rng = Pair(backend, "average_into"), np.random.default_rng(4)
    params = [np.asarray(rng.normal(size=n), dtype) for n in SIZES]
    averages = [np.asarray(rng.normal(size=n), state_type(dtype)) for n in SIZES]
    host = [averages, np.zeros(len(SIZES)), params]
    device, want = to_device(backend, host), each(wide, copies(host))
    for _ in range(2):
        pair.kernel(*device, decay=decay)
        pair.twin(*want, decay=decay)
    compare(backend, device, host, want)
    assert len(launches) == 2


# --- gradients --------------------------------------------------------------------------------------------------------


def gradients(dtype, sizes=(*SIZES, 5000), scale=1.0):
    rng = np.random.default_rng(6)
    return [np.asarray(scale * rng.normal(size=n), dtype) for n in sizes]


@pytest.mark.parametrize("ord", [2.0, 1.0, 3.0, np.inf])
def test_norms(backend, dtype, ord):
    pair, arrays = Pair(backend, "global_norm"), gradients(dtype)
    got = pair.run(*arrays, ord=ord)
    assert got.shape == ()
    assert got.dtype == state_type(dtype)
    check(got, pair.twin(*map(wide, arrays), ord=ord), got.dtype)


def test_norm_takes_two_launches(backend, launches):
    Pair(backend, "global_norm").run(*gradients(FLOAT32), ord=2.0)
    assert launches == [("norm_parts", 8 + 3 + 3), ("norm_total", 1)]


def test_norms_of_many_tensors_and_types(backend, scheduled, launches):
    arrays = [np.full(1 + i % 3, 0.5, ("float32", "float16", "float64")[i % 3]) for i in range(400)]
    pair = Pair(backend, "global_norm")
    with scheduled:
        got = pair.run(*arrays, ord=2.0)
    assert got.dtype == "float64"
    assert got == pytest.approx(0.5 * np.sqrt(sum(a.size for a in arrays)), rel=1e-14)
    assert [name for name, _ in launches] == ["norm_parts"] * 3 + ["norm_total"]


def test_a_norm_loses_nothing_to_the_number_or_the_size_of_elements(backend):
    norm = Pair(backend, "global_norm")
    assert norm.run(np.full(300_000, 0.1, "float32"), ord=2.0) == np.float32(np.sqrt(3e5) * np.float32(0.1))
    assert norm.run(np.full(4, 1e30, "float32"), ord=2.0) == np.float32(2e30)
    assert norm.run(np.full(4, 1e-30, "float32"), ord=2.0) == np.float32(2e-30)
    assert norm.run(np.full(4, 300.0, "float16"), ord=2.0) == 600


@pytest.mark.parametrize("ord", [2.0, 1.0, np.inf])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_norms_of_what_is_not_finite(backend, ord, bad):
    arrays = gradients(FLOAT32, (3, 70, 2050))
    arrays[1][40] = bad
    assert np.array_equal(Pair(backend, "global_norm").run(*arrays, ord=ord), np.float32(bad), equal_nan=True)


@pytest.mark.parametrize("norm", [0.5, 3.0, 1e20, np.inf, np.nan, 0.0])
def test_clipping_by_a_norm(backend, dtype, norm):
    pair, arrays = Pair(backend, "scale_into"), gradients(dtype, (0, 1, 33, 4099))
    factor = np.asarray(norm, state_type(dtype))
    device, want = to_device(backend, [arrays, factor]), each(wide, copies([arrays, factor]))
    pair.kernel(*device, limit=1.5)
    pair.twin(*want, limit=1.5)
    compare(backend, device[0], arrays, want[0])


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_scaling_by_a_factor(backend, dtype, kind):
    pair, arrays = Pair(backend, "scale_into"), gradients(dtype, (5, 0, 2049))
    factor = np.asarray(-0.3, kind)
    device, want = to_device(backend, [arrays, factor]), each(wide, copies([arrays, factor]))
    pair.kernel(*device)
    pair.twin(*want)
    compare(backend, device[0], arrays, want[0])


def test_clamping(backend, dtype):
    arrays = gradients(dtype)
    arrays[-1][:3] = [np.nan, np.inf, -np.inf]
    pair, device, want = Pair(backend, "clamp_into"), to_device(backend, arrays), each(wide, copies(arrays))
    pair.kernel(device, limit=0.25)
    pair.twin(want, limit=0.25)
    compare(backend, device, arrays, want)


def test_gradients_in_any_order_without_gaps(backend, launches):
    x = np.random.default_rng(1).normal(size=(6, 10))
    norm, scale = Pair(backend, "global_norm"), Pair(backend, "scale_into")
    turned = backend.xp.ascontiguousarray(backend.asarray(x).T).T
    assert backend.to_numpy(norm.kernel(turned, ord=2.0)) == pytest.approx(np.linalg.norm(x), rel=1e-14)
    scale.kernel([turned], backend.asarray(np.asarray(2.0)))
    assert np.array_equal(backend.to_numpy(turned), 2 * x)
    assert [name for name, _ in launches] == ["norm_parts", "norm_total", "scale_into"]
    gaps = backend.asarray(x)[:, ::2]
    norm.kernel.twin = lambda *arrays, **attrs: "twin"
    assert norm.kernel(gaps, ord=2.0) == "twin"


@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -np.inf])
def test_unscaling(backend, dtype, scheduled, bad):
    pair, arrays = Pair(backend, "unscale_into"), gradients(dtype, (3, 0, 70, 4099))
    if bad is not None:
        arrays[3][4001] = bad
    host = [arrays, np.asarray(0, "int32"), np.asarray(1024.0, "float32")]
    device, want = to_device(backend, host), each(wide, copies(host))
    want[1] = np.asarray(0, "int32")
    with scheduled:
        pair.kernel(*device)
    pair.twin(*want)
    compare(backend, device[0], arrays, want[0])
    assert backend.to_numpy(device[1]) == want[1] == (bad is not None)


def test_an_overflow_is_remembered(backend):
    pair, flag = Pair(backend, "unscale_into"), backend.asarray(np.asarray(1, "int32"))
    pair.kernel([backend.asarray(np.ones(3, "float32"))], flag, backend.asarray(np.asarray(2.0, "float32")))
    assert backend.to_numpy(flag) == 1


def test_the_next_scale(backend):
    pair = Pair(backend, "next_scale")
    host = [np.asarray(8.0, "float32"), np.asarray(0, "int32"), [np.asarray(0, "int32"), np.asarray(0, "int32")]]
    device, seen = to_device(backend, host), []
    for overflow in (0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0):
        for part in (host, device):
            if overflow:
                part[2][overflow - 1][...] = 1
            run = pair.twin if part is host else pair.kernel
            run(*part, growth=4.0, backoff=0.5, interval=3)
        got = [backend.to_numpy(a) for a in flat(device)]
        assert got == flat(host)
        assert got[2:] == [0, 0]
        seen.append(float(got[0]))
    assert seen == [8, 8, 32, 16, 16, 8, 8, 8, 32, 32, 32, 128]


def test_a_scale_does_not_grow_beyond_the_finite(backend):
    pair = Pair(backend, "next_scale")
    host = [np.asarray(3e38, "float32"), np.asarray(0, "int32"), [np.asarray(0, "int32")]]
    device = to_device(backend, host)
    pair.kernel(*device, growth=2.0, backoff=0.5, interval=1)
    with np.errstate(over="ignore"):
        pair.twin(*host, growth=2.0, backoff=0.5, interval=1)
    assert [backend.to_numpy(a) for a in flat(device)] == flat(host) == [np.float32(3e38), 0, 0]
