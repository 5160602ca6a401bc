"""When a backward pass may overwrite what the forward saved: only if nothing else can ever read it."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.define import general
from gpugrad.op import TABLE, raw

seen: list[bool] = []


def halve_bwd(F, t, _out, x, reuse=False):
    seen.append(reuse)
    return np.multiply(t, 0.5, out=x) if reuse else t * 0.5


@pytest.fixture(autouse=True)
def op(monkeypatch):
    """x / 2, whose gradient takes x's memory when it may, however small."""
    seen.clear()
    monkeypatch.setattr("gpugrad.tape.LENT", 0)
    yield general("halve", lambda xp, x: x * 0.5, halve_bwd, jvp=lambda F, ts, _out, _x: ts[0] * 0.5, reuse=1)
    del TABLE["halve"]


def halve(x):
    return TABLE["halve"].call(x)


def leaf():
    return gg.tensor(np.ones(3), requires_grad=True)


def test_memory_that_nobody_else_holds_is_taken():
    w = leaf()
    halve(w * 3).sum().backward()
    assert seen == [True]
    assert w.grad.numpy().tolist() == [1.5] * 3


def test_a_handle_a_view_a_saved_copy_or_a_leaf_keeps_it():
    w = leaf()
    logits = w * 3
    halve(logits).sum().backward()
    assert logits.numpy().tolist() == [3] * 3
    view = (lambda t: (halve(t), t[:2].detach()))(w * 3)
    view[0].sum().backward()
    assert view[1].numpy().tolist() == [3] * 2
    halve(gg.exp(w)).sum().backward()  # exp keeps its result for its own gradient
    halve(w).sum().backward()
    halve(gg.reshape(w, (1, 3))).sum().backward()
    assert seen == [False] * 5
    assert w.numpy().tolist() == [1] * 3


def test_memory_of_the_callers_array_is_never_taken():
    data = np.ones(3)
    x = gg.asarray(data).requires_grad_()
    halve(x + 0).sum().backward()
    del x
    assert data.tolist() == [1] * 3


def test_a_graph_that_is_kept_or_differentiated_keeps_it():
    w = leaf()
    loss = halve(w * 3).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert seen == [False, True]
    seen.clear()
    gg.gradients(halve(w * w).sum(), [w], create_graph=True)
    assert True not in seen
    assert w.grad.numpy().tolist() == [3] * 3


def test_two_gradients_of_one_call_do_not_take_turns():
    def twice(F, t, _out, x, _y, reuse=False):
        seen.append(reuse)
        return t

    general("pair_up", lambda xp, x, y: x + y, twice, twice, jvp=lambda F, ts, *_: ts[0], reuse=1)
    try:
        w = leaf()
        TABLE["pair_up"].call(w * 2, w * 3).sum().backward()
        TABLE["pair_up"].call(w * 2, (w * 3).detach()).sum().backward()
        assert seen == [False, False, True]
    finally:
        del TABLE["pair_up"]


@pytest.mark.parametrize("held", [False, True])
def test_cross_entropy_writes_its_gradient_over_logits_that_nobody_holds(held):
    from gpugrad.nn import functional as F

    backward = TABLE["softmax_xent_bwd"]
    run, given = backward.impls[np.ndarray], []

    def watched(t, logits, *rest, **attrs):
        out = run(t, logits, *rest, **attrs)
        given.append(np.shares_memory(out, logits))
        return out

    w = gg.tensor(np.random.default_rng(0).normal(size=(4, 3)), requires_grad=True)
    x, y = gg.asarray(np.random.default_rng(1).normal(size=(5, 4))), gg.asarray(np.array([0, 1, 2, 1, 0]))
    raw_namespace = raw(x.data)
    before = raw_namespace.softmax_xent_bwd
    raw_namespace.softmax_xent_bwd = watched
    try:
        logits = [x @ w] if held else []
        F.cross_entropy(logits[0] if held else x @ w, y).backward()
    finally:
        raw_namespace.softmax_xent_bwd = before
    assert given == [not held]
    p = np.exp(x.numpy() @ w.numpy())
    want = x.numpy().T @ (p / p.sum(1, keepdims=True) - np.eye(3)[y.numpy()]) / 5
    np.testing.assert_allclose(w.grad.numpy(), want, rtol=1e-12)
