"""What every update op of the table promises: in place, noted, in blocks or whole alike, gradients untouched."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import GraphError, ShapeError
from gpugrad.op import TABLE
from gpugrad.ops import optim as updates
from gpugrad.tensor import Tensor

# constants, number of per-parameter state lists, number of per-parameter vectors beside step
STEPPING = {
    "sgd": ({"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1, "nesterov": False}, 1, 0),
    "adagrad": ({"lr_decay": 0.1, "eps": 1e-8, "weight_decay": 0.1}, 1, 0),
    "adadelta": ({"rho": 0.9, "eps": 1e-6, "weight_decay": 0.1}, 2, 0),
    "rmsprop": ({"alpha": 0.9, "eps": 1e-8, "momentum": 0.9, "weight_decay": 0.1}, 3, 0),
    "adam": ({"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "decoupled": True}, 3, 0),
    "adamax": ({"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}, 2, 0),
    "nadam": ({"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "momentum_decay": 0.004}, 2, 1),
}
OTHERS = {"average_into", "clamp_into", "next_scale", "scale_into", "unscale_into"}


def call(name, shapes, dtype="float64", order="C", skip=(), skip_flag=None):
    """One step from seeded values; returns all tensors by role."""
    constants, states, vectors = STEPPING[name]
    rng = np.random.default_rng(5)

    def make(positive=False):
        arrays = [rng.normal(size=s) for s in shapes]
        return [Tensor(np.array(np.abs(a) + 0.1 if positive else a, dtype, order=order)) for a in arrays]

    params, grads = make(), make()
    state = [make(positive=True) for _ in range(states)]
    if name == "rmsprop":  # the mean must not exceed the root mean square
        state[1] = [Tensor(np.asarray(0.3 * s.data)) for s in state[0]]
    grads = [None if i in skip else g for i, g in enumerate(grads)]
    step = Tensor(np.zeros(len(shapes)))
    extra = [Tensor(np.ones(len(shapes))) for _ in range(vectors)]
    before = [None if g is None else g.data.copy() for g in grads]
    addresses = [t.data.ctypes.data for t in (*params, *(t for s in state for t in s), step, *extra)]
    flag = [] if skip_flag is None else [Tensor(np.asarray(skip_flag, "int32"))]
    getattr(updates, name)(params, *state, step, *extra, grads, Tensor(np.asarray(0.1)), *flag, **constants)
    assert addresses == [t.data.ctypes.data for t in (*params, *(t for s in state for t in s), step, *extra)]
    for g, b in zip(grads, before):
        assert g is None or np.array_equal(g.data, b)
    return params, state, step


def test_every_update_op_is_covered_here():
    ours = {n for n, op in TABLE.items() if op.kind == "update" and n in updates.__all__}
    assert ours == set(STEPPING) | OTHERS


@pytest.mark.parametrize("name", STEPPING)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_blocks_give_the_same_bits_as_whole_arrays(name, dtype, monkeypatch):
    shapes = [(50, 7), (3,), (), (0,), (64,)]
    whole = call(name, shapes, dtype)
    monkeypatch.setattr(updates, "BLOCK", 64)
    cut = call(name, shapes, dtype)
    for one, two in zip([whole[0], *whole[1]], [cut[0], *cut[1]]):
        for a, b in zip(one, two):
            assert a.dtype == dtype
            assert np.array_equal(a.data, b.data)


@pytest.mark.parametrize("name", STEPPING)
def test_arrays_that_are_not_contiguous(name, monkeypatch):
    monkeypatch.setattr(updates, "BLOCK", 64)
    for a, b in zip(call(name, [(20, 9)])[0], call(name, [(20, 9)], order="F")[0]):
        assert np.array_equal(a.data, b.data)


@pytest.mark.parametrize("name", STEPPING)
def test_a_parameter_without_gradient_is_left_alone(name):
    with np.errstate(all="raise"):
        params, state, step = call(name, [(4,), (3,)], skip={1})
    full, full_state, _ = call(name, [(4,), (3,)])
    rng_values = call(name, [(4,), (3,)], skip={0, 1})[0]
    assert step.tolist() == [1.0, 0.0]
    assert np.array_equal(params[0].data, full[0].data)
    assert np.array_equal(params[1].data, rng_values[1].data)
    assert not np.array_equal(params[1].data, full[1].data)
    assert all(not np.array_equal(s[1].data, f[1].data) for s, f in zip(state[:1], full_state[:1]))


@pytest.mark.parametrize("name", STEPPING)
def test_each_parameter_counts_its_own_steps(name):
    """A parameter that gets its first gradient late is treated as at step 1, as if it were alone."""
    constants, states, vectors = STEPPING[name]

    def run(n, pattern):
        params = [Tensor(np.array([1.0, -2.0])) for _ in range(n)]
        state = [[Tensor(np.zeros(2)) for _ in range(n)] for _ in range(states)]
        step, extra = Tensor(np.zeros(n)), [Tensor(np.ones(n)) for _ in range(vectors)]
        for active in pattern:
            grads = [Tensor(np.array([0.5, 0.25])) if i in active else None for i in range(n)]
            getattr(updates, name)(params, *state, step, *extra, grads, Tensor(np.asarray(0.1)), **constants)
        return params

    alone = run(1, [{0}])
    late = run(2, [{0}, {0}, {0, 1}])
    np.testing.assert_allclose(late[1].data, alone[0].data, rtol=1e-14)
    assert not np.allclose(late[0].data, late[1].data)


@pytest.mark.parametrize("name", STEPPING)
def test_a_step_between_forward_and_backward_is_caught(name):
    constants, states, vectors = STEPPING[name]
    p = gg.tensor([1.0, 2.0], dtype="float64").requires_grad_()
    loss = (p * p).sum()
    state = [[Tensor(np.ones(2))] for _ in range(states)]
    extra = [Tensor(np.ones(1)) for _ in range(vectors)]
    grads = [Tensor(np.ones(2))]
    getattr(updates, name)([p], *state, Tensor(np.zeros(1)), *extra, grads, Tensor(np.asarray(0.1)), **constants)
    with pytest.raises(GraphError, match="overwritten by") as caught:
        loss.backward()
    assert __file__ in str(caught.value)


def test_a_shape_that_does_not_fit_is_named():
    with pytest.raises(ShapeError, match=r"\[sgd\]"):
        updates.sgd(
            [Tensor(np.zeros(3))], [], Tensor(np.zeros(1)), [Tensor(np.zeros((2, 2)))], Tensor(np.asarray(0.1)),
            momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False,
        )  # fmt: skip


def test_scale_and_clamp_write_in_place_and_keep_the_type():
    a, b = Tensor(np.array([1.0, -4.0], "float32")), Tensor(np.array([[2.0]]))
    updates.scale_into([a, b], Tensor(np.asarray(0.5)))
    assert a.dtype == np.float32
    assert a.tolist() == [0.5, -2.0]
    assert b.tolist() == [[1.0]]
    updates.clamp_into([a, b], limit=0.75)
    assert a.tolist() == [0.5, -0.75]
    assert b.tolist() == [[0.75]]


def test_global_norm_of_mixed_shapes_and_types():
    rng = np.random.default_rng(1)
    parts = [rng.normal(size=(3, 4)), rng.normal(size=5), np.zeros((0,)), np.asarray(2.5)]
    flat = np.concatenate([p.ravel() for p in parts])
    for ord in (1.0, 2.0, 3.0, np.inf):
        got = updates.global_norm(*map(Tensor, parts), ord=ord)
        assert got.shape == ()
        assert got.item() == pytest.approx(np.linalg.norm(flat, ord), rel=1e-14)
    assert updates.global_norm(*(Tensor(p.astype("float32")) for p in parts), ord=2.0).dtype == np.float32
    huge = Tensor(np.full(4, 300.0, "float16"))  # squares overflow float16
    assert updates.global_norm(huge, ord=2.0).item() == 600.0


@pytest.mark.parametrize("name", STEPPING)
def test_a_step_that_is_skipped_changes_nothing(name):
    plain = call(name, [(3, 2)])
    assert np.array_equal(call(name, [(3, 2)], skip_flag=0)[0][0].data, plain[0][0].data)
    params, state, step = call(name, [(3, 2)], skip_flag=1)
    fresh = np.random.default_rng(5).normal(size=(3, 2))
    assert np.array_equal(params[0].data, fresh)
    assert step.data == 0
    assert not any(np.array_equal(a[0].data, b[0].data) for a, b in zip(state, plain[1]))


def test_the_norm_of_ten_million_elements():
    x = Tensor(np.full(10_000_000, 0.1, "float32"))
    want = np.sqrt(1e7) * float(np.float32(0.1))
    assert updates.global_norm(x, ord=2.0).item() == pytest.approx(want, rel=1e-6)
    assert updates.global_norm(x, ord=1.0).item() == pytest.approx(1e7 * float(np.float32(0.1)), rel=1e-6)
