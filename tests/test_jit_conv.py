"""Convolution, pooling and batch norm compiled for the CPU: what the ops' NumPy code gives, and where they decline."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import compiler, jit, nn, optim
from gpugrad.chain import Chain, End, Step, order_of
from gpugrad.nn import functional as F
from gpugrad.op import TABLE

pytestmark = pytest.mark.skipif(compiler.find() is None, reason="needs a C++ compiler")
IMPL = {name: op.impls[np.ndarray] for name, op in TABLE.items()}
PLAIN = ((1, 1), (0, 0), (1, 1), 1)  # stride, padding, dilation, groups
# images (N, C, H, W), kernel (O, C / groups, kh, kw), the four above
CONVOLUTIONS = [
    ((16, 1, 5, 6), (1, 1, 1, 1), *PLAIN),
    ((64, 3, 9, 8), (6, 3, 5, 5), (1, 1), (2, 2), (1, 1), 1),
    ((33, 5, 6, 7), (15, 5, 3, 2), (1, 1), (1, 0), (1, 1), 1),
    ((17, 4, 8, 9), (22, 4, 3, 3), (2, 1), (1, 2), (1, 1), 1),
    ((100, 6, 7, 7), (8, 3, 3, 3), (2, 3), (2, 1), (2, 1), 2),
    ((48, 4, 6, 6), (4, 1, 2, 3), (1, 1), (1, 1), (1, 2), 4),
    ((20, 7, 4, 5), (3, 7, 1, 1), *PLAIN),
    ((19, 2, 3, 3), (9, 2, 3, 3), (1, 1), (3, 3), (1, 1), 1),  # windows that lie outside
    ((24, 2, 40, 17), (5, 2, 3, 3), (1, 2), (1, 1), (1, 1), 1),  # more runs than one list has
]
POOLS = [  # images, kernel, stride, padding, dilation, ceil_mode
    ((64, 3, 6, 8), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((21, 2, 7, 7), (3, 2), (1, 2), (1, 1), (1, 2), False),
    ((70, 1, 5, 5), (3, 3), (2, 2), (1, 1), (1, 1), True),
]
TOLERANCE = {"float32": 4e-6, "float64": 1e-13}


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    """A cache of compiled code of our own; everything that these tests need is compiled at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUGRAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("GPUGRAD_CPU_JIT", raising=False)
        calls = [call for dtype in TOLERANCE for make in (convolutions, pools, norms) for call in make(dtype)]
        jit.compile_all([jit.lookup(*call) for call in calls])
        yield


def normal(dtype, *shape, last=False):
    """Random numbers; last: (N, C, H, W) with the batch last in memory."""
    x = np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)
    return np.ascontiguousarray(x.transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2) if last else x


def convolutions(dtype, cases=CONVOLUTIONS[:1], last=True):
    """(op, arguments, attributes) of a convolution and its adjoints."""
    for xs, ws, stride, padding, dilation, groups in cases:
        a = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        x, w = normal(dtype, *xs, last=last), normal(dtype, *ws)
        t = normal(dtype, *IMPL["conv2d"](x, w, **a).shape, last=last)
        yield "conv2d", (x, w), a
        yield "conv2d_input", (t, w), a | {"shape": xs[2:]}
        yield "conv2d_weight", (t, x), a | {"kernel": ws[2:]}


def pools(dtype, cases=POOLS[:1], last=True):
    """Of maxima, many of them tied, and their gradient."""
    for xs, kernel, stride, padding, dilation, ceil_mode in cases:
        a = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
        x = np.maximum(normal(dtype, *xs, last=last), 0)
        y = IMPL["max_pool2d"](x, **a, ceil_mode=ceil_mode)
        yield "max_pool2d", (x,), a | {"ceil_mode": ceil_mode}
        yield "max_pool2d_bwd", (normal(dtype, *y.shape, last=last), x, y), a


def norms(dtype, last=True):
    """Of channels, with and without weights."""
    shape = (18, 5, 3, 4)
    x = normal(dtype, *shape, last=last) + 3
    t = np.sin(5 * x)
    for w, b in ((None, None), (normal(dtype, 5, 1, 1), normal(dtype, 5, 1, 1) + 1)):
        a = {"axis": (0, 2, 3), "eps": 1e-5}
        statistics = IMPL["batch_norm"](x, w, b, **a)[1]
        yield "batch_norm", (x, w, b), a
        yield "group_norm_bwd", (t, x, w, *statistics), a | {"centred": True}


def agree(op, args, attrs):
    """On new results and on given ones, twice; arguments stay as they were, and the results lie as NumPy's."""
    routine, before = jit.lookup(op, args, attrs), [None if a is None else a.copy() for a in args]
    want, got = IMPL[op](*args, **attrs), routine(*args)
    assert routine.struct is not None, "NumPy did it"
    tolerance = TOLERANCE[args[0].dtype.name]
    filled = fill(got)
    for result in (routine(*args), routine(*args, out=filled), routine(*args, out=filled)):
        for a, b in zip(jit.leaves(result), jit.leaves(want), strict=True):
            assert (a.shape, a.dtype, lies(a)) == (b.shape, b.dtype, lies(b))
            scale = np.abs(b[np.isfinite(b)]).max(initial=1e-30)
            np.testing.assert_allclose(a, b, rtol=0, atol=scale * tolerance)
    assert all(a is b for a, b in zip(jit.leaves(result), jit.leaves(filled)))
    assert all(a is None or np.array_equal(a, b) for a, b in zip(args, before))
    return result


def lies(a):
    """The strides that matter."""
    return [s for s, n in zip(a.strides, a.shape) if n > 1]


def fill(out):
    """Arrays like these, all different ones, full of NaN."""
    return tuple(map(fill, out)) if isinstance(out, tuple) else np.full_like(out, np.nan)


@pytest.mark.parametrize("last", [True, False], ids=["batch last", "as given"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda c: "x".join(map(str, c[0])))
def test_convolution_and_its_adjoints(case, dtype, last):
    for op, args, attrs in convolutions(dtype, [case], last):
        agree(op, args, attrs)


@pytest.mark.parametrize("last", [True, False], ids=["batch last", "as given"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", POOLS, ids=str)
def test_pooling(case, dtype, last):
    (forward, args, attrs), (backward, given, more) = pools(dtype, [case], last)
    routine = jit.lookup(forward, args, attrs)
    np.testing.assert_array_equal(routine(*args), IMPL[forward](*args, **attrs))
    assert routine.struct is not None, "NumPy did it"
    slopes = jit.lookup(backward, given, more)(*given)
    np.testing.assert_allclose(slopes, IMPL[backward](*given, **more), rtol=1e-6, atol=1e-6)


def test_a_nan_is_the_largest_pixel_and_takes_the_gradient():
    (_, (x,), attrs), (_, (t, _, _), more) = pools("float32")
    x[3, 1, 2, 2:4] = np.nan
    x[:, 2] = -np.inf
    y = jit.lookup("max_pool2d", (x,), attrs)(x)
    np.testing.assert_array_equal(y, IMPL["max_pool2d"](x, **attrs))
    slopes = jit.lookup("max_pool2d_bwd", (t, x, y), more)(t, x, y)
    np.testing.assert_array_equal(slopes, IMPL["max_pool2d_bwd"](t, x, y, **more))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_batch_norm(dtype):
    for op, args, attrs in norms(dtype):
        agree(op, args, attrs)


def test_any_number_of_threads_gives_the_same_bits():
    calls = [*convolutions("float32", CONVOLUTIONS[1:6]), *pools("float32", POOLS), *norms("float32")]
    found = []
    try:
        for threads in (1, 2, 3):
            compiler.set_threads(threads)
            found.append([a.tobytes() for call in calls for a in jit.leaves(jit.lookup(*call)(*call[1]))])
    finally:
        compiler.set_threads(compiler.threads.count())
    assert found[0] == found[1] == found[2]


def test_long_sums_of_slopes_are_exact():
    """Ones times ones over more windows than float32 can count one by one."""
    n, side = 64, 520
    t = np.ones((1, side, side, n), "f4").transpose(3, 0, 1, 2)
    a = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "kernel": (1, 1)}
    assert jit.lookup("conv2d_weight", (t, t), a)(t, t) == n * side * side > 2**24


def test_what_is_left_to_numpy():
    x, w = normal("f4", 15, 2, 6, 6, last=True), normal("f4", 3, 2, 3, 3)
    a = dict(zip(("stride", "padding", "dilation", "groups"), PLAIN))
    assert jit.lookup("conv2d", (x, w), a) is None  # less than a vector of images
    x = normal("f4", 16, 2, 20, 20, last=True)
    assert jit.lookup("conv2d", (x.astype("f2"), w.astype("f2")), a) is None
    assert jit.lookup("conv2d", (x, normal("f4", 3, 2, 17, 17)), a) is None  # a window of too many taps
    assert jit.lookup("conv2d", (x[:, :0], w[:, :0]), a) is None
    norm = {"axis": (0, 2, 3), "eps": 1e-5}
    assert jit.lookup("batch_norm", (x, None, None), norm | {"axis": (0,)}) is None
    assert jit.lookup("group_norm_bwd", (x, x, None, None, None), norm | {"centred": True}) is None


def test_arrays_that_do_not_suit_go_to_numpy():
    """A kernel that is turned, a result that lies otherwise, channels that lie apart, two types."""
    (op, (x, w), a), *_ = convolutions("float32", CONVOLUTIONS[1:2])
    routine, want = jit.lookup(op, (x, w), a), IMPL[op](x, w, **a)
    turned = np.ascontiguousarray(w[..., ::-1])[..., ::-1]
    np.testing.assert_array_equal(routine(x, turned), want)
    assert routine.struct is None
    out = np.empty(want.shape, "f4")
    assert routine(x, w, out=out) is out
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(routine(x, w.astype("f8")), IMPL[op](x, w.astype("f8"), **a))
    for op, args, attrs in norms("float32", last=False):
        routine, want = jit.lookup(op, args, attrs), IMPL[op](*args, **attrs)
        for got, wanted in zip(jit.leaves(routine(*args)), jit.leaves(want)):
            np.testing.assert_array_equal(got, wanted)
        assert routine.struct is None


# --- whole steps ------------------------------------------------------------------------------------------------------


def lenet():
    """Convolutions with biases and pooling, as `gpugrad bench` has them."""
    net = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 4, 10),
    )  # fmt: skip
    return net, (32, 1, 16, 16)


class Residual(nn.Module):
    """Two convolutions with batch norm and a skip; the mean over the pixels, whose gradient is broadcast."""

    def __init__(self):
        self.stem, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 10)
        self.first, self.second = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.before, self.after = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.stem(x).relu()
        inner = self.before(self.first(x)).relu()
        return self.out((x + self.after(self.second(inner))).relu().mean((2, 3)))


@pytest.mark.parametrize("make", [lenet, lambda: (Residual(), (32, 3, 12, 12))], ids=["lenet", "residual"])
def test_training_steps_replayed_and_compiled(make):
    """Replay gives the bits of the eager steps. Compiled, no convolution, pooling, norm or sum is left to NumPy."""
    losses, sources = [], []
    for mode in ("eager", "replay", "compiled"):
        gg.random.seed(0)
        net, shape = make()
        optimizer = optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        x, y = gg.asarray(normal("f4", *shape)), gg.asarray(np.arange(shape[0]) % 10)

        def step(net=net, optimizer=optimizer, x=x, y=y):
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        run = step if mode == "eager" else gg.replay(step, compiled=mode == "compiled")
        losses.append([float(run().numpy()) for _ in range(6)])
        if mode == "compiled":
            host = next(iter(run.records)).runner
            heavy = [
                n for n, c in enumerate(host.program.calls) if "conv2d" in c.op or "pool" in c.op or "norm" in c.op
            ]
            assert heavy
            assert set(heavy) <= set(host.routines)
            assert not [host.program.calls[n] for n in heavy if host.routines[n].struct is None], "NumPy did it"
            sources = [str(c) for c in host.program.chains.values() if c.order == (1, 2, 3, 0)]
    assert losses[0] == losses[1]
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-4)
    assert sources, "between convolutions, elementwise runs become chains though the batch lies last"


@pytest.mark.parametrize("axes", [1, 3, 4])
def test_a_chain_in_the_order_of_memory(axes):
    """Arrays with the batch last, one as given and one that is broadcast; sums over the last axes in memory."""
    x, y, b = normal("f4", 17, 5, 6, 7, last=True), normal("f4", 17, 5, 6, 7), normal("f4", 5, 1, 1)
    steps = (Step("add", (0, 1)), Step("multiply", (3, 2)), Step("relu", (4,)))
    chain = Chain(3, steps, (5,), (End("sum", 5, axes),), (1, 2, 3, 0))
    want = np.maximum((x + y) * b, 0)
    total = want.transpose(1, 2, 3, 0).sum(tuple(range(4 - axes, 4)), dtype="f8")
    for run in (chain.numpy, chain.compile_cpu([x.dtype] * 3)):
        outs = [np.full_like(x, np.nan), np.full(total.shape, np.nan, "f4")]
        run(outs, [x, y, b])
        np.testing.assert_array_equal(outs[0], want)
        np.testing.assert_allclose(outs[1], total, rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="contiguous outputs"):
        run([np.empty(x.shape, "f4"), outs[1]], [x, y, b])


def test_the_order_of_an_array():
    x = np.empty((3, 1, 4, 5), "f4")
    for a, want in (
        (x, ()), (x.transpose(2, 3, 1, 0), (2, 3, 0, 1)), (x[:, 0].T, (2, 1, 0)), (x[0, 0], ()), (x[::2], None),
        (x[:0], None), (x[..., ::-1], None), (np.broadcast_to(x, (2, 3, 1, 4, 5)), None), (np.empty(()), ()),
    ):  # fmt: skip
        assert order_of(a.shape, a.strides, a.itemsize) == want, (a.shape, a.strides)


def test_an_update_is_prepared_once():
    """Called with the same arrays, an optimiser's step is one foreign call."""
    params, state, grads = ([normal("f4", 30, 4), normal("f4", 7)] for _ in range(3))
    args = (params, state, np.zeros(2), grads, np.asarray(0.1), None)
    attrs = {"momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}
    routine = jit.lookup("sgd", args, attrs)
    packed, pack = [], routine.pack
    routine.pack = lambda *given: packed.append(given) or pack(*given)
    for _ in range(3):
        routine(*args)
    assert len(packed) == 1
    routine(params, state, np.zeros(2), [g.copy() for g in grads], args[4], None)
    assert len(packed) == 2
