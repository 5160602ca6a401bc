"""The proof of compiled replays: seeded faults in compiled code are found, right code never is.

A fault is one text for another in the headers that code for the CPU is compiled with.
"""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import compiler, jit, jit_conv, nn, optim, proof, recorded
from gpugrad.bench import workloads
from gpugrad.bench.peers import PEERS
from gpugrad.chain_cuda import STATES
from gpugrad.epilogues import PRODUCTS
from gpugrad.errors import ReplayError
from gpugrad.nn import functional
from gpugrad.op import TABLE
from gpugrad.ops.loss import BOTH, both

from .fuzz import generate
from .ops.samples import collect
from .test_accuracy import NAMES

needs_compiler = pytest.mark.skipif(not compiler.enabled(), reason="no C++ compiler")
rng = np.random.default_rng(0)


def normal(*shape, dtype="float32"):
    return gg.asarray(rng.normal(size=shape).astype(dtype))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def quick(monkeypatch, folder):
    """Compiles with little optimisation, which takes half the time, to a folder of these tests."""
    monkeypatch.setenv("GPUGRAD_CACHE", str(folder))
    monkeypatch.setattr(compiler, "HOST_FLAGS", ("-O1", *(f for f in compiler.HOST_FLAGS if f != "-O3")))
    compiler.surroundings.cache_clear()
    yield
    compiler.surroundings.cache_clear()


@pytest.fixture
def seeded(monkeypatch, quick):
    """Puts a fault into the headers: seeded(text, another)."""
    real = compiler.host_text

    def put(old, new):
        assert old in real(""), old
        monkeypatch.setattr(compiler, "host_text", lambda body: real("").replace(old, new) + body)
        compiler.surroundings.cache_clear()

    return put


def prove(f, *args):
    """The third call of a step, which is the proof."""
    step = gg.replay(f, compiled=True)
    for _ in range(3):
        step(*args)
    return step.records[0].runner


def gradients(f):
    return lambda *xs: gg.grad(lambda *ys: gg.sum(f(*ys)), argnums=tuple(range(len(xs))))(*xs)


def trained(make):
    """An optimiser's step on gradients of every size."""

    def case():
        p = normal(300).requires_grad_()
        scale = gg.asarray((10.0 ** rng.uniform(-6, 3, 300)).astype("float32"))
        opt = make([p])

        def step(x):
            opt.zero_grad()
            gg.sum(p * scale * x).backward()
            opt.step()

        return step, normal(300)

    return case


def heads():
    attend = functional.scaled_dot_product_attention
    return gradients(lambda q, k, v: attend(q, k, v, is_causal=True) ** 2), *(normal(2, 3, 20, 16) for _ in "qkv")


def images():
    def loss(x, w):
        return functional.max_pool2d(functional.conv2d(x, w, padding=1), 2) ** 2

    return gradients(loss), normal(16, 3, 9, 9), normal(5, 3, 3, 3)


def normed():
    """Rows of a small spread, beside which eps is not small."""
    weights = normal(128), normal(128)
    x = gg.asarray((np.arange(40)[:, None] * 1e-3 * rng.normal(size=(40, 128)) + 2).astype("float32"))
    return gradients(lambda x, w, b: functional.layer_norm(x, (128,), w, b) ** 2), x, *weights


def batch():
    """After a convolution, which leaves the images as the compiled code takes them."""
    norm, w = nn.BatchNorm2d(3), normal(3, 2, 3, 3) * 1e-2
    return gradients(lambda x: norm(functional.conv2d(x, w)) ** 2), normal(16, 2, 6, 6) * 0.1


def classes(n):
    labels = gg.asarray(rng.integers(0, n, 70))
    return lambda: (gg.value_and_grad(lambda x: functional.cross_entropy(x, labels)), normal(70, n))


def dropped():
    return lambda x: functional.dropout(gg.relu(x + 0.5), 0.25) * 2.0, normal(1000)


CHAIN = {  # functions that become a chain, or a row kernel
    "gelu": lambda x: gg.gelu(x, "tanh") + x,
    "slope": gradients(lambda x: gg.gelu(x, "tanh") * x),
    "exp": lambda x: gg.exp(x) * 2,
    "relu": gradients(lambda x: gg.relu(x) * 3),
    "where": lambda x: gg.where(x > 0, x, 2 * x) + 1,
    "rows": lambda x: gg.sum(gg.tanh(x) * x, axis=1),
    "softmax": lambda x: gg.softmax(x),
    "columns": lambda x: gg.sum(x, axis=0),
}


def of(name, *shape, **options):
    return lambda: (CHAIN[name], normal(*shape, **options))


def product():
    return lambda x, y: x @ y, normal(96, 100), normal(100, 80)


FAULTS = {  # what is wrong: the text, what stands in its place, and what meets it
    "a coefficient of gelu": ("A(1.59576912160573071176) + A(0.07", "A(1.59578507) + A(0.07", of("gelu", 500)),
    "a coefficient of gelu's slope": ("A(0.214064448817800758166)", "A(0.21406658946)", of("slope", 500)),
    "a coefficient of exp": ("{0.500000008129348849f", "{0.500005008129348849f", of("exp", 500)),
    "a coefficient of exp in float64": ("0.166666666666666847", "0.166668333333333", of("exp", 500, dtype="float64")),
    "the slope of relu at 0": ("return out <= 0 ? A(0) : t", "return out < 0 ? A(0) : t", of("relu", 500)),
    "a choice": ("return c ? x : y", "return c ? y : x", of("where", 500)),
    "the last element of a chain's sum": (
        "for (; i < n; i++) merge(x[i])",
        "for (; i < n - 1; i++) merge(x[i])",
        of("rows", 30, 777),
    ),
    "the last element of a row's sum": (
        "first + TILE : n;\n        A sum",
        "first + TILE : n - 1;\n        A sum",
        of("softmax", 20, 1500),
    ),
    "the last row of a sum over rows": (
        "row < first + GROUP && row < end",
        "row < first + GROUP && row < end - 1",
        of("columns", 400, 70),
    ),
    "the eps of layer norm": ("square_root(var + a.eps)", "square_root(var)", normed),
    "the eps of batch norm": ("double(var + A(a.eps))", "double(var)", batch),
    "a mean in the backward of layer norm": ("rstd * along + level)", "rstd * along)", normed),
    "a log-sum-exp, few classes": ("= lse[r] + top[r]", "= lse[r] + top[r] * 1.0001", classes(10)),
    "the gradient of a label, many classes": (
        "if (counts) grad[label] -= t",
        "if (counts) grad[label] -= t * A(1.0001)",
        classes(100),
    ),
    "the scale of dropout": ("<= last ? scale : A(0)", "<= last ? scale * A(1.0001) : A(0)", dropped),
    "the share of dropout": ("unsigned(mask.threshold - 1)", "unsigned(mask.threshold * 0.99)", dropped),
    "the scale of attention": ("depth, q, depth, 1, A(a.scale))", "depth, q, depth, 1, A(a.scale * 1.0001))", heads),
    "a key of the future": (
        "j = a.causal && first + i + 1 < seen ? first + i + 1",
        "j = a.causal && first + i + 2 < seen ? first + i + 2",
        heads,
    ),
    "the last k of attention's products": (
        "for (long long p = 0; p < k; p++)",
        "for (long long p = 0; p < k - 1; p++)",
        heads,
    ),
    "a tap of a convolution": ("for (int t = 0; t < count; t++)", "for (int t = 0; t < count - 1; t++)", images),
    "the last images of a kernel's gradient": ("i + L <= run->length; i += L)", "i + L < run->length; i += L)", images),
    "the maximum of a pool": (
        "v[k] > y[k] || v[k] != v[k] ? v[k]",
        "v[k] > y[k] || v[k] != v[k] ? v[k] * A(0.9999)",
        images,
    ),
    "Adam's second moment": (
        "s[1] = c[4] * s[1] + c[5] * (g * g);\n        if (PEAK)",
        "s[1] = c[4] * s[1] + c[5] * (g * g) * A(1.00001);\n        if (PEAK)",
        trained(lambda p: optim.Adam(p, lr=0.1)),
    ),
    "the eps of Adadelta": ("square_root(s[0] + c[4]) *", "square_root(s[0]) *", trained(lambda p: optim.Adadelta(p))),
    "the momentum of SGD": (
        "s[0] = c[2] * s[0] + c[3] * g;\n        p -= c[0] * (c[4]",
        "s[0] = c[3] * g;\n        p -= c[0] * (c[4]",
        trained(lambda p: optim.SGD(p, 0.1, momentum=0.9)),
    ),
    "the count of steps": ("a.step[k] += 1", "a.step[k] += 2", trained(lambda p: optim.SGD(p, 0.1, momentum=0.9))),
}
if compiler.enabled() and compiler.wide():
    FAULTS["the last k of a product"] = (*FAULTS["the last k of attention's products"][:2], product)


@needs_compiler
@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_is_found(seeded, fault):
    old, new, case = FAULTS[fault]
    seeded(old, new)
    f, *args = case()
    with pytest.raises(ReplayError, match="differs from its ops"):
        prove(f, *args)


@needs_compiler
@pytest.mark.parametrize(
    "fault",
    ["the eps of layer norm", "the eps of batch norm", "the scale of dropout", "the eps of Adadelta", "a choice"],
)
def test_without_a_fault_the_same_steps_are_proved(quick, fault):
    f, *args = FAULTS[fault][2]()
    runner = prove(f, *args)
    assert runner.compiled
    assert not runner.unproved


# --- every formula beside NumPy's code ------------------------------------------------------------------------------

SAMPLES = collect()


def raw(name, sample, dtype):
    """The arguments as arrays, floats in a type, with what the forward keeps for a backward."""
    found = [np.asarray(a) if isinstance(a, (np.ndarray, np.generic)) else a for a in sample.args]
    args = [a.astype(dtype) if hasattr(a, "dtype") and a.dtype.kind == "f" else a for a in found]
    if name == "softmax_xent_bwd":
        args[4] = TABLE["softmax_xent"].impls[np.ndarray](*args[1:4], **sample.attrs)[1]
    if name.endswith("norm_bwd"):
        args[3:5] = TABLE["layer_norm"].impls[np.ndarray](args[1], None, None, **sample.attrs)[1]
    if name == "attention_bwd":
        args[5:7] = TABLE["attention"].impls[np.ndarray](*args[1:5], **sample.attrs)
    return args


def compiled_form(name, args, attrs):
    """Whether compiled code may stand for a call: what jit.suits asks, sizes apart."""
    if "xent" in name:
        labels, weight = args[1:3] if name == "softmax_xent" else args[2:4]
        return labels.ndim == 1 and weight is None and not attrs["smoothing"]
    if name in ("matmul", "affine"):
        return all(a.ndim > 1 for a in args[:2])
    if name.startswith("layer_norm"):
        x, w = args[name == "layer_norm_bwd"], args[1 + (name == "layer_norm_bwd")]
        axis = tuple(range(x.ndim - len(attrs["axis"]), x.ndim))
        return tuple(attrs["axis"]) == axis and (w is None or w.ndim == len(axis))
    plain = name not in NAMES or all(a is not None and getattr(a, "dtype", np.dtype(bool)).kind in "fb" for a in args)
    return (
        plain and attrs.get("kind") != "gelu_tanh"
    )  # NumPy's is good to the digits of its argument, compiled code to all


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted({*proof.FORMULAS, *NAMES} - {BOTH, "max", "reshape"}))
def test_numpy_itself_is_within_the_bounds_and_a_small_error_is_not(name, dtype):
    checked = 0
    for sample in SAMPLES[name]:
        args = raw(name, sample, dtype)
        if not compiled_form(name, args, sample.attrs):
            continue
        with np.errstate(all="ignore"):
            made = TABLE[name].impls[np.ndarray](*args, **sample.attrs)
        got = [None if a is None else np.array(a) for a in proof.leaves(made)]
        assert proof.routine(name, got, args, sample.attrs) == (0, 0), sample
        for k, a in enumerate(got):
            if a is None:
                continue
            wrong, by = a.copy(), 1e-3 if dtype == "float32" else 1e-9
            if a.dtype == bool:
                wrong.flat[0] = not wrong.flat[0]
            elif a.size and np.abs(a[np.isfinite(a)]).max(initial=0):
                wrong.flat[np.abs(np.where(np.isfinite(a), a, 0)).argmax()] *= 1 + by
            else:
                continue
            checked += 1
            assert proof.routine(name, [*got[:k], wrong, *got[k + 1 :]], args, sample.attrs)[0] == 1, sample
    assert checked or not any(compiled_form(name, raw(name, s, dtype), s.attrs) for s in SAMPLES[name])


def test_the_loss_with_its_gradient_is_within_the_bounds():
    x, t, labels = rng.normal(size=(40, 12)) * 5, rng.normal(size=40), rng.integers(0, 12, 40)
    labels[3] = -100
    attrs = {"ignore_index": -100, "smoothing": 0.0}
    for dtype in ("float32", "float64"):
        args = [t.astype(dtype), x.astype(dtype), labels, None]
        got = list(both(np, *args, **attrs))
        assert proof.routine(BOTH, got, args, attrs) == (0, 0)
        got[2] = got[2] * (1 + 1e-4)
        assert proof.routine(BOTH, got, args, attrs)[0] > 100


# --- what a bound is -------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _quiet():
    """Divisions by zero and the like are meant."""
    with np.errstate(all="ignore"):
        yield


def ball(values, rad=0.0, dtype="float32"):
    mid = np.asarray(values, "f8")
    return proof.Ball(mid, rad if rad == 0.0 else np.broadcast_to(np.asarray(rad, "f8"), mid.shape), np.dtype(dtype))


def test_cancellation_keeps_the_error_of_the_terms():
    x = ball([1.0, 1.0], [1e-6, 1e-6])
    d = proof.elementwise("subtract", x, ball([1.0, 0.5]))
    assert d.rad[0] == pytest.approx(1e-6, rel=1e-3)
    log = proof.elementwise("log", x)
    assert log.rad[0] == pytest.approx(1e-6, rel=1e-3)


def test_a_value_near_a_decision_counts_both_ways():
    x, t = ball([0.1, 1e-8, -1e-8, -0.1], 1e-6), ball([7.0] * 4)
    assert (proof.elementwise("relu_bwd", t, x).rad >= [0, 7, 7, 0]).all()
    assert proof.elementwise("relu_bwd", t, x).rad[[0, 3]].max() == 0
    mask = proof.elementwise("greater", x, 0.0)
    assert mask.rad.tolist() == [False, True, True, False]
    assert proof.elementwise("where", mask, 3.0, t).rad.tolist() == [0, 4, 4, 0]
    same = proof.elementwise("equal", x, ball([0.2, 0.0, 0.0, -0.1]))
    assert same.rad.tolist() == [False, True, True, True]
    assert proof.judge(np.array([True, False, True, False]), mask) == (0, 2)
    assert proof.judge(np.array([False, False, True, True]), mask) == (2, 2)


def test_nothing_is_said_of_a_pole_or_of_the_brink_of_overflow():
    y = proof.elementwise("divide", ball([1.0, 1.0]), ball([1e-8, 1.0], 1e-6))
    assert y.rad[0] == np.inf
    assert y.rad[1] < 1e-5
    top = float(np.finfo("f4").max)
    big = proof.elementwise("multiply", ball([top, top, top]), ball([1.0, 2.0, 0.5]))
    assert np.isinf(big.mid).tolist() == [False, True, False]
    assert np.isinf(big.rad).tolist() == [True, False, False]
    got = np.array([np.inf, np.inf, top / 2], "f4")
    assert proof.judge(got, big) == (0, 1)
    assert proof.judge(np.array([0, top, np.inf], "f4"), big) == (2, 1)


def test_special_values_have_to_be_the_same():
    inf, nan = np.inf, np.nan
    with np.errstate(all="ignore"):
        y = proof.elementwise("log", ball([0.0, -1.0, inf, nan, 1.0]))
    assert proof.judge(np.array([-inf, nan, inf, nan, 0], "f4"), y) == (0, 0)
    assert proof.judge(np.array([inf, nan, nan, 0, 0], "f4"), y) == (3, 0)


def test_subnormal_numbers_have_the_unit_of_the_smallest_normal_one():
    tiny = np.float32(1e-45)
    x = np.array([3e-42, 1e-39], "f4")
    y = proof.elementwise("multiply", ball(x), ball([0.3, 0.3]))
    got = x * np.float32(0.3)
    assert proof.judge(got, y) == (0, 0)
    assert proof.judge(got + 4 * tiny, y) == (2, 0)


def test_half_types_are_bounded_in_their_own_units():
    """A constant that is off by 1 % of bfloat16 is more than two units."""
    bfloat16 = pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes").bfloat16
    x = rng.normal(size=4000)
    for dtype in (np.float16, bfloat16):
        y = proof.elementwise("multiply", proof.exact(x.astype(dtype)), 1.5)
        right, wrong = ((x.astype(dtype).astype("f4") * np.float32(c)).astype(dtype) for c in (1.5, 1.515))
        assert proof.judge(right, y) == (0, 0)
        assert proof.judge(wrong, y)[0] > 3000


def test_sums_are_bounded_by_the_longest_run_of_additions():
    x = np.full((3, 20000), 0.1, "f4")
    want = proof.total(proof.exact(x), (1,), keepdims=False)
    chunked = x.reshape(3, -1, 32).sum(-1).astype("f8").sum(-1).astype("f4")
    assert proof.judge(chunked, want) == (0, 0)
    assert proof.judge(chunked * np.float32(1 - 1 / 20000), want) == (3, 0)


def test_every_compiled_piece_has_a_bound():
    assert {*jit.ROWS, *jit_conv.IMAGES} <= {*proof.FORMULAS}
    assert all(TABLE[op].kind == "update" for op in jit.UPDATES)
    assert {*STATES} <= {*proof.FORMULAS}
    assert {*PRODUCTS, "add", "relu", "relu_bwd", "gelu", "gelu_bwd", "sum"} <= {*proof.FORMULAS, *NAMES}


def test_what_has_no_bound_is_listed_with_its_reason():
    assert set(proof.UNPUBLISHED) == {"gelu", "gelu_bwd"}
    assert all(reason for _, reason in proof.UNPUBLISHED.values())


# --- right code is never refused -----------------------------------------------------------------------------------

SMALL = {
    "overhead": "overhead:20", "elementwise": "elementwise:3000", "xent": "xent:70x50", "twolayer": "twolayer:9",
    "mlp-sgd": "mlp-sgd:8", "mlp-adam": "mlp-adam:8", "hvp": "hvp:4", "lenet": "lenet:16", "resnet": "resnet:1x4x6x16",
    "gpt": "gpt:1x2x32x20x3",
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize(
    "name, dtype", [*((name, "float32") for name in SMALL), ("lenet", "float64"), ("gpt", "float64")]
)
def test_workloads_are_proved(quick, name, dtype):
    workload = workloads.find(SMALL[name])
    step = PEERS["gpugrad-compiled"].load()("cpu", dtype, 2).step(workload, *workload.arrays(dtype))
    for _ in range(4):
        step()


def stepping(program):
    """The value and the gradients of a random program."""
    f = program.function()

    def step(*xs):
        xs = [x.detach().requires_grad_() for x in xs]
        y = f(gg, *xs)
        return y.detach(), *gg.gradients(y, xs, unconnected="zero")

    return step


@needs_compiler
@pytest.mark.parametrize("seed, dtype", [(3, "float32"), (19, "float64"), (43, "float32"), (51, "float64")])
def test_random_programs_are_proved(quick, seed, dtype):
    program = generate(seed)
    try:
        prove(stepping(program), *[gg.asarray(x.astype(dtype)) for x in program.inputs])
    except ReplayError as error:
        if "reads a value" not in str(error) and "selects by a mask" not in str(error):
            raise AssertionError(program.text()) from error


@needs_compiler
@pytest.mark.parametrize("seed", [19, 33])
def test_random_programs_are_proved_where_numbers_are_huge(quick, seed):
    """Arguments of sines are off by periods, powers overflow, and what is not a number has either sign."""
    program = generate(seed)
    with np.errstate(all="ignore"):
        prove(stepping(program), *[gg.asarray((x * 1e8).astype("float32")) for x in program.inputs])


def attended(*qkv):
    return functional.scaled_dot_product_attention(*qkv, is_causal=True)


LABELS = gg.asarray(rng.integers(0, 300, 8))
HARD = {  # steps, and the shapes of what they take
    "rows": (gradients(lambda x: gg.softmax(x) * gg.log_softmax(x)), (8, 300)),
    "columns": (lambda x: gg.sum(x, axis=0), (5000, 40)),
    "mean": (gradients(lambda x: gg.mean((x * 1.5) ** 2)), (100, 99)),
    "product": (lambda x, y: x @ y, (40, 1000), (1000, 50)),
    "norm": (gradients(lambda x, w, b: functional.layer_norm(x, (300,), w, b) * x), (20, 300), (300,), (300,)),
    "images": (gradients(lambda x, w: functional.conv2d(x, w) * 3), (16, 2, 8, 8), (3, 2, 3, 3)),
    "loss": (gg.value_and_grad(lambda x: functional.cross_entropy(x, LABELS)), (8, 300)),
    "attention": (gradients(attended), *[(2, 2, 40, 32)] * 3),
    "chain": (gradients(lambda x: gg.gelu(x) * gg.silu(x) + gg.relu(x) * gg.tanh(x) + gg.exp(x)), (20, 300)),
}


@needs_compiler
@pytest.mark.parametrize(
    "name, dtype", [*((name, "float32") for name in HARD), ("columns", "float64"), ("loss", "float64")]
)
def test_values_that_are_hard_to_compute_with_are_proved(name, dtype):
    """Equal ones, whose rounding adds up, huge and tiny ones, and rows of what is not finite."""
    f, *shapes = HARD[name]
    step = gg.replay(f, compiled=True)
    arrays = [[np.full(s, v) for s in shapes] for v in (1 / 3, 1e-30, 1e30)]
    special = [rng.normal(size=s) for s in shapes]
    flat = special[0].reshape(-1, special[0].shape[-1])
    flat[1, 1], flat[2, 1], flat[3], flat[4], flat[5], flat[6] = np.inf, np.nan, -np.inf, 0, 1e-40, 3e38
    with np.errstate(all="ignore"):
        for given in (*arrays, special):
            for record in step.records:
                record.verified = False  # each of these is proved
            for _ in range(1 if step.records else 3):
                step(*[gg.asarray(a.astype(dtype)) for a in given])
            assert [r.verified for r in step.records] == [True]


def test_a_replay_may_give_a_nan_of_another_sign():
    nan = np.array([1.0, np.nan, -0.0])
    assert not recorded.differ([nan], [np.copysign(nan, [1.0, -1.0, -1.0])])
    assert recorded.differ([nan], [np.array([1.0, np.nan, 0.0])])
    assert recorded.differ([nan], [np.array([np.nan, np.nan, -0.0])])
