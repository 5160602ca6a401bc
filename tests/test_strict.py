"""Strict shapes: what is refused, what is not, in every transformation, and that nothing of it stays behind."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import losses, nn, strict
from gpugrad.backends import Impls
from gpugrad.errors import ShapeError
from gpugrad.op import TABLE

from .cuda.conftest import cuda, fake_cupy, registered

M, V = gg.tensor(np.arange(6.0).reshape(2, 3)), gg.tensor(np.arange(3.0) + 1)
REFUSED = {
    "operator": lambda: M + V,
    "reflected": lambda: V - M,
    "array": lambda: np.ones(3) * M,
    "comparison": lambda: M < V,
    "function": lambda: gg.maximum(M, V),
    "power": lambda: M**V,
    "where": lambda: gg.where(M > 0, M, V),
    "condition": lambda: gg.where(V > 0, M, 0.0),
    "clip": lambda: gg.clip(M, V),
    "method": lambda: M.logaddexp(V),
    "bits": lambda: gg.astype(M, "int64") & gg.astype(V, "int64"),
    "NumPy": lambda: np.arctan2(M, V),
    "NumPy's where": lambda: np.where(M > 0, M, V),
    "outer": lambda: M[:, None, :] * M,
    "augmented": lambda: exec("a = M; a += V", {"M": M, "V": V}),
    "grad": lambda: gg.grad(lambda x: (x * V).sum())(M),
    "jvp": lambda: gg.jvp(lambda x: x * V, (M,), (M,)),
    "vmap": lambda: gg.vmap(lambda x: x * M)(M),
    "hessian": lambda: gg.hessian(lambda x: (x * x * M).sum())(V),
    "checkpoint": lambda: gg.checkpoint(lambda x: x * V)(M),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arrays_of_different_ranks_are_refused_at_the_users_line(name):
    REFUSED[name]()
    with gg.strict_shapes(), pytest.raises(ShapeError) as caught:
        REFUSED[name]()
    text = str(caught.value)
    assert "no implicit broadcasting to more axes" in text
    if name not in ("NumPy's where", "augmented"):
        assert f"{__file__}:{REFUSED[name].__code__.co_firstlineno}" in text
    REFUSED[name]()


def test_every_step_is_watched():
    """The ops without a derivative that broadcast two arrays are those that the module lists."""
    broadcast = gg.bitwise_and.__code__
    assert {n for n, op in TABLE.items() if op.kind == "nondiff" and op.call.__code__ is broadcast} == strict.STEPS


def test_the_message_has_both_shapes():
    with gg.strict_shapes(), pytest.raises(ShapeError) as caught:
        M + V
    assert str(caught.value).startswith(
        "[add] (float64[2, 3], float64[3]): 1 and 2 axes; strict shapes allow no implicit broadcasting to more axes; "
        "use x[None], expand_dims or broadcast_to"
    )


def differentiated(f, *args):
    """Value, gradients, tangent and curvature of f, all of which have their own broadcasting inside."""
    leaves = [gg.tensor(a, requires_grad=True) for a in args]
    y = f(*leaves)
    y.sum().backward()
    twice = gg.hvp(lambda *xs: f(*xs).sum(), args, args)
    return [y, *(t.grad for t in leaves), *gg.jvp(f, args, args), *twice]


ALLOWED = {
    "numbers": lambda x: (2.0 * x + np.float64(1.0)) ** 2,
    "0-d": lambda x: x * gg.tensor(2.0) + x.sum() + np.array(3.0),
    "axes of length 1": lambda x: x * x[:1] + x[:, :1],
    "asked for": lambda x: x * x[0][None] + gg.broadcast_to(x[0], x.shape) + gg.expand_dims(x[:, 0], 1),
    "reductions": lambda x: gg.var(x) + gg.norm(x, axis=1).sum() + gg.max(x) + gg.logsumexp(x, axis=0).sum(),
    "softmax": lambda x: gg.softmax(x) * gg.log_softmax(x),
    "products": lambda x: x @ gg.ones((3, 3), dtype=gg.float64) + gg.einsum("ij,kj->ik", x, x) @ x,
    "indexing": lambda x: x.at[0].set(x[1]) + gg.concat([x[1:], x[:1]]) + gg.take(x, gg.tensor([1, 0]), axis=0),
    "linear algebra": lambda x: gg.linalg.inv(x @ x.T + gg.eye(2, dtype=gg.float64)) @ x,
    "layers": lambda x: nn.functional.layer_norm(x, (3,), x[0], x[1]) + nn.functional.linear(x, x.T @ x, x[0]),
    "bilinear": lambda x: nn.functional.bilinear(x, x, gg.ones((3, 3, 3), dtype=gg.float64), x[0]),
    "losses": lambda x: losses.huber(x, x * 0.5) + losses.categorical_cross_entropy_with_logits(x, gg.softmax(x)),
    "assignment": lambda x: filled(x),
    "random": lambda x: x * gg.random.Generator(0).uniform((2, 3), low=0.5, high=1.5, dtype="float64"),
    "convolution": lambda x: nn.functional.conv2d(x[None, None], gg.ones((1, 1, 2, 2), dtype="float64"), x[0, :1]),
}


def filled(x):
    y = gg.zeros((3, 2, 3), dtype=gg.float64)
    y[1:] = x
    y[0] = x[0]
    return y


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_meant_or_done_inside_goes_through(name):
    """Derivatives as well, to the bit."""
    want = differentiated(ALLOWED[name], M)
    with gg.strict_shapes():
        got = differentiated(ALLOWED[name], M)
    for g, w in zip(got, want):
        np.testing.assert_array_equal(g.numpy(), w.numpy())


def test_modules_and_optimisers_train():
    gg.random.seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.GELU(), nn.Flatten(), nn.Linear(32, 8), nn.Dropout(0.2),
        nn.LayerNorm(8), nn.Linear(8, 3),
    )  # fmt: skip
    optimizer = gg.optim.AdamW(model.parameters(), lr=0.01)
    x, y = gg.random.normal((5, 1, 4, 4)), gg.tensor([0, 1, 2, 0, 1])
    with gg.strict_shapes():
        nn.functional.cross_entropy(model(x), y, label_smoothing=0.1).backward()
        gg.optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        gg.vmap(gg.grad(lambda w, x: gg.tanh(x @ w).sum()), (None, 0))(V, M[:, None])


@pytest.mark.parametrize("name", losses.TABLE)
def test_losses_are_always_strict(name):
    """A column beside a vector is the classic: it would become a matrix."""
    kinds = [gg.ones((4, 1)), gg.ones(4), gg.ones((1, 4, 1)), gg.zeros(4, dtype=gg.int64), gg.zeros((), dtype="int64")]
    for prediction in kinds[:3]:
        for target in kinds:
            labels = target.dtype.kind == "i"
            if prediction.shape != target.shape and (not labels or prediction.shape[:-1] != target.shape):
                with pytest.raises((ShapeError, gg.errors.DTypeError)):
                    losses.TABLE[name](prediction, target)


def implementations():
    return {(name, cls): run for name, op in TABLE.items() for cls, run in op.impls.items()}


def test_the_global_switch_and_its_exceptions():
    gg.ones(2) + 1.0
    before = implementations()
    gg.set_strict_shapes(True)
    try:
        gg.set_strict_shapes(True)  # twice is once
        for _ in range(2):
            with pytest.raises(ShapeError):
                M * V
            with gg.strict_shapes(False):
                assert (M * V).shape == (2, 3)
                with gg.strict_shapes(), pytest.raises(ShapeError):
                    M * V
                assert (M * V).shape == (2, 3)
        seen = []

        def other():
            with pytest.raises(ShapeError):
                M * V
            seen.append(True)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert seen
    finally:
        gg.set_strict_shapes(False)
    assert (M * V).shape == (2, 3)
    assert Impls.layers == []
    assert implementations().items() >= before.items()


def test_the_block_is_the_threads_and_a_decorator():
    shapes = []
    with gg.strict_shapes():
        thread = threading.Thread(target=lambda: shapes.append((M * V).shape))
        thread.start()
        thread.join()
    assert shapes == [(2, 3)]

    @gg.strict_shapes()
    def f():
        return M * V

    with pytest.raises(ShapeError):
        f()
    with pytest.raises(ZeroDivisionError), gg.strict_shapes():
        1 / 0  # noqa: B018
    assert (M * V).shape == (2, 3)


def test_arrays_of_a_device_that_comes_later():
    with gg.strict_shapes(), registered(cuda.load(fake_cupy)):
        m, v = M.to("cuda"), V.to("cuda")
        assert (m * 2.0 + m).device == "cuda:0"
        with pytest.raises(ShapeError, match="2 axes"):
            m * v


def test_blocks_that_overlap_close_in_any_order():
    before = implementations()
    profile, strict = gg.profile(), gg.strict_shapes()
    seen = profile.__enter__()
    strict.__enter__()
    with pytest.raises(ShapeError):
        M * V
    profile.__exit__(None, None, None)
    calls = sum(r.calls for r in seen.rows)
    with pytest.raises(ShapeError):
        M * V
    strict.__exit__(None, None, None)
    assert (M * V).shape == (2, 3)
    assert sum(r.calls for r in seen.rows) == calls
    assert implementations().items() >= before.items()
