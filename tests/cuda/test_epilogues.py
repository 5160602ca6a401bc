"""Replayed programs in which products take along what finishes them: cuBLASLt's epilogues, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import graph, nn, optim
from gpugrad.epilogues import Product, join
from gpugrad.errors import ReplayError
from gpugrad.nn import functional as F
from gpugrad.program import dead_code
from gpugrad.testing import fake_cublaslt
from gpugrad.testing.emulator import compiler

pytestmark = [pytest.mark.skipif(compiler() is None, reason="no C++ compiler")]
CALLS = 6


def perceptron(act, *after):
    return nn.Sequential(
        nn.Linear(12, 24), act(), *after, nn.Linear(24, 16), act(), nn.Linear(16, 5)
    )  # fmt: skip


def tanh_gelu():
    return nn.GELU("tanh")


def train(make, wrap, dtype="float32", shape=(16, 12)):
    """(what every step leaves, the step)."""
    gg.random.seed(3)
    model = make().to(device="cuda", dtype=dtype)
    opt = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(x, y):
        opt.zero_grad()
        loss = F.cross_entropy(gg.reshape(model(x), (-1, 5)), gg.reshape(y, (-1,)))
        loss.backward()
        opt.step()
        return loss

    step, seen = wrap(step), []
    for i in range(CALLS):
        rng = np.random.default_rng(i)
        x, y = rng.normal(size=shape).astype(dtype), rng.integers(0, 5, shape[:-1])
        loss = step(gg.asarray(x).to("cuda"), gg.asarray(y).to("cuda"))
        seen.append([t.numpy(copy=True) for t in (loss, *model.parameters(), *(p.grad for p in model.parameters()))])
    return seen, step


def compiled(f):
    return gg.replay(f, compiled=True)


def agree(got, want, tolerance):
    for a, b in zip(got, want):
        for x, y in zip(a, b):
            np.testing.assert_allclose(x.astype("f8"), y.astype("f8"), rtol=0, atol=tolerance * max(1, np.abs(y).max()))


def names(step):
    """The joined calls, without their numbers, in order."""
    program = step.fused
    return [c.op.rstrip("0123456789") for c in program.calls if isinstance(program.chains.get(c.op), Product)]


def launches(step):
    runner = step.records[-1].runner
    assert runner.reason == ""
    return len(runner.graph.graph.work)


@pytest.mark.parametrize("act", [nn.ReLU, tanh_gelu], ids=["relu", "gelu"])
def test_a_perceptron_takes_fewer_launches(double, act):
    make = lambda: perceptron(act)
    want, plain = train(make, gg.replay)
    got, step = train(make, compiled)
    agree(got, want, 2e-6)
    kind = "relu" if act is nn.ReLU else "gelu"
    back = f"matmul_{kind}_bwd_sum"
    assert names(step) == [f"affine_{kind}"] * 2 + [back, "matmul_sum", back]
    # two activations, two slopes, three sums for the biases; and the mean of the loss with its gradient is a chain
    assert (launches(plain), launches(step)) == (25, 25 - 2 - 2 - 3 - 1)
    assert [p.reason for p in double.gemm.paths() if p.reason] == []
    assert {p.problem.epilogue for p in double.gemm.paths() if p.problem.epilogue & ~4} == (
        {134, 152, 512} if kind == "relu" else {164, 208, 512}
    )
    listing = str(step.fused)
    assert f"= {back}2(" in listing
    assert f"{back}2:\n    matmul, {kind}_bwd, sum: d{kind}_bgrad" in listing


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types(double, dtype):
    """The double, as the library, has no epilogues in float64: these products stay as they are."""
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes").bfloat16
    make = lambda: perceptron(tanh_gelu, nn.Dropout(0.25))
    want, _ = train(make, gg.replay, dtype)
    got, step = train(make, compiled, dtype)
    agree(got, want, {"float64": 1e-12, "float16": 2e-3}.get(np.dtype(dtype).name, 2e-2))
    assert launches(step)
    assert bool(names(step)) is (dtype != "float64")


def test_a_dropout_between_leaves_the_backward_product_alone(double):
    make = lambda: perceptron(nn.ReLU, nn.Dropout(0.25))
    want, _ = train(make, gg.replay)
    got, step = train(make, compiled)
    agree(got, want, 2e-6)
    assert names(step) == ["affine_relu"] * 2 + ["matmul_relu_bwd_sum", "matmul_sum", "matmul_sum"]
    assert {p.problem.epilogue for p in double.gemm.paths()} >= {6, 134}  # the mask of the one that is asked for it


def test_stacks_of_rows(double):
    make = lambda: perceptron(nn.ReLU)
    want, _ = train(make, gg.replay, shape=(4, 3, 12))
    got, step = train(make, compiled, shape=(4, 3, 12))
    agree(got, want, 2e-6)
    back = "matmul_relu_bwd_sum"
    assert names(step) == ["affine_relu"] * 2 + [back, "matmul_sum", back]


# --- patterns -------------------------------------------------------------------------------------------------------


def arrays(*shapes, dtype="float32"):
    rng = np.random.default_rng(7)
    return [rng.normal(size=s).astype(dtype) for s in shapes]


def replayed(f, *given):
    """(names of the joined calls, epilogues) of f, compiled and replayed; it gives what it gives eagerly."""
    step = compiled(f)
    on_device = [gg.asarray(a).to("cuda") for a in given]
    want = f(*[gg.asarray(a).to("cuda") for a in given])
    for _ in range(4):
        got = step(*on_device)
        for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (got, want))):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=2e-6, atol=2e-6)
    assert step.records[-1].runner.reason == ""
    return names(step)


def two_layers(x, w, b, v, c):
    """The network of the lecture: products with a bias added to them."""
    h = gg.relu(x @ w + b)
    return gg.sum((h @ v + c) ** 2)


def test_products_whose_bias_is_added(double):
    gradients = gg.grad(two_layers, argnums=(1, 2, 3, 4))
    found = replayed(gradients, *arrays((6, 7), (7, 10), (10,), (10, 3), (3,)))
    assert found == ["matmul_add_relu", "matmul_add", "matmul_sum", "matmul_relu_bwd_sum"]
    assert {p.problem.epilogue for p in double.gemm.paths() if p.problem.epilogue} == {4, 134, 152, 256}


ALONE = {
    "bias": (lambda x, w, b: x @ w + b, ["matmul_add"]), "left": (lambda x, w, b: b + x @ w, ["matmul_add"]),
    "relu": (lambda x, w, b: gg.relu(x @ w), ["matmul_relu"]),
    "both": (lambda x, w, b: gg.relu(x @ w + b), ["matmul_add_relu"]),
    "gelu": (lambda x, w, b: gg.gelu(x @ w + b, "tanh"), ["matmul_add_gelu"]),
    "input kept": (lambda x, w, b: (z := x @ w + b, gg.gelu(z, "tanh")), ["matmul_add_gelu"]),
    "affine": (lambda x, w, b: gg.gelu(F.linear(x, w.T, b), "tanh"), ["affine_gelu"]),
    "exact gelu": (lambda x, w, b: gg.gelu(x @ w + b), ["matmul_add"]),
    "used twice": (lambda x, w, b: (z := x @ w) * gg.relu(z), []),
    "returned": (lambda x, w, b: (z := x @ w, gg.relu(z)), []),
    "bias of rows": (lambda x, w, b: x @ w + x[:, :1], []),
    "square": (lambda x, w, b: x @ w + (x @ w) * 2, []),
    "residual": (lambda x, w, b: x @ w + x[:, :1] * b, ["matmul_add"]),
    "residual and bias": (lambda x, w, b: gg.relu(x[:, :1] * b + (x @ w + b)), ["matmul_add_add_relu"]),
    "two residuals": (lambda x, w, b: (r := x[:, :1] * b) + (x @ w + gg.exp(r)), ["matmul_add"]),
    "two biases": (lambda x, w, b: x @ w + b + gg.exp(b), ["matmul_add"]),
    "sum of rows": (lambda x, w, b: (x.T @ gg.exp(x), gg.sum(x, axis=0, keepdims=True)), ["matmul_sum"]),
    "sum of a later view": (
        lambda x, w, b: (x.T @ gg.exp(x), gg.sum(gg.reshape(x, (2, 3, 7)), axis=(0, 1), keepdims=True)), ["matmul_sum"]
    ),
    "sum that the product needs": (lambda x, w, b: (s := gg.sum(x, axis=0), x.T @ (gg.exp(x) * s)), []),
    "sum before the product": (lambda x, w, b: (gg.sum(x, axis=0), x.T @ gg.exp(x)), ["matmul_sum"]),
    "sum of other rows": (lambda x, w, b: (x.T @ gg.exp(x), gg.sum(gg.reshape(x, (7, 6)), axis=0)), []),
    "two products": (lambda x, w, b: x @ w + gg.exp(x) @ w, ["matmul_add"]),
    "into itself": (lambda x, w, b: (r := gg.exp(x @ w), r @ w[:7].T @ w + r), ["matmul_add"]),
    "vector": (lambda x, w, b: gg.relu(x @ w[:, 0]), []),
    "stack": (lambda x, w, b: gg.relu(gg.stack([x, x]) @ gg.stack([w, w])), []),
    "wide bias": (lambda x, w, b: x @ w + b.astype("float64"), []),
}  # fmt: skip


@pytest.mark.parametrize("case", ALONE)
def test_what_is_joined_and_what_is_not(double, case):
    f, wanted = ALONE[case]
    assert replayed(f, *arrays((6, 7), (7, 8), (8,))) == wanted


@pytest.mark.parametrize("act, back", [(gg.relu, "relu_bwd"), (lambda z: gg.gelu(z, "tanh"), "gelu_bwd")])
def test_a_gradient_with_two_parts_takes_the_slope_too(double, act, back):
    """What comes by the residual is added within the product, before the slope; the sum of its rows goes along."""

    def loss(x, w, b):
        h = act(x @ w + b)
        return gg.sum(gg.tanh(h @ w) * h + h)

    found = replayed(gg.grad(loss, argnums=(1, 2)), *arrays((6, 8), (8, 8), (8,)))
    assert f"matmul_add_{back}_sum" in found


def test_rows_that_fill_no_unit_keep_their_gelu_apart_where_its_input_is_needed(double):
    def loss(x, w):
        return gg.sum(gg.gelu(x @ w, "tanh") ** 2)

    assert replayed(gg.grad(loss, argnums=1), *arrays((6, 7), (7, 9))) == []
    assert replayed(gg.grad(loss, argnums=1), *arrays((6, 7), (7, 16))) == ["matmul_gelu"]


@pytest.mark.parametrize(
    "changed, joined", [("", True), ("b", True), ("w", True), ("wb", False)], ids=["neither", "bias", "weight", "both"]
)
def test_what_is_written_between_a_product_and_its_bias(double, changed, joined):
    """The joined call stands where the product was, or the bias was added, whichever sees the right values."""

    def f(x, w, b):
        with gg.no_grad():
            z = x @ w
            for name, a in (("w", w), ("b", b)):
                if name in changed:
                    a[...] = a * 0 + 3.0
            return gg.relu(z + b)

    x, w, b = arrays((6, 7), (7, 8), (8,))
    step = compiled(f)
    for _ in range(4):
        got = step(*[gg.asarray(a).to("cuda") for a in (x, w, b)])
        np.testing.assert_allclose(
            got.numpy(), np.maximum(x @ w + (3 if "b" in changed else b), 0), rtol=1e-5, atol=1e-5
        )
    assert step.records[-1].runner.reason == ""
    assert names(step) == (["matmul_add_relu"] if joined else [])


def test_a_product_does_not_move_past_what_is_written(double):
    """The sum comes first, and stays apart: what it would be joined to reads values that are changed in between."""

    def f(x, w):
        with gg.no_grad():
            total = gg.sum(x, axis=0)
            w[...] = w * 0 + total[:1]
            return total * 2, x.T @ gg.exp(x * w)

    x, w = arrays((6, 7), (7,))
    step = compiled(f)
    for _ in range(4):
        total, product = step(gg.asarray(x).to("cuda"), gg.asarray(w).to("cuda"))
        np.testing.assert_allclose(total.numpy(), 2 * x.sum(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(product.numpy(), x.T @ np.exp(x * x.sum(0)[0]), rtol=1e-4)
    assert step.records[-1].runner.reason == ""
    assert names(step) == []


# --- what the library declines --------------------------------------------------------------------------------------


def program_of(f, *given):
    step = gg.replay(f)
    for _ in range(2):
        step(*[gg.asarray(a).to("cuda") for a in given])
    return step.program


def kinds(program):
    return [p.epilogue for c in program.calls if isinstance(p := program.chains.get(c.op), Product)]


def test_a_mask_that_no_product_reads_is_not_made(double):
    program = program_of(gg.grad(two_layers, argnums=(1, 2, 3, 4)), *arrays((6, 7), (7, 10), (10,), (10, 3), (3,)))
    assert kinds(join(program, lambda p, _: True)) == ["relu_aux", None, "bgrad_b", "drelu_bgrad"]
    assert kinds(join(program, lambda p, _: "drelu" not in str(p.epilogue))) == ["relu", None, "bgrad_b", "bgrad_b"]
    assert kinds(join(program, lambda p, _: "sum" not in str(p).split(":")[0])) == ["relu_aux", None, "drelu"]
    assert kinds(join(program, lambda p, _: "aux" not in str(p.epilogue))) == ["relu", None, "bgrad_b", "bgrad_b"]
    assert kinds(join(program, lambda p, _: p.epilogue is None)) == [None, None]
    alone = join(program, lambda p, _: False)
    assert str(alone) == str(dead_code(program))


def test_an_epilogue_that_is_turned_down_leaves_the_ops(double, monkeypatch):
    """A library that knows no bit masks: as before, in product and kernel."""
    real = fake_cublaslt.Library.judge
    monkeypatch.setattr(
        fake_cublaslt.Library, "judge", lambda self, desc, *r: 15 if desc.epilogue & 128 else real(self, desc, *r)
    )
    want, _ = train(lambda: perceptron(nn.ReLU), gg.replay)
    got, step = train(lambda: perceptron(nn.ReLU), compiled)
    agree(got, want, 2e-6)
    assert names(step) == ["affine_relu"] * 2 + ["matmul_sum"] * 3


def test_an_epilogue_that_computes_something_else_is_found(double, monkeypatch):
    monkeypatch.setattr(fake_cublaslt, "gelu", lambda x: (x * (x > 0), (x > 0).astype(x.dtype)))
    with pytest.raises(ReplayError, match=r"affine_gelu0.*differs from its ops"):
        train(lambda: perceptron(tanh_gelu), compiled)


def test_how_a_mask_lies_is_the_librarys_affair(double, monkeypatch):
    """Nothing but the library reads its bits, also where joined calls are checked beside their ops."""
    monkeypatch.setattr(fake_cublaslt, "BITS", "big")
    want, _ = train(lambda: perceptron(nn.ReLU), gg.replay)
    got, step = train(lambda: perceptron(nn.ReLU), compiled)
    agree(got, want, 2e-6)
    assert "matmul_relu_bwd_sum" in names(step)


def test_a_mask_of_other_elements_is_found(double, monkeypatch):
    """A library whose slopes take no notice of its bits."""
    real = np.unpackbits
    monkeypatch.setattr(np, "unpackbits", lambda *a, **k: np.ones_like(real(*a, **k)))
    with pytest.raises(ReplayError, match=r"matmul_relu_bwd_sum\d.*differs from its ops"):
        train(lambda: perceptron(nn.ReLU), compiled)


# --- random networks ------------------------------------------------------------------------------------------------

ACTIVATIONS = {
    "relu": gg.relu, "gelu": lambda z: gg.gelu(z, "tanh"), "exact": gg.gelu, "tanh": gg.tanh, "none": lambda z: z,
}  # fmt: skip
LAYERS = {
    "linear": F.linear, "bias": lambda h, w, b: h @ w + b, "left": lambda h, w, b: b + h @ w,
    "bare": lambda h, w, _b: h @ w,
}  # fmt: skip


def network(seed):
    """(a training step of layers, residuals and activations drawn by lot, its leaves, its input)."""
    rng = np.random.default_rng(seed)
    width, depth = int(rng.choice([5, 8, 16])), int(rng.integers(1, 5))
    layers = [
        (rng.choice(list(LAYERS)), rng.choice(list(ACTIVATIONS)), rng.random() < 0.4, rng.random() < 0.5)
        for _ in range(depth)
    ]
    leaves = [
        tuple(gg.tensor(rng.normal(size=s, scale=0.3).astype("float32"), device="cuda", requires_grad=True) for s in
              ((width, width), width))
        for _ in range(depth - 1)
    ]  # fmt: skip
    frozen = [gg.asarray(a).to("cuda") for a in arrays((width, width), (width,))]
    used, beside = [frozen, *leaves] if depth > 1 else [frozen], rng.random() < 0.3
    opt = optim.SGD([t for pair in leaves for t in pair], lr=0.05) if leaves else None

    def step(x):
        h, first = x, None
        for (kind, act, residual, left), (w, b) in zip(layers, used):
            z = LAYERS[kind](h, w, b)
            z = (h + z if left else z + h) if residual else z
            first, h = z if first is None else first, ACTIVATIONS[act](z)
        loss = gg.mean(h * h) + (gg.sum(first) * 0.01 if beside else 0)
        if opt is not None:
            opt.zero_grad()
            loss.backward()
            opt.step()
        return loss.detach(), h.detach()

    return step, [t for pair in leaves for t in pair], (2, 3, width) if rng.random() < 0.4 else (6, width)


def test_random_networks(double, monkeypatch):
    monkeypatch.setattr(graph, "launchable", lambda *_: False)  # chains have tests of their own
    seen = set()
    for seed in range(40):
        (eager, leaves, shape), (replayed_, others, _) = network(seed), network(seed)
        step = compiled(replayed_)
        for i in range(4):
            (x,) = arrays(shape)
            x = gg.asarray(x + np.float32(i)).to("cuda")
            got, want = [*step(x), *others], [*eager(x), *leaves]
            got += [t.grad for t in others if t.grad is not None]
            want += [t.grad for t in leaves if t.grad is not None]
            assert len(got) == len(want)
            agree([[t.numpy() for t in got]], [[t.numpy() for t in want]], 2e-5)
        assert step.records[-1].runner.reason == ""
        seen.update(names(step))
    assert len(seen) > 12, seen
