"""Every kernel on real sizes: its error against the float64 twin, and its bandwidth beside a copy of the same run.

    python bench/kernels.py [--out FILE] [--only WORD] [--small] [--double]

Bytes are counted, not measured: every operand read once, every result written once. A launch is timed by device events
over a CUDA graph that holds several of them; what cannot be captured is timed in the stream and says so. --small takes
sizes of a few thousand elements (for the sanitizers). --double runs on the CPU double, which shows errors but no times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpugrad import backends
from gpugrad.backends import cuda
from gpugrad.kernel import Kernel
from gpugrad.op import TABLE
from gpugrad.ops import optim as _optim  # noqa: F401 - fills the table

TOLERANCE = {"float32": 3e-6, "float64": 1e-12, "float16": 2e-3, "bfloat16": 2e-2}
REPEATS = 10  # launches in a timed graph
BAR = 0.85  # of the copy's bandwidth, for half a gigabyte and more
LARGE = 5e8


class Maker:
    """Arrays of one case, on the device: random, the same at every run. `rows` x `columns` is the usual size."""

    def __init__(self, backend: Any, dtype: str, small: bool) -> None:
        self.backend, self.xp, self.small = backend, backend.xp, small
        self.dtype = np.dtype(dtype) if dtype != "bfloat16" else bfloat16()
        self.rows, self.columns = (24, 200) if small else (32768 // self.dtype.itemsize, 8192)
        self.random = np.random.default_rng(0)

    def size(self, small: int, large: int) -> int:
        """One of two sizes."""
        return small if self.small else large

    def x(self, *shape: int, dtype: Any = None, scale: float = 1.0) -> Any:
        """Normal values. A megabyte of random numbers is repeated: what is timed does not depend on them."""
        n = int(np.prod(shape or (self.rows, self.columns)))
        part = scale * self.random.normal(size=min(n, 1_000_003))
        tiled = self.backend.asarray(part.astype("float32"))
        full = self.xp.tile(tiled, -(-n // tiled.size))[:n].astype(dtype or self.dtype)
        return full.reshape(shape or (self.rows, self.columns))

    def positive(self, *shape: int, dtype: Any = None) -> Any:
        """Values from about 0.1 up."""
        return self.xp.abs(self.x(*shape, dtype="float32")).astype(dtype or self.dtype) + self.scalar(0.1, dtype)

    def scalar(self, value: float, dtype: Any = None) -> Any:
        """A 0-d array."""
        return self.backend.asarray(np.asarray(value, "float64")).astype(dtype or self.dtype)

    def labels(self, n: int, classes: int) -> Any:
        """Class numbers or row numbers."""
        return self.backend.asarray(self.random.integers(0, classes, n))

    def counter(self) -> Any:
        """A generator's counter."""
        return self.backend.asarray(np.array([7], "uint64"))


def bfloat16() -> Any:
    """The dtype."""
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


Case = Callable[[Maker], tuple[list[Any], dict[str, Any]]]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    """Register the arguments with which op `name` is run."""

    def add(build: Case) -> Case:
        CASES[name] = build
        return build

    return add


case("assert_finite")(lambda m: ([m.x()], {"what": "x"}))
XENT = {"ignore_index": -100, "smoothing": 0.0}
ACTIVATIONS: dict[str, dict[str, Any]] = {
    "relu": {}, "leaky_relu": {"negative_slope": 0.1}, "elu": {"alpha": 1.0, "rate": 1.0, "scale": 1.0},
    "gelu": {"approximate": "none"}, "silu": {}, "sigmoid": {}, "tanh": {}, "softplus": {"beta": 1.0}, "mish": {},
    "hardswish": {},
}  # fmt: skip
for _name, _options in ACTIVATIONS.items():
    case(_name)(lambda m, options=_options: ([m.x()], options))
    case(f"{_name}_bwd")(lambda m, options=_options: ([m.x(), m.x()], options))
case("log_sigmoid")(lambda m: ([m.x()], {}))
case("absorbed")(lambda m: ([m.x(), m.x()], {"infinite": False}))


def features(m: Maker) -> tuple[int, int]:
    """Rows and columns of a hidden layer."""
    return m.size(70, 65536), m.size(40, 4096)


case("bias_act")(lambda m: ([m.x(*features(m)), m.x(features(m)[1])], {"kind": "gelu"}))
case("bias_act_out")(lambda m: ([m.x(*features(m)), m.x(features(m)[1])], {"kind": "relu"}))
case("bias_act_bwd")(lambda m: ([m.x(*features(m)), m.x(*features(m)), m.x(features(m)[1])], {"kind": "gelu"}))
case("dropout")(lambda m: ([m.x(), m.counter()], {"key": (3, 4), "p": 0.1}))
case("scatter_rows")(
    lambda m: (
        [m.x(m.size(90, 262144), m.size(16, 1024)), m.labels(m.size(90, 262144), m.size(20, 50257))],
        {"rows": m.size(20, 50257), "distinct": False},
    )
)


def vocabulary(m: Maker) -> tuple[int, int]:
    """The size of a language model's logits."""
    return m.size(5, 8192), m.size(300, 50257)


@case("softmax_xent")
def _xent(m: Maker) -> Any:
    n, classes = vocabulary(m)
    return [m.x(n, classes), m.labels(n, classes), None], XENT


@case("softmax_xent_bwd")
def _xent_bwd(m: Maker) -> Any:
    n, classes = vocabulary(m)
    logits = m.x(n, classes)
    lse = implementation(m.backend, "softmax_xent")(logits, m.labels(n, classes), None, **XENT)[1]
    return [m.x(n), logits, m.labels(n, classes), None, lse], XENT


CAUSAL = {"causal": True, "scale": 0.125}


def heads(m: Maker) -> list[Any]:
    """Queries, keys and values (B, H, T, D) of a language model."""
    return [m.x(m.size(1, 4), m.size(2, 16), m.size(70, 2048), m.size(40, 64)) for _ in "qkv"]


case("attention")(lambda m: ([*heads(m), None], CAUSAL))


@case("attention_bwd")
def _attention_bwd(m: Maker) -> Any:
    q, k, v = heads(m)
    out, lse = implementation(m.backend, "attention")(q, k, v, None, **CAUSAL)
    return [m.x(*out.shape), q, k, v, None, out, lse], CAUSAL


@case("rotary")
def _rotary(m: Maker) -> Any:
    positions, width = m.size(70, 4096), m.size(40, 128)
    angles = [m.x(positions, width // 2) for _ in "cs"]
    return [m.x(m.size(2, 256), positions, width), *angles], {"interleaved": False}


CONV = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
POOL = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}
MAX = {**POOL, "dilation": (1, 1)}


def images(m: Maker) -> tuple[int, ...]:
    """(N, C, H, W) of a layer in the middle of a network."""
    return m.size(2, 64), m.size(3, 64), m.size(8, 28), m.size(10, 28)


def planes(m: Maker) -> tuple[int, ...]:
    """(N, C, H, W) of half a gigabyte with its pooled image."""
    return m.size(2, 512), m.size(3, 64), m.size(8, 56), m.size(10, 56)


def halves(m: Maker) -> tuple[int, ...]:
    """The shape of pooled planes."""
    n, c, h, w = planes(m)
    return n, c, h // 2, w // 2


def kernel(m: Maker) -> Any:
    """From as many channels to as many."""
    c = images(m)[1]
    return m.x(c, c, 3, 3)


case("conv2d")(lambda m: ([m.x(*images(m)), kernel(m)], CONV))
case("conv2d_input")(lambda m: ([m.x(*images(m)), kernel(m)], {**CONV, "shape": images(m)[2:]}))
case("conv2d_weight")(lambda m: ([m.x(*images(m)), m.x(*images(m))], {**CONV, "kernel": (3, 3)}))
case("max_pool2d")(lambda m: ([m.x(*planes(m))], {**MAX, "ceil_mode": False}))
case("avg_pool2d")(lambda m: ([m.x(*planes(m))], POOL))
case("avg_pool2d_bwd")(lambda m: ([m.x(*halves(m))], {**POOL, "shape": planes(m)[2:]}))
case("adaptive_avg_pool2d")(lambda m: ([m.x(*planes(m))], {"size": (7, 6)}))
case("adaptive_avg_pool2d_bwd")(lambda m: ([m.x(*planes(m)[:2], 7, 6)], {"shape": planes(m)[2:]}))


@case("max_pool2d_bwd")
def _max_pool2d_bwd(m: Maker) -> Any:
    x = m.x(*planes(m))
    y = implementation(m.backend, "max_pool2d")(x, ceil_mode=False, **MAX)
    return [m.x(*y.shape), x, y], MAX


@case("max_pool2d_pick")
def _max_pool2d_pick(m: Maker) -> Any:
    x = m.x(*planes(m))
    return [m.x(*x.shape), x, implementation(m.backend, "max_pool2d")(x, ceil_mode=False, **MAX)], MAX


def model(m: Maker) -> list[tuple[int, ...]]:
    """Shapes of the parameters of a network: 24 tensors, 134 million elements."""
    width = m.size(20, 4096)
    return [shape for _ in range(8) for shape in ((width, width), (width,), (width,))]


def stepping(states: int, vectors: int = 0, unused: int = 0, **options: Any) -> Case:
    """An optimiser's step of a whole model, with `unused` empty lists of states and more vectors beside the counts."""

    def build(m: Maker) -> Any:
        shapes, wide = model(m), m.dtype if m.dtype.itemsize > 2 else np.dtype("float32")
        lists = [[m.positive(*s, dtype=wide) for s in shapes] for _ in range(states)]
        counters = [m.scalar(1.0, "float64") + m.backend.xp.zeros(len(shapes)) for _ in range(1 + vectors)]
        params, grads = ([m.x(*s) for s in shapes] for _ in "pg")
        absent = [[] for _ in range(unused)]
        return [params, *lists, *absent, *counters, grads, m.scalar(0.01, "float64")], options

    return build


ADAM = {"weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6}
case("sgd")(stepping(1, weight_decay=0.1, momentum=0.9, dampening=0.0, nesterov=True))
case("adagrad")(stepping(1, weight_decay=0.1, lr_decay=0.1, eps=1e-6))
case("adadelta")(stepping(2, weight_decay=0.1, rho=0.9, eps=1e-6))
case("rmsprop")(stepping(1, weight_decay=0.1, alpha=0.9, eps=1e-6, momentum=0.0, unused=2))
case("adam")(stepping(2, **ADAM, decoupled=True, unused=1))
case("adamax")(stepping(2, **ADAM))
case("nadam")(stepping(2, 1, **ADAM, momentum_decay=0.004))
case("global_norm")(lambda m: ([m.x(*s) for s in model(m)], {"ord": 2.0}))
case("clamp_into")(lambda m: ([[m.x(*s) for s in model(m)]], {"limit": 0.5}))
case("scale_into")(lambda m: ([[m.x(*s) for s in model(m)], m.scalar(2.0, "float32")], {"limit": 1.0}))
case("unscale_into")(lambda m: ([[m.x(*s) for s in model(m)], flag(m), m.scalar(4.0, "float32")], {}))


def flag(m: Maker) -> Any:
    """Nothing has overflowed."""
    return m.scalar(0, "int32")


@case("average_into")
def _average_into(m: Maker) -> Any:
    wide = m.dtype if m.dtype.itemsize > 2 else "float32"
    averages = [m.x(*s, dtype=wide) for s in model(m)]
    return [averages, m.backend.xp.zeros(len(averages)), [m.x(*s) for s in model(m)]], {"decay": 0.99}


@case("next_scale")
def _next_scale(m: Maker) -> Any:
    return [m.scalar(8.0, "float32"), flag(m), [flag(m)]], {"growth": 2.0, "backoff": 0.5, "interval": 1}


# --- softmax, reductions, norms, indexing, products ---------------------------------------------------------------

LAST, ROW = {"axis": 1}, {"axis": (1,), "keepdims": False}
for _name in ("softmax", "log_softmax"):
    case(_name)(lambda m: ([m.x()], LAST))
    case(f"{_name}_bwd")(lambda m: ([m.x(), m.x(scale=0.1)], LAST))
case("logsumexp")(lambda m: ([m.x()], ROW))
case("logsumexp_bwd")(lambda m: ([m.x(m.rows), m.positive(m.rows) + m.scalar(9), m.x()], {"axis": (1,)}))
for _name in ("sum", "mean", "max", "min"):
    case(_name)(lambda m: ([m.x()], {"axis": (0,), "keepdims": False}))
for _name in ("argmax", "argmin"):
    case(_name)(lambda m: ([m.x()], {"axis": 1, "keepdims": False}))
for _name in ("var", "std"):
    case(_name)(lambda m: ([m.x()], {**ROW, "correction": 0.0}))

NORM = {"axis": (1,), "eps": 1e-5, "centred": True}
case("layer_norm")(lambda m: ([m.x(), m.x(m.columns), m.x(m.columns)], NORM))
case("add_layer_norm")(lambda m: ([m.x(), m.x(), m.x(m.columns), m.x(m.columns)], NORM))


def backward_of(m: Maker, name: str, x: Any, weight: Any, attrs: dict[str, Any]) -> Any:
    """Arguments of a norm's backward, with the statistics that its forward kept."""
    statistics = implementation(m.backend, name)(x, weight, weight, **attrs)[1]
    return [m.x(*x.shape), x, weight, *statistics], attrs


case("layer_norm_bwd")(lambda m: backward_of(m, "layer_norm", m.x(), m.x(m.columns), NORM))


def pictures(m: Maker) -> tuple[int, ...]:
    """Feature maps of a convolutional network."""
    return m.size(4, 128), m.size(6, 256), m.size(5, 64), m.size(7, 64)


BATCH, GROUP = {"axis": (0, 2, 3), "eps": 1e-5}, {"axis": (2, 3, 4), "eps": 1e-5, "centred": True}
case("batch_norm")(lambda m: ([m.x(*pictures(m)), *(m.x(pictures(m)[1], 1, 1) for _ in "wb")], BATCH))


@case("batch_norm_eval")
def _batch_norm_eval(m: Maker) -> Any:
    c = (pictures(m)[1], 1, 1)
    return [m.x(*pictures(m)), m.x(*c), m.x(*c), m.x(*c), m.positive(*c)], {"eps": 1e-5}


def grouped(m: Maker) -> tuple[int, ...]:
    """The same maps, two channels a group."""
    n, c, *rest = pictures(m)
    return n, c // 2, 2, *rest


case("group_norm")(lambda m: ([m.x(*grouped(m)), *(m.x(*grouped(m)[1:3], 1, 1) for _ in "wb")], GROUP))
case("group_norm_bwd")(lambda m: backward_of(m, "group_norm", m.x(*grouped(m)), m.x(*grouped(m)[1:3], 1, 1), GROUP))


def words(m: Maker) -> tuple[int, int, int]:
    """Rows of an embedding, their width, and how many are looked up."""
    return m.size(30, 50257), m.size(16, 1024), m.size(90, 262144)


def table_and_ids(m: Maker) -> list[Any]:
    """An embedding's weights and the rows asked for."""
    rows, width, n = words(m)
    return [m.x(rows, width), m.labels(n, rows)]


case("embedding")(lambda m: (table_and_ids(m), {"padding": None}))
case("gather")(lambda m: (table_and_ids(m), {"index": ("array",), "distinct": False}))


@case("positions")
def _positions(m: Maker) -> Any:
    n = m.size(90, 1 << 25)
    return [m.labels(n, 3000), m.labels(n, 4000)], {"index": ("array", "array"), "shape": (3000, 4000)}


@case("put")
def _put(m: Maker) -> Any:
    rows = m.backend.asarray(m.random.permutation(m.rows)[: m.rows // 2])
    return [m.x(), m.x(m.rows // 2, m.columns), rows], {"index": ("array",), "distinct": True}


case("matmul")(lambda m: ([m.x(m.size(9, 8192), m.size(7, 4096)), m.x(m.size(7, 4096), m.size(5, 8192))], {}))
case("affine")(
    lambda m: (
        [m.x(m.size(9, 8192), m.size(7, 4096)), m.x(m.size(5, 8192), m.size(7, 4096)), m.x(m.size(5, 8192))],
        {},
    )
)
# Bound by arithmetic: no bar for their bandwidth.
ARITHMETIC = ("matmul", "affine", "attention", "conv2d")


def implementation(backend: Any, name: str) -> Any:
    """An op as the backend runs it."""
    op = TABLE[name]
    return backend.implement(op.fwd, op.impls.special)


class Result(NamedTuple):
    """One line: an op in one dtype."""

    op: str
    dtype: str
    gigabytes: float
    error: float
    ok: bool
    kernels: list[str]
    milliseconds: float | None
    share: float | None  # of the copy's bandwidth
    note: str


def arrays(x: Any) -> Iterator[Any]:
    """The arrays among nested arguments."""
    if isinstance(x, (list, tuple)):
        for part in x:
            yield from arrays(part)
    elif hasattr(x, "nbytes"):
        yield x


def widened(x: Any) -> Any:
    """Arguments in double precision, copies of them."""
    if isinstance(x, (list, tuple)):
        return type(x)(widened(v) for v in x)
    floating = hasattr(x, "dtype") and (x.dtype.kind == "f" or x.dtype.name == "bfloat16")
    return x.astype("float64") if floating else x.copy() if hasattr(x, "copy") else x


def deviation(xp: Any, got: Any, want: Any) -> float:
    """Largest difference, relative to the largest value or 1; NaNs have to agree."""
    worst = 0.0
    for g, w in zip(arrays(got), arrays(want)):
        if g.size == 0:
            continue
        g, w = g.astype("float64"), w.astype("float64")
        same = (g == w) | ((g != g) & (w != w))
        scale = xp.maximum(xp.abs(xp.where(xp.isfinite(w), w, 0)).max(), 1.0)
        worst = max(worst, float(xp.where(same, 0, xp.abs(g - w) / scale).max()))
    return worst


def measure(backend: Any, name: str, dtype: str, small: bool, copy: float | None) -> Result:
    """Run one op against its twin in double precision, and time it unless `copy` (bytes a second) is None."""
    op, xp = TABLE[name], backend.xp
    m = Maker(backend, dtype, small)
    args, attrs = CASES[name](m)
    run = implementation(backend, name)
    launched: list[str] = []
    tiles = run.tiles
    run.tiles = lambda kernel, *a, **k: (launched.append(kernel), tiles(kernel, *a, **k))[1]
    twin = backend.implement(op.fwd, {})
    wide = widened(args)
    got, want = run(*args, **attrs), twin(*wide, **attrs)
    run.tiles = tiles
    written = getattr(op.call, "written", 0)  # an update returns nothing
    outs, wanted = (args[:written], wide[:written]) if written else (got, want)
    error = deviation(xp, outs, wanted)
    ours = bool(launched) or not op.impls.special["cuda"].family  # a product is the library's
    ok = error <= TOLERANCE[dtype] * (10 if name.startswith(ARITHMETIC) else 1) and ours
    moved = sum(a.nbytes for a in arrays(args))
    moved += sum(a.nbytes for a in arrays(outs))
    note = "" if ours else "no kernel was launched"
    del got, want, wide, outs, wanted
    seconds = None
    if copy is not None:
        seconds, note = timed(backend, lambda: run(*args, **attrs), note)
    return Result(
        name, dtype, moved / 1e9, error, ok, sorted(set(launched)), seconds and seconds * 1e3,
        seconds and moved / seconds / copy if copy else None, note,
    )  # fmt: skip


def timed(backend: Any, run: Callable[[], Any], note: str) -> tuple[float, str]:
    """Seconds of one run, by events round a graph of several; the median of five."""
    xp = backend.xp
    try:
        with backend.capture() as graph:
            for _ in range(REPEATS):
                run()
        work = graph.launch
    except Exception as error:  # what the driver says is the finding
        note = f"{note} not captured: {str(error).partition(chr(10))[0]}".strip()

        def work() -> None:
            for _ in range(REPEATS):
                run()

    work()
    seconds = []
    for _ in range(5):
        start, stop = xp.cuda.Event(), xp.cuda.Event()
        start.record()
        work()
        stop.record()
        stop.synchronize()
        seconds.append(xp.cuda.get_elapsed_time(start, stop) / 1e3 / REPEATS)
    return statistics.median(seconds), note


def copy_bandwidth(backend: Any) -> float:
    """Bytes a second of a large copy on the device, reads and writes counted."""
    a = backend.xp.ones(1 << 29, "float32")
    b = backend.xp.empty_like(a)
    seconds, _ = timed(backend, lambda: backend.xp.copyto(b, a), "")
    return 2 * a.nbytes / seconds


def product_rates(backend: Any) -> dict[str, float]:
    """Operations a second of a large matrix product, by precision."""
    import gpugrad as gg

    n, rates = 8192, {}
    m = Maker(backend, "float32", small=False)
    for name, dtype, precision in (
        ("float32", "float32", "highest"), ("tf32", "float32", "tf32"), ("float16", "float16", "highest"),
        ("bfloat16", bfloat16(), "highest"),
    ):  # fmt: skip
        a, b = (m.x(n, n, dtype=dtype) for _ in "ab")
        with gg.matmul_precision(precision):
            seconds, _ = timed(backend, lambda a=a, b=b: backend.gemm(a, b), "")
        rates[name] = 2 * n**3 / seconds
    return rates


def host_costs(backend: Any) -> dict[str, float]:
    """Microseconds that the host spends on one call with tiny arrays, nothing waited for."""
    import gpugrad as gg

    xp, n = backend.xp, 2000
    x = gg.ones((4, 4), device="cuda")
    w = gg.ones((4, 4), device="cuda", requires_grad=True)
    relu_bwd = implementation(backend, "relu_bwd")
    calls: dict[str, Callable[[], Any]] = {
        "cupy add": lambda: x.data + x.data,
        "cupy empty": lambda: xp.empty((4, 4), "float32"),
        "kernel of ours (relu_bwd)": lambda: relu_bwd(x.data, x.data),
        "gemm (cuBLASLt)": lambda: backend.gemm(x.data, x.data),
        "gpugrad add, recorded": lambda: w + x,
        "gpugrad matmul, recorded": lambda: w @ x,
        "gpugrad relu forward and backward": lambda: gg.relu(w).sum().backward(),
    }
    costs = {}
    for name, call in calls.items():
        for _ in range(50):
            call()
        backend.synchronize()
        best = []
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(n // 5):
                call()
            best.append((time.perf_counter() - start) / (n // 5) * 1e6)
            backend.synchronize()
        costs[name] = statistics.median(best)
    return costs


def with_kernels() -> list[str]:
    """The table's ops that have a kernel."""
    return [n for n, op in TABLE.items() if isinstance(op.impls.special.get("cuda"), Kernel)]


def table(results: list[Result]) -> str:
    """The results as Markdown."""
    head = "| op | dtype | GB | max error | ms | GB/s | of copy | |\n|---|---|---|---|---|---|---|---|\n"
    rows = []
    for r in results:
        speed = ("", "", "") if r.milliseconds is None else (
            f"{r.milliseconds:.3f}", f"{r.gigabytes / r.milliseconds * 1e3:.0f}", f"{100 * (r.share or 0):.0f} %"
        )  # fmt: skip
        rows.append(f"| {r.op} | {r.dtype} | {r.gigabytes:.3f} | {r.error:.1e} | {' | '.join(speed)} | "
                    f"{'' if r.ok else '**wrong**'} {r.note} |")  # fmt: skip
    return head + "\n".join(rows) + "\n"


def main() -> int:
    """Run the cases; 1 if one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--only", default="", help="ops whose name contains this")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--double", action="store_true")
    options = parser.parse_args()
    if options.double:
        from gpugrad.testing import fake_cupy

        backends.register(cuda.load(fake_cupy))
    backend: Any = backends.get("cuda")
    untimed = options.double or options.small
    copy = None if untimed else copy_bandwidth(backend)
    found: dict[str, Any] = {"card": backend.card()}
    if copy is not None:
        found |= {"copy_bytes_per_second": copy, "products": product_rates(backend), "host_us": host_costs(backend)}
        print(
            f"copy {copy / 1e9:.0f} GB/s; products (TFLOP/s):",
            {k: round(v / 1e12) for k, v in found["products"].items()},
        )
        print("host us a call:", {k: round(v, 2) for k, v in found["host_us"].items()})
    results = []
    for name in [n for n in CASES if options.only in n]:
        for dtype in options.dtypes.split(","):
            try:
                results.append(measure(backend, name, dtype, options.small or options.double, copy))
            except Exception as error:  # one broken kernel must not hide the others
                first = str(error).partition("\n")[0]
                results.append(
                    Result(name, dtype, 0.0, float("nan"), False, [], None, None, f"{type(error).__name__}: {first}")
                )
            print(table(results[-1:]).splitlines()[-1], flush=True)
    large = [r for r in results if r.share is not None and r.gigabytes * 1e9 >= LARGE]
    large = [r for r in large if not r.op.startswith(ARITHMETIC)]
    found["results"] = [r._asdict() for r in results]
    found["below_bar"] = [f"{r.op} {r.dtype}: {100 * r.share:.0f} %" for r in large if r.share < BAR]  # type: ignore[operator]
    wrong = [f"{r.op} {r.dtype}" for r in results if not r.ok]
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))
        options.out.with_suffix(".md").write_text(table(results))
    below = found["below_bar"] or "none"
    print(f"{len(results)} measured, wrong: {wrong or 'none'}, below {100 * BAR:.0f} % of the copy: {below}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
