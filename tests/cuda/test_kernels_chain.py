"""A chain of elementwise ops as one CUDA kernel: what NumPy gives, in one launch, on the emulator and on a GPU."""

from __future__ import annotations

import json

import numpy as np
import pytest

import gpugrad as gg  # noqa: F401  fills the table
from gpugrad import tuning
from gpugrad.backends.launch import FLOATS, OPTIONS, TYPES, Launch
from gpugrad.chain import Chain, Const, End, Step
from gpugrad.chain_cuda import cuda_source
from gpugrad.kernel import source_text
from gpugrad.op import TABLE

from .nvrtc import MISSING, compile_text, toolkit

ACTIVATED = Chain(2, (Step("add", (0, 1)), Step("relu", (2,))), (3,))
KEY = (("key", (7, 11)), ("p", 0.25))
DROPPED = Chain(3, (Step("add", (0, 1)), Step("relu", (3,)), Step("dropout", (4, 2), KEY)), (5,))
LONG = Chain(
    3,
    (
        Step("multiply", (0, 1)), Step("maximum", (3, Const(0.25))), Step("less", (4, 2)), Step("where", (5, 4, 0)),
        Step("square", (6,)), Step("divide", (7, Const(3.0))),
        Step("add", (8, 2)),
    ),
    (6, 9),
)  # fmt: skip


def numpy_result(chain, ins):
    """By the ops' NumPy code, in at least float32."""
    wide = [a if a.dtype.kind == "u" or a.dtype.itemsize > 2 else a.astype("f4") for a in ins]
    values = list(wide)
    for step in chain.steps:
        given = [values[o] if type(o) is int else o.value for o in step.operands]
        values.append(TABLE[step.op].impls[np.ndarray](*given, **dict(step.attrs)))
    shape = np.broadcast_shapes(*(a.shape for a in ins if a.dtype.kind != "u"))
    whole = [np.broadcast_to(v, shape) for v in values]
    ends = [getattr(whole[e.operand].astype("f8"), e.op)(tuple(range(-e.axes, 0))) for e in chain.ends]
    return [whole[i].astype("bool" if whole[i].dtype == "bool" else ins[0].dtype) for i in chain.outputs] + ends


def run(gpu, chain, ins):
    xp = gpu.xp
    given = [xp.asarray(a) for a in ins]
    shape = np.broadcast_shapes(*(a.shape for a in ins if a.dtype.kind != "u"))
    kinds = chain.dtypes([a.dtype for a in ins])
    outs = [xp.empty(shape, kinds[v]) for v in chain.outputs]
    outs += [xp.empty(shape[: len(shape) - e.axes], kinds[e.operand]) for e in chain.ends]
    assert chain.launch_cuda(outs, given)
    return [gpu.to_numpy(o) for o in outs]


def operands(shape, shapes, dtype):
    rng = np.random.default_rng(0)
    return [np.asarray(rng.normal(size=shape if s is None else s), dtype) for s in shapes]


SHAPES = [
    ((5, 33), (None, (33,), None)), ((3, 4, 5, 6), (None, (4, 1, 6), (3, 1, 1, 1))), ((0, 3), (None, (3,), (1, 1))),
    ((1001,), (None, (1,), None)), ((), (None, None, None)),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "shapes"), SHAPES, ids=str)
def test_a_chain_is_what_numpy_gives(gpu, shape, shapes):
    agrees(gpu, np.dtype("float32"), shape, shapes)


def test_a_chain_is_what_numpy_gives_in_every_type(gpu, dtype):
    agrees(gpu, dtype, *SHAPES[0])


def agrees(gpu, dtype, shape, shapes):
    ins = operands(shape, shapes, dtype)
    for chain, given in ((ACTIVATED, ins[:2]), (LONG, ins)):
        if np.broadcast_shapes(*(a.shape for a in given)) == shape:
            for got, wanted in zip(run(gpu, chain, given), numpy_result(chain, given)):
                # a GPU may fuse the product into the sum: one rounding fewer
                np.testing.assert_allclose(
                    got.astype("f8"), wanted.astype("f8"), rtol=3 * float(np.finfo(np.float32).eps)
                )


@pytest.mark.parametrize("shape", [(5, 33), (16, 16)], ids=str)
def test_bias_relu_dropout_is_one_launch(gpu, dtype, shape):
    ins = [*operands(shape, (None, shape[-1:]), dtype), np.array([5], "u8")]
    before = gpu.launches
    (got,) = run(gpu, DROPPED, ins)
    assert gpu.launches == before + 1
    x = np.maximum(ins[0].astype("f4" if dtype.itemsize < 4 else dtype) + ins[1], 0)
    kept = TABLE["dropout"].impls[np.ndarray](np.ones(shape), ins[2], **dict(KEY)) > 0
    assert ((got != 0) == (kept & (x > 0))).all()
    wanted = numpy_result(DROPPED, ins)[0]
    np.testing.assert_allclose(got.astype("f8"), wanted.astype("f8"), rtol=2.0**-7 if dtype.itemsize == 2 else 1e-6)


def test_an_output_may_be_the_memory_of_an_input(gpu):
    xp = gpu.xp
    x, y = operands((100,), (None, None), "f4")
    chain = Chain(2, (Step("multiply", (0, 1)), Step("add", (0, 2))), (2, 3))
    a = xp.asarray(x)
    other = xp.empty(100, "f4")
    assert chain.launch_cuda([a, other], [a, xp.asarray(y)])
    np.testing.assert_allclose(gpu.to_numpy(a), x * y, rtol=1e-6)
    np.testing.assert_allclose(gpu.to_numpy(other), x + x * y, rtol=1e-6)


def test_threads_and_their_order_do_not_matter(gpu, scheduled):
    ins = [*operands((9, 70), (None, (70,)), "f4"), np.array([5], "u8")]
    with scheduled:
        np.testing.assert_allclose(run(gpu, DROPPED, ins)[0], numpy_result(DROPPED, ins)[0], rtol=1e-6)


# --- masks ----------------------------------------------------------------------------------------------------------

MASKED = Chain(
    3,
    (
        Step("greater", (0, 1)), Step("logical_and", (3, 2)), Step("where", (4, 0, Const(0.5))),
        Step("multiply", (5, 1)), Step("logical_not", (4,)),
    ),
    (6, 4, 7),
)  # fmt: skip


@pytest.mark.parametrize("mask", [(5, 33), (33,), (5, 1), (1, 1)], ids=str)
def test_masks_come_in_and_go_out(gpu, mask):
    x, y = operands((5, 33), (None, None), "f4")
    keep = np.random.default_rng(3).random(mask) < 0.6
    for got, wanted in zip(run(gpu, MASKED, [x, y, keep]), numpy_result(MASKED, [x, y, keep])):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def test_masks_of_every_type(gpu, dtype):
    ins = [*operands((7, 16), (None, (16,)), dtype), np.random.default_rng(3).random((7, 16)) < 0.6]
    for got, wanted in zip(run(gpu, MASKED, ins), numpy_result(MASKED, ins)):
        np.testing.assert_allclose(got.astype("f8"), wanted.astype("f8"), rtol=2.0**-7 if dtype.itemsize == 2 else 0)


def test_all_inputs_may_be_broadcast(gpu):
    ins = operands((5, 33), ((5, 1), (33,)), "f4")
    wanted = numpy_result(ACTIVATED, ins)[0]
    np.testing.assert_array_equal(run(gpu, ACTIVATED, ins)[0], wanted)
    out, xs = gpu.xp.empty((5, 33), "f4"), [gpu.xp.broadcast_to(gpu.xp.asarray(a), (5, 33)) for a in ins]
    assert ACTIVATED.launch_cuda([out], xs)
    np.testing.assert_array_equal(gpu.to_numpy(out), wanted)


# --- ends -----------------------------------------------------------------------------------------------------------

NORMS = Chain(
    2, (Step("multiply", (0, 1)), Step("abs", (2,))), (), (End("sum", 2, 1), End("max", 3, 1), End("mean", 3, 1))
)  # fmt: skip
ENDED = Chain(
    3, (Step("subtract", (0, 1)), Step("square", (3,)), Step("multiply", (4, 2))), (3,), (End("sum", 5, 1),)
)  # fmt: skip
CUTS = [(5, 33), (2, 1500), (3, 8193), (1, 20001), (9, 1), (2, 3, 40)]  # a warp, a block, several blocks a row


def near(got, wanted, dtype):
    """But for the roundings of the parts and of the result."""
    eps = {2: 2.0**-7, 4: 2e-7, 8: 4e-16}[dtype.itemsize]
    scale = max(1.0, np.abs(wanted.astype("f8")).max())
    np.testing.assert_allclose(got.astype("f8"), wanted.astype("f8"), rtol=0, atol=8 * eps * scale)


@pytest.mark.parametrize("shape", CUTS, ids=str)
def test_rows_end_in_sums_and_maxima(gpu, shape):
    dtype = np.dtype("f4")
    for chain, shapes in ((NORMS, (None, shape[-1:])), (ENDED, (None, None, (1,) * len(shape)))):
        ins = operands(shape, shapes, dtype)
        for got, wanted in zip(run(gpu, chain, ins), numpy_result(chain, ins)):
            assert got.shape == wanted.shape
            near(got, wanted, dtype)


def test_rows_end_in_sums_in_every_type(gpu, dtype):
    ins = operands((4, 70), (None, None, (70,)), dtype)
    for got, wanted in zip(run(gpu, ENDED, ins), numpy_result(ENDED, ins)):
        near(got, wanted, dtype)


@pytest.mark.parametrize("axes", [2, 3])
def test_an_end_over_several_axes_is_one_over_all(gpu, axes):
    ins = operands((2, 90, 100), (None, (90, 1), None), "f4")
    chain = Chain(3, ENDED.steps, ENDED.outputs, (End("sum", 5, axes),))
    before = gpu.launches
    for got, wanted in zip(run(gpu, chain, ins), numpy_result(chain, ins)):
        near(got, wanted, np.dtype("f4"))
    assert gpu.launches == before + 2  # slices, and what merges them


@pytest.mark.parametrize("cols", [33, 64, 9001])
def test_a_dropout_within_rows_is_that_of_the_whole_array(gpu, cols):
    """Its blocks of 8 elements do not begin with the rows."""
    chain = Chain(3, DROPPED.steps, (5,), (End("sum", 5, 1),))
    ins = [*operands((3, cols), (None, (cols,)), "f4"), np.array([5], "u8")]
    for got, wanted in zip(run(gpu, chain, ins), numpy_result(chain, ins)):
        near(got, wanted, np.dtype("f4"))


def test_rows_off_a_boundary(gpu):
    """Arrays that begin anywhere have the bits of those that lie on 16 bytes."""
    xp = gpu.xp
    x, y = operands((3, 50), (None, None), "f4")
    wanted = run(gpu, NORMS, [x, y])
    memory = [xp.empty(151, "f4")[1:].reshape(3, 50) for _ in range(2)]
    for place, value in zip(memory, (x, y)):
        place[...] = xp.asarray(value)
    outs = [xp.empty(3, "f4") for _ in NORMS.ends]
    assert NORMS.launch_cuda(outs, memory)
    for out, value in zip(outs, wanted):
        np.testing.assert_array_equal(gpu.to_numpy(out), value)


def test_sums_have_the_same_bits_under_every_schedule(gpu, scheduled):
    ins = operands((2, 9000), (None, None, (1, 1)), "f4")
    wanted = run(gpu, ENDED, ins)
    with scheduled:
        for got, value in zip(run(gpu, ENDED, ins), wanted):
            np.testing.assert_array_equal(got, value)


def test_an_ended_chain_may_write_over_its_input(gpu):
    xp = gpu.xp
    x, y, z = operands((4, 70), (None, None, (1, 1)), "f4")
    a, total = xp.asarray(x), xp.empty((4, 1), "f4")
    assert ENDED.launch_cuda([a, total], [a, xp.asarray(y), xp.asarray(z)])
    np.testing.assert_array_equal(gpu.to_numpy(a), x - y)
    near(gpu.to_numpy(total)[:, 0], ((x - y).astype("f8") ** 2 * z).sum(1), np.dtype("f4"))


# --- tuning ---------------------------------------------------------------------------------------------------------


def test_a_tuned_kernel_is_measured_once_for_all_processes(double, monkeypatch, tmp_path):
    monkeypatch.setenv("GPUGRAD_CACHE", str(tmp_path))
    monkeypatch.setenv("GPUGRAD_TUNE", "1")
    monkeypatch.setattr(tuning, "choices", {})
    timed = iter([3.0, 1.0, 2.0] * tuning.ROUNDS)
    monkeypatch.setattr(double, "seconds", lambda start, end: next(timed))
    ins = operands((40, 70), (None, (70,)), "f4")
    wanted = numpy_result(ACTIVATED, ins)[0]
    np.testing.assert_allclose(run(double, ACTIVATED, ins)[0], wanted, rtol=1e-6)
    assert next(timed, None) is None  # every candidate, every round
    (kept,) = json.loads((tmp_path / "tuned.json").read_text()).values()
    assert kept == tuning.BLOCKS[1]
    monkeypatch.setattr(tuning, "choices", {})  # another process
    geometry, real = [], Launch.tiles
    monkeypatch.setattr(Launch, "tiles", lambda self, *a: geometry.append(a[4]) or real(self, *a))
    np.testing.assert_allclose(run(double, ACTIVATED, ins)[0], wanted, rtol=1e-6)
    assert geometry == [(tuning.BLOCKS[1],)]
    x = double.asarray(ins[0])
    assert ACTIVATED.launch_cuda([x], [x, double.asarray(ins[1])])  # over its input: once, untuned
    assert geometry[1:] == [(tuning.BLOCKS[0],)]
    np.testing.assert_allclose(double.to_numpy(x), wanted, rtol=1e-6)


def test_a_spoilt_file_of_choices_is_no_file(tmp_path):
    for text in ("", "[]", '{"a": "b"}', "{"):
        (tmp_path / "tuned.json").write_text(text)
        assert tuning.read(tmp_path / "tuned.json") == {}


def test_what_no_kernel_is_made_for_is_refused(gpu):
    xp = gpu.xp
    x, out = xp.ones(4, "f4"), xp.empty(4, "f4")
    assert not Chain(1, (Step("asinh", (0,)),), (1,)).launch_cuda([out], [x])
    assert not Chain(2, (Step("add", (0, 1)),), (2,)).launch_cuda([out], [x, xp.ones(4, "f8")])
    assert not Chain(1, (Step("logical_not", (0,)),), (1,)).launch_cuda([xp.empty(4, "bool")], [xp.ones(4, "bool")])
    assert Chain(1, (Step("less", (0, Const(0.0))),), (), (End("sum", 1, 1),)).source("cuda", ["f4"]) is None
    ends = (End("sum", 1, 1), End("sum", 1, 2))
    assert Chain(1, (Step("exp", (0,)),), (1,), ends).source("cuda", ["f4"]) is None
    assert not Chain(1, (Step("exp", (0,)),), (1,), ends[:1]).launch_cuda([xp.empty((2, 0), "f4"), x[:2]], [x[:0]])
    assert Chain(1, (Step("exp", (0,)),), (1,), order=(1, 0)).source("cuda", ["f4"]) is None


def test_the_source_is_printable_and_the_same_for_equal_chains():
    text = DROPPED.source("cuda", ["f4", "f4", "u8"])
    assert "A v1 = Relu::value<A>(v0" in text
    assert text == Chain(3, DROPPED.steps, DROPPED.outputs).source("cuda", ["f4", "f4", "u8"])


@pytest.mark.skipif(toolkit() is None, reason=MISSING)
@pytest.mark.parametrize("arch", [75, 90, 120])
def test_chains_compile_without_spills(arch):
    """Both ways of reading a broadcast operand, with a dropout and without, masks and ends."""
    ended = Chain(3, DROPPED.steps, (5,), (End("sum", 5, 1), End("max", 4, 1)))
    for chain, dtypes, forms in (
        (DROPPED, "f4 f4 u8", "full placed full"), (LONG, "f4 f4 f4", "full one full"),
        (MASKED, "f4 f4 ?", "full placed full"), (ended, "f4 f4 u8", "full placed full"), (NORMS, "f4 f4", "full full"),
    ):  # fmt: skip
        text = source_text(cuda_source(chain, [np.dtype(d) for d in dtypes.split()], forms.split()), "chain")
        names = [f"chain<{TYPES[t]}>" for t in FLOATS if t != "float16"]
        cubin, log = compile_text(text, names, f"sm_{arch}", (*OPTIONS, "--ptxas-options=-v"))
        assert cubin[:4] == b"\x7fELF"
        assert log.count("0 bytes spill stores, 0 bytes spill loads") >= len(names), log
        assert log.count("0 bytes stack frame") >= len(names), log
