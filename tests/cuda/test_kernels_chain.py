"""A chain of elementwise ops as one CUDA kernel: what NumPy gives, in one launch, on the emulator and on a GPU."""

from __future__ import annotations

import json

import numpy as np
import pytest

import gpugrad as gg  # noqa: F401  fills the table
from gpugrad import tuning
from gpugrad.backends.launch import FLOATS, OPTIONS, TYPES, Launch
from gpugrad.chain import Chain, Const, End, Step, cuda_source
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
    return [values[i].astype(ins[0].dtype) for i in chain.outputs]


def run(gpu, chain, ins):
    xp = gpu.xp
    given = [xp.asarray(a) for a in ins]
    shape = np.broadcast_shapes(*(a.shape for a in ins))
    outs = [xp.empty(shape, ins[0].dtype) for _ in chain.outputs]
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
    assert not Chain(1, (Step("less", (0, Const(0.0))),), (1,)).launch_cuda([xp.empty(4, "bool")], [x])
    assert Chain(1, (Step("exp", (0,)),), (1,), (End("sum", 1, 1),)).source("cuda", ["f4"]) is None


def test_the_source_is_printable_and_the_same_for_equal_chains():
    text = DROPPED.source("cuda", ["f4", "f4", "u8"])
    assert "A v1 = Relu::value<A>(v0" in text
    assert text == Chain(3, DROPPED.steps, DROPPED.outputs).source("cuda", ["f4", "f4", "u8"])


@pytest.mark.skipif(toolkit() is None, reason=MISSING)
@pytest.mark.parametrize("arch", [75, 90, 120])
def test_chains_compile_without_spills(arch):
    """Both ways of reading a broadcast operand, with a dropout and without."""
    for chain, dtypes, forms in ((DROPPED, "f4 f4 u8", "full placed full"), (LONG, "f4 f4 f4", "full one full")):
        text = source_text(cuda_source(chain, [np.dtype(d) for d in dtypes.split()], forms.split()), "chain")
        names = [f"chain<{TYPES[t]}>" for t in FLOATS if t != "float16"]
        cubin, log = compile_text(text, names, f"sm_{arch}", (*OPTIONS, "--ptxas-options=-v"))
        assert cubin[:4] == b"\x7fELF"
        assert log.count("0 bytes spill stores, 0 bytes spill loads") >= len(names), log
        assert log.count("0 bytes stack frame") >= len(names), log
