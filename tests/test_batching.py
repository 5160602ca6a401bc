"""vmap: every op against a loop over the examples, gradients per example, composition, clear refusals."""

from __future__ import annotations

import functools
import math
import time

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.batch_rules import RULES
from gpugrad.errors import GraphError, RangeError, ShapeError
from gpugrad.op import TABLE
from gpugrad.tensor import Tensor

from .ops.test_table import CASES, SMOOTH, tensors, varied

N = 3
CALLS = [p for p in CASES if TABLE[p.values[0]].kind != "update"]
# A draw takes a counter, which is not batched.
MAPPED = [p for p in CALLS if not p.values[0].startswith("random_") and p.values[0] != "snapshot"]


def t64(value):
    return gg.tensor(value, dtype=gg.float64)


def outputs(op, sample, args):
    out = op.call(*args, **sample.attrs)
    return out if isinstance(out, tuple) else (out,)


def stacked(sample, place, seed):
    """The argument at `place` for N examples: floats scaled, integers and booleans reversed along their first axis."""
    x = np.asarray(sample.args[place])
    rng = np.random.default_rng(seed)
    other = [x, x[::-1] if x.ndim else x, x]
    return Tensor(np.stack([x * s for s in rng.uniform(0.7, 1.0, N)] if x.dtype.kind == "f" else other))


def close(got, want):
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-9, atol=1e-10)


def compare(op, sample, places):
    """vmap over these arguments, the others shared, against one call for each example."""
    fixed = tensors(sample)
    args = [stacked(sample, i, 7 + i) if i in places else a for i, a in enumerate(fixed)]
    axes = tuple(0 if i in places else None for i in range(len(args)))
    loop = [outputs(op, sample, [a[k] if i in places else a for i, a in enumerate(args)]) for k in range(N)]
    if any(len({o.shape for o in rows}) > 1 for rows in zip(*loop)):
        with pytest.raises(ShapeError, match="cannot stack"):
            gg.vmap(lambda *xs: outputs(op, sample, xs), axes)(*args)
        return
    got = gg.vmap(lambda *xs: outputs(op, sample, xs), axes)(*args)
    for g, *rows in zip(got, *loop):
        close(g, gg.stack(rows))


@pytest.mark.parametrize("name, sample", MAPPED)
def test_every_op_is_its_loop(name, sample):
    """All arguments batched, then each alone."""
    op = TABLE[name]
    places = [i for i, a in enumerate(sample.args) if a is not None and not (name == "dropout" and i == 1)]
    with np.errstate(all="ignore"):
        compare(op, sample, places)
        for i in places if len(places) > 1 else ():
            compare(op, sample, [i])


@pytest.mark.parametrize("name, sample", [p for p in SMOOTH if p.values[0] in RULES or p.values[0] == "multiply"])
def test_gradient_inside_and_outside_is_the_loop(name, sample):
    """vmap of a gradient, and the gradient of a sum over vmap, with one argument shared where there are several."""
    op = TABLE[name]
    where, fixed = varied(op, sample), tensors(sample)
    own = where[:1]
    batch = stacked(sample, own[0], 3)
    us = [t64(np.random.default_rng(8).normal(size=y.shape)) for y in sample.chosen(outputs(op, sample, fixed))]

    def f(*moved):
        args = list(fixed)
        for i, x in zip(where, moved):
            args[i] = x
        return sum((u * y).sum() for u, y in zip(us, sample.chosen(outputs(op, sample, args))))

    shared = [fixed[i] for i in where[1:]]
    every = tuple(range(len(where)))
    axes = (0, *(None for _ in shared))
    with np.errstate(all="ignore"):
        loop = [gg.grad(f, every)(batch[k], *shared) for k in range(N)]
        inside = gg.vmap(gg.grad(f, every), axes)(batch, *shared)
        outside = gg.grad(lambda x, *s: gg.vmap(f, axes)(x, *s).sum(), every)(batch, *shared)
    for g, *rows in zip(inside, *loop):
        close(g, gg.stack(rows))
    close(outside[0], gg.stack([g[0] for g in loop]))
    for i in every[1:]:
        close(outside[i], functools.reduce(lambda a, b: a + b, [g[i] for g in loop]))


def mlp(width, dtype="float64"):
    rng = np.random.default_rng(0)
    make = lambda *shape: gg.tensor((rng.normal(size=shape) * 0.1).astype(dtype))
    params = {"w1": make(100, width), "b1": make(100), "w2": make(10, 100), "b2": make(10)}
    x, y = make(256, width), gg.tensor(rng.integers(0, 10, 256))

    def loss(p, x, y):
        F = gg.nn.functional
        h = gg.relu(F.linear(x, p["w1"], p["b1"]))
        return F.cross_entropy(F.linear(h, p["w2"], p["b2"])[None], y[None])

    return params, x, y, loss


def best_of(runs, clock, best):
    """The best times of a few more runs, in turn: neighbours only ever add to them."""
    for name, run in runs.items():
        for _ in range(1 if name == "one by one" else 3):
            start = clock()
            run()
            best[name] = min(best.get(name, math.inf), clock() - start)
    return best


def per_example(width):
    """The gradients of 256 examples at once, the loop that gives the same, and the input and its slopes as arrays."""
    params, x, y, loss = mlp(width, "float32")
    batched, one = gg.vmap(gg.grad(loss), (None, 0, 0)), gg.grad(loss)

    def loop():
        rows = [one(params, x[i], y[i]) for i in range(256)]
        return {k: gg.stack([r[k] for r in rows]) for k in params}

    return (lambda: batched(params, x, y)), loop, x.numpy()[:, None]


@pytest.mark.parametrize("width", [64, 1000])
def test_per_example_gradients_equal_a_loop(width):
    at_once, loop, _ = per_example(width)
    got, want = at_once(), loop()
    for k, w in want.items():
        assert np.abs(got[k].numpy() - w.numpy()).max() <= 1e-5 * np.abs(w.numpy()).max()


def test_per_example_gradients_are_ten_times_faster_than_a_loop():
    at_once, loop, _ = per_example(64)
    best = {}
    for _ in range(5):
        best_of({"at once": at_once, "one by one": loop}, time.perf_counter, best)
        if 10 * best["at once"] <= best["one by one"]:
            return
    pytest.fail(f"256 per-example gradients: {best}")


def test_wide_per_example_gradients_cost_hardly_more_than_writing_them(monkeypatch):
    """100 MB. How many loops that is depends on the machine's memory: bench/per_example.py."""
    monkeypatch.setenv("GPUGRAD_THREADS", "1")
    at_once, _, inputs = per_example(1000)
    slopes, best = np.ones((256, 100, 1), "float32"), {}
    for _ in range(5):
        best_of({"at once": at_once, "its array": lambda: slopes * inputs}, time.thread_time, best)
        if best["at once"] <= 1.4 * best["its array"]:
            return
    pytest.fail(f"256 per-example gradients, one thread's time: {best}")


def test_float64_per_example_gradients_sum_to_the_batch_gradient():
    params, x, y, loss = mlp(20)
    rows = gg.vmap(gg.grad(loss), (None, 0, 0))(params, x, y)
    whole = gg.grad(lambda p: gg.vmap(loss, (None, 0, 0))(p, x, y).sum())(params)
    for k in params:
        np.testing.assert_allclose(rows[k].numpy().sum(0), whole[k].numpy(), rtol=1e-11, atol=1e-13)


def test_axes_structures_and_sharing():
    x, w = t64(np.arange(6.0).reshape(2, 3)), t64([1.0, 2.0])
    got = gg.vmap(lambda v, p: {"y": v * p["w"], "s": (v.sum(), p["n"])}, (1, None), {"y": 1, "s": (0, None)})(
        x, {"w": w, "n": t64(5.0)}
    )
    assert np.array_equal(got["y"].numpy(), x.numpy() * w.numpy()[:, None])
    assert got["s"][0].tolist() == [3.0, 5.0, 7.0]
    assert got["s"][1].item() == 5.0
    nested = gg.vmap(gg.vmap(lambda a, b: a * b, (None, 0)), (0, None))(w, t64([1.0, 2.0, 3.0]))
    assert nested.tolist() == [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]


def test_composition_with_jvp_grad_and_itself():
    rng = np.random.default_rng(1)
    x, v = t64(rng.normal(size=(4, 3))), t64(rng.normal(size=(4, 3)))
    w = t64(rng.normal(size=(3, 3)))
    f = lambda w, x: gg.sum(gg.tanh(w @ x) ** 2)
    hvp = lambda x, v: gg.hvp(lambda x: f(w, x), (x,), (v,))[0]
    close(gg.vmap(hvp)(x, v), gg.stack([hvp(x[i], v[i]) for i in range(4)]))
    push = lambda x, v: gg.jvp(lambda x: gg.vmap(f, (None, 0))(w, x), (x,), (v,))[1]
    close(push(x, v), gg.stack([gg.jvp(lambda a, i=i: f(w, a), (x[i],), (v[i],))[1] for i in range(4)]))
    mixed = lambda w: gg.vmap(lambda x: gg.grad(f, 1)(w, x))(x)
    close(
        gg.grad(lambda w: (mixed(w) * v).sum())(w),
        gg.grad(lambda w: sum((gg.grad(f, 1)(w, x[i]) * v[i]).sum() for i in range(4)))(w),
    )
    beside = lambda a, v: gg.jvp(lambda b: gg.where(a > b, a * b, gg.tanh(a) @ b), (v,), (a,))[1]
    close(gg.vmap(beside)(x, v), gg.stack([beside(x[i], v[i]) for i in range(4)]))
    hessians = gg.vmap(gg.hessian(lambda x: f(w, x)))(x)
    close(hessians, gg.stack([gg.hessian(lambda x: f(w, x))(x[i]) for i in range(4)]))
    inner = lambda c: gg.vmap(lambda x: f(w, x * c))(x)
    close(gg.jacobian(inner)(t64(0.5)), gg.jvp(inner, (t64(0.5),), (t64(1.0),))[1])
    tracked = t64(w.numpy()).requires_grad_()
    gg.vmap(lambda x: f(tracked, x))(x).sum().backward()
    close(tracked.grad, gg.grad(lambda w: sum(f(w, x[i]) for i in range(4)))(w))


def test_random_draws_are_shared_and_custom_functions_work():
    gg.random.seed(4)
    x = gg.ones((5, 40))
    out = gg.vmap(lambda x: gg.random.dropout(x, 0.5))(x).numpy()
    assert 0 < (out[0] == 0).sum() < 40
    assert (out == out[0]).all()
    double = gg.custom_op(lambda x: 2 * x, lambda t, out, x: 2 * t)
    rows = t64([[1.0, 2.0], [3.0, 4.0]])
    assert gg.vmap(gg.grad(lambda x: (double(x) * x).sum()))(rows).tolist() == (4 * rows).tolist()


def test_refusals_say_what_to_do():
    x = t64([1.0, -2.0])
    with pytest.raises(GraphError, match="where"):
        gg.vmap(lambda v: v if v > 0 else -v)(x)
    with pytest.raises(ShapeError, match=r"batch sizes \[2, 3\]"):
        gg.vmap(lambda a, b: a + b)(x, t64([1.0, 2.0, 3.0]))
    with pytest.raises(ShapeError, match="no argument with a batch axis"):
        gg.vmap(lambda a: a, in_axes=None)(x)
    with pytest.raises(ShapeError, match="in_axes=None"):
        gg.vmap(lambda a: a)(1.0)
    with pytest.raises(ShapeError, match="2 entries for 1 argument"):
        gg.vmap(lambda a: a, in_axes=(0, 0))(x)
    with pytest.raises(ShapeError, match="differs between examples"):
        gg.vmap(lambda a: a, out_axes=None)(x)
    with pytest.raises(RangeError, match="vmap"):
        gg.vmap(lambda a: a, in_axes=1)(x)


@pytest.mark.parametrize("name", gg.losses.TABLE)
def test_gradients_of_losses_per_example(name):
    """Their checks of values look at all examples, and name the first that is wrong."""
    loss, rng = gg.losses.TABLE[name], np.random.default_rng(3)
    rows, labels = rng.dirichlet(np.ones(3), size=(5, 2)), rng.integers(0, 3, (5, 2))
    of_classes = name in ("sce", "sce_logits", "categorical_hinge")
    target = labels if of_classes else np.eye(3)[labels] if "hinge" in name else rows[::-1].copy()
    x, y = t64(rows), gg.tensor(target)
    each = gg.vmap(gg.grad(loss))(x, y)
    close(each, gg.stack([gg.grad(loss)(x[i], y[i]) for i in range(5)]))
    if "ce" in name:
        wrong = target.copy()
        wrong[3] = 7
        with pytest.raises((gg.errors.DomainError, RangeError), match="7"):
            gg.vmap(gg.grad(loss))(x, gg.tensor(wrong))


def test_updates_of_elements_named_twice():
    """Also where each example names elements of its own."""
    x = t64(np.arange(24.0).reshape(3, 4, 2) + 1)
    ids = gg.tensor([[0, 0, 1], [1, -1, 3], [2, 2, 2]])
    updates = {
        "fixed": lambda x, i: x.at[[0, 0, 1]].multiply(x[[1, 2, 0]]),
        "add": lambda x, i: x.at[i].add(x[:3]),
        "multiply": lambda x, i: x.at[i].multiply(x[1:]),
        "max": lambda x, i: x.at[i, 1].max(x[1:, 0]),
        "min": lambda x, i: x.at[:, i[:2] % 2].min(2.5),
        "set": lambda x, i: x.at[i].set(x[1:]),
    }
    for f in updates.values():
        close(gg.vmap(f)(x, ids), gg.stack([f(x[k], ids[k]) for k in range(3)]))
        slope = gg.grad(lambda x, i, f=f: (f(x, i) * x).sum())
        close(gg.vmap(slope)(x, ids), gg.stack([slope(x[k], ids[k]) for k in range(3)]))
    for name in ("add", "multiply"):
        with pytest.raises(RangeError, match="index 4 at position"):
            gg.vmap(updates[name])(x, ids + gg.tensor([0, 0, 2])[:, None])
    with pytest.raises(ShapeError, match=r"mask|own for each example"):
        gg.vmap(lambda x, b: x.at[b].add(gg.ones((1, 2))))(x, x[..., 0] > 3)
